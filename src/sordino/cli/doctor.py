"""`sordino doctor`: is everything there that the other commands need?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from sordino.cli.console import one_line, out, print_json, table
from sordino.cli.options import json_option, library_option
from sordino.engine.installation import Finding, examine

if TYPE_CHECKING:
    from sordino.library.library import Library


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


def show(findings: Iterable[Finding]) -> None:
    """A table, then what to do."""
    styles = {"ok": "green", "note": "yellow", "bad": "red"}
    shown, advice = table("", "what", "found"), []
    for finding in findings:
        shown.add_row(finding.state, finding.what, one_line(finding.found), style=styles[finding.state])
        advice += [f"{finding.what}: {finding.do}"] if finding.do else []
    out.print(shown)
    for line in advice:
        out.print(f"- {line}")
