"""help: what `COMMAND --help` says, for those who type `help COMMAND`."""

from __future__ import annotations

import click


@click.command("help")
@click.argument("names", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def help_(context: click.Context, names: tuple[str, ...]) -> None:
    """Show the help of a command.

    For a command of a group: sordino help mixture fit. Without COMMAND, list all commands.
    """
    found = context.find_root()
    for name in names:
        if not isinstance(found.command, click.Group):
            raise click.UsageError(f"{found.command_path} has no commands of its own", ctx=found)
        _, command, _ = found.command.resolve_command(found, [name])
        assert command is not None
        found = click.Context(command, info_name=name, parent=found)
    click.echo(found.get_help())
