"""What a file of rows is asked before anything is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forefed.cli.app import out, tell
from forefed.core.places import new_place

commands = typer.Typer()


@commands.command()
def annotate(
    data: Annotated[Path, typer.Argument(help="A file of rows, some or none of them labelled.")],
    budget: Annotated[int, typer.Option(help="How many rows to label next.")],
    model: Annotated[str, typer.Option(help="Whose features are read.")] = "minilm",
    text: Annotated[str, typer.Option(help="Column of the texts (default: guessed).")] = "",
    label: Annotated[str, typer.Option(help="Column of the labels (default: guessed).")] = "",
    to: Annotated[
        Path | None, typer.Option(help="The list, a CSV file (default: DATA.to-label.csv).")
    ] = None,
) -> None:
    """Say which rows to label next: first a well spread set, then those whose labels surprise.

    forefed annotate mine.csv --budget 50
    """
    from forefed.use.annotate import annotate as choose

    place, count, of = choose(data, budget, model, text, label, to, tell)
    out.print(f"{count:,} of {of:,} rows to label: {place}", soft_wrap=True)


@commands.command()
def discover(
    data: Annotated[Path, typer.Argument(help="A file of rows.")],
    epsilon: Annotated[float, typer.Option(help="What one answer may tell of its user.")],
    of: Annotated[
        str, typer.Option(help="labels, or words: those that the model has to cut into pieces.")
    ] = "words",
    column: Annotated[str, typer.Option(help="Of labels or texts (default: guessed).")] = "",
    user: Annotated[str, typer.Option(help="Column: whose row (default: a user a row).")] = "",
    party: Annotated[str, typer.Option(help="Column: who collects (default: one party).")] = "",
    top: Annotated[int, typer.Option(help="How many to find.")] = 10,
    model: Annotated[str, typer.Option(help="Whose tokeniser knows words.")] = "minilm",
    prune: Annotated[
        bool, typer.Option("--prune", help="Parties tell one another what is rare (TAPS).")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the result there.")] = None,
) -> None:
    """Find labels or words that many users hold, from one random answer of each (local DP).

    Nothing is trained. A rehearsal on this machine: what is found stands beside what is true.

    forefed discover notes.csv --of words --epsilon 4 --user patient
    """
    from forefed.use import discover as use

    to = None if json is None else new_place(json, "discover")
    found = use.discover(data, epsilon, of, column, user, party, top, model, prune, say=tell)
    out.print(use.table(found, epsilon, of))
    for line in use.notes(found, epsilon):
        out.print(line, soft_wrap=True)
    if to is not None:
        use.write(found, to, epsilon, of)
