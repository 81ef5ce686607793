"""help: what `COMMAND --help` says, for those who type `help COMMAND`."""

from __future__ import annotations

import click


@click.command("help")
@click.argument("names", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def help_(context: click.Context, names: tuple[str, ...]) -> None:
    """Show the help of a command.

    Of a command of a group, too: sordino help mixture fit. Without COMMAND, the list of all commands.
    """
    asked = context.find_root()
    for name in names:
        if not isinstance(asked.command, click.Group):
            raise click.UsageError(f"{asked.command_path} has no commands of its own", ctx=asked)
        _, command, _ = asked.command.resolve_command(asked, [name])
        assert command is not None
        asked = click.Context(command, info_name=name, parent=asked)
    click.echo(asked.get_help())
