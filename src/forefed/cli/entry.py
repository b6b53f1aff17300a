"""All commands in one application, and its entry point."""

from __future__ import annotations

import sys

import typer

from forefed.cli import finished, looking, rows, running
from forefed.cli.app import app, err
from forefed.core.boundary import STOPPED, USER, guarded
from forefed.core.terminal import styled
from forefed.deploy.commands import aggregator, peer, server, site

for group in (running, rows, finished, looking):
    app.add_typer(group.commands)
app.add_typer(site, name="site")
app.add_typer(server, name="server")
app.add_typer(aggregator, name="aggregator")
app.add_typer(peer, name="peer")


def main() -> None:
    """Entry point; ``core/boundary.py`` says what ends a command, and with which status."""
    sys.exit(guarded(_command, _say))


def _command() -> int:
    try:
        code = app(prog_name="forefed", standalone_mode=False) or 0
    except typer.Abort:
        code = STOPPED
    except Exception as error:
        show = getattr(error, "show", None)  # click's own usage errors print themselves
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", USER))
    if code == STOPPED:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    return int(code)


def _say(text: str) -> None:
    head, found, rest = text.partition("error:")
    shown = styled((found, "red"), rest) if found and not head else styled(text)
    err.print(shown, soft_wrap=True)
