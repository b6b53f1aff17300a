"""The application itself, and what its commands share: consoles, options, settings, notes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forefed.core.terminal import console, printable

if TYPE_CHECKING:
    from forefed.config.config import Config

app = typer.Typer(
    name="forefed",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=(
        "Federated fine-tuning of language models for private text and small machines.\n\n"
        "Start with [bold]forefed demo[/bold], then [bold]forefed run mine.csv[/bold]."
    ),
)
out = console()
err = console(stderr=True)

ConfigFile = Annotated[
    Path | None,
    typer.Argument(
        help="TOML file; or rows (.csv, .jsonl, .parquet, ...), for which one is written first; or "
        "the folder of a run, for its own settings."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="One setting, for example client.batch_size=16."
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a run, for example runs/demo.")]


def _version(asked: bool) -> None:
    if asked:
        from forefed import __version__

        typer.echo(f"forefed {__version__}")
        raise typer.Exit


@app.callback()
def forefed(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which it is.")
    ] = False,
) -> None:
    pass


def configured(config: Path | None, sets: list[str] | None, here: bool = False) -> Config:
    """The settings of a file, of what can be guessed about rows, or of a run's folder; ``here``: of
    that very folder, which may have been moved or copied since, or is named from another working
    directory."""
    from forefed.config.config import configure

    if config is not None and _rows(config):
        from forefed.config.init import Machine, file_for

        config, said = file_for(config, Machine.here())
        err.print(printable(said), soft_wrap=True)
    if config is not None and config.is_dir():
        from forefed.run.record import read_config

        base = read_config(config)
        if here:
            folder = config.resolve()
            base = {**base, "out": str(folder.parent), "name": folder.name}
        return configure(sets=sets or (), base=base)
    return configure(config, sets or ())


def _rows(path: Path) -> bool:
    """Is it somebody's rows? (A TOML file costs no import of what reads rows.)"""
    if path.suffix == ".toml" or not path.exists():
        return False
    from forefed.config.init import holds_rows

    return holds_rows(path)


def tell(note: str) -> None:
    """A note beside the output, which may be read by a program."""
    if note:
        err.print(f"note: {printable(note)}", style="yellow", soft_wrap=True)
