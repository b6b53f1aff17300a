"""What is done with a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forefed.cli.app import RunFolder, out, tell
from forefed.core.commands import TextCommand
from forefed.core.errors import UserError
from forefed.core.places import new_place
from forefed.core.terminal import one_line, styled

commands = typer.Typer()


@commands.command()
def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="New folder for the adapter.")],
    form: Annotated[
        str, typer.Option("--as", help="peft, lora (plain), model (merged), gguf or onnx.")
    ] = "peft",
    best: Annotated[
        bool, typer.Option("--best", help="The parameters of the best evaluation, not the last.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also of a run that did not finish, or diverged.")
    ] = False,
) -> None:
    """Write a finished run's model, its tokeniser and a card with code that uses them."""
    from forefed.use import predict as use
    from forefed.use.export import export_adapter

    note = export_adapter(run, new_place(folder, "export", folder=True), form, force, best)
    tell(note)
    tell(use.told(run))
    out.print(f"written: {folder} (its README.md has the code that uses it)", soft_wrap=True)


@commands.command(cls=TextCommand)
def predict(
    run: RunFolder,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts; two per example for pairs, a question and its context."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="A file with the columns that the run was trained on.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="New file: all columns, the prediction, probabilities.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="csv, jsonl or parquet (default: by the output's suffix).")
    ] = None,
    client: Annotated[
        int | None,
        typer.Option(help="Answer as this client (from 0), where clients keep heads of their own."),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            help="Answer as the site of this folder, of a run that its server has handed over."
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="At most, of what a language model says (100).")
    ] = None,
) -> None:
    """Label texts with a run's model, continue them, or answer questions, as it was trained to.

    forefed predict runs/mine "The soup was cold." "-5 degrees outside."

    forefed predict runs/mine --file new.csv --output labelled.csv
    """
    from forefed.use import predict as use
    from forefed.use import predictions

    asked = predictions.format_of(format, output)
    if file is not None and texts:
        raise UserError("predict: give texts or a file of them (--file), not both")
    own = None
    if site is not None:
        from forefed.deploy.own import of_site

        if client is not None:
            raise UserError("predict: answer as a client of a rehearsal or as a site, not as both")
        own = of_site(run, site)
    rows, wanted = use.texts_of_file(run, file) if file else (None, texts or [])
    found = use.predict(run, wanted, client, tokens, own)
    tell(use.told(run, common=client is None and own is None))
    if asked is None:
        width = max(20, out.width - 30) if out.is_terminal else None
        for one in found:
            said = styled((one_line(one.words), "bold"), "  ", (one_line(one.text, width), "dim"))
            out.print(said, soft_wrap=True)
        return
    given = use.rows_of_texts(run, wanted) if rows is None else rows
    table = predictions.with_predictions(given, found, use.classes_of(run))
    if output is None:
        typer.echo(predictions.as_text(table, asked), nl=False)
    else:
        predictions.write_predictions(table, asked, output)
        out.print(f"predictions: {output} ({table.num_rows:,} rows)", soft_wrap=True)


@commands.command()
def replay(
    log: Annotated[Path, typer.Argument(help="Folder of a run, or the scalars.log in it.")],
    folder: Annotated[
        Path | None, typer.Option("--export", help="New folder for the rebuilt adapter.")
    ] = None,
) -> None:
    """Rebuild a run's parameters from its first values and its scalar log, and verify them.

    For runs whose clients send slopes (codec.kind = 'scalars', 'one_byte'). Nobody is asked, and no
    text is read.
    """
    from forefed.run.rebuild import export_rebuilt, replay_log

    if folder is not None:
        new_place(folder, "--export", folder=True)
    if not log.exists():
        raise UserError(f"{log}: there is no run and no log here")
    found = replay_log(log)
    checked = ", ".join(map(str, found.digests)) or "none yet"
    out.print(f"rounds: {found.state.round}; digests compared and equal: {checked}")
    if found.torn:
        out.print(f"a torn last message of {found.torn} bytes was left out")
    out.print(f"digest: {found.digest}")
    if folder is not None:
        export_rebuilt(found, folder)
        out.print(f"adapter: {folder}", soft_wrap=True)


@commands.command("forget")
def forget_command(
    client: Annotated[int, typer.Argument(help="Number of the client, from 0.")],
    run: RunFolder,
) -> None:
    """Take a client's rows out of a run's solved head, exactly (of adapters no such thing holds).

    forefed forget 3 runs/demo
    """
    from forefed.use.forget import forget

    left = forget(run, client)
    out.print(
        f"{run}: the head is that of {left.line['examples']:,} rows without client {client}, as if "
        "it had never been there. What adapters learned in later rounds stays: run anew for that."
    )
