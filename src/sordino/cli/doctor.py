"""`sordino doctor`: is everything there that the other commands need?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from sordino.cli.console import one_line, out, print_json, show_table
from sordino.cli.options import json_option, library_option
from sordino.engine.installation import Finding, examine
from sordino.library.library import Library

_STYLES = {"ok": "green", "note": "yellow", "bad": "red"}


@click.command()
@library_option()
@json_option()
@click.pass_context
def doctor(context: click.Context, library: Library, as_json: bool) -> None:
    """Check models, folders, extras and hardware.

    Downloads nothing. The exit code is 1 where something keeps commands from working.
    """
    findings = list(examine(library))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        show(findings)
    context.exit(int(any(finding.state == "bad" for finding in findings)))


def show(findings: Sequence[Finding]) -> None:
    """A table, then what to do."""
    cells = ((finding.state, finding.what, one_line(finding.found)) for finding in findings)
    show_table(("", "what", "found"), cells, styles=(_STYLES[finding.state] for finding in findings))
    for finding in findings:
        if finding.do:
            out.print(f"- {finding.what}: {finding.do}")
