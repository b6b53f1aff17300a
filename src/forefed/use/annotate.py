"""``forefed annotate``: which rows of a file to label next (``use/bandit.py``).

What a label is worth is how much it surprises: the leave-one-out error, at that row, of a ridge
classifier of all labelled rows on features of the frozen model. Nothing leaves the machine.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from forefed.core import files
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.data.columns import LABELS, TEXTS, first_named, guess, named
from forefed.data.columns import texts as texts_of
from forefed.data.encoding import encode_texts
from forefed.data.sources import Files
from forefed.models.adapters import HeadOnly
from forefed.models.inspect import longest_text
from forefed.models.load import load_task
from forefed.models.settings import ModelSettings
from forefed.start.features import features
from forefed.use.bandit import next_rows, surprises

TOKENS = 64
"""Of each text that are read."""


def annotate(
    data: Path,
    budget: int,
    model: str = "minilm",
    text: str = "",
    label: str = "",
    to: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Path, int, int]:
    """Append the rows to label next to a list, a CSV file with the columns row and text.

    Args:
        data: a file of rows; those without a label (empty, or no such column) may be asked for.
        budget: how many to ask for.
        model: whose features are read: a name as in ``model.name``.
        text: the column of texts; empty: guessed.
        label: that of labels; empty: guessed, or none.
        to: the list; None: beside the data, its name with ``.to-label.csv``. Rows that stand there
            are not asked for again.
        say: told what is being done.

    Returns:
        The list, how many rows it has gained, and how many could have been asked for.

    Raises:
        UserError: a budget below 1, no such file or column, nothing that is left to label.
    """
    if budget < 1:
        raise UserError(f"--budget {budget}: give how many rows to label, 1 or more")
    rows = Files(path=data).load().rows
    known = first_named(rows.column_names, LABELS)
    column = named(rows, label, "--label") if label else (known[0] if known else "")
    taken = [column] if column else []
    chosen = [named(rows, text, "--text")] if text else guess(rows, TEXTS, "--text", taken)
    texts = list(texts_of(rows, chosen))
    labels: list[object] = rows.array(column).to_pylist() if column else [None] * len(texts)
    place = data.with_name(f"{data.stem}.to-label.csv") if to is None else to
    listed = asked_before(place)
    labelled = [i for i, x in enumerate(labels) if x not in (None, "")]
    free = {*range(len(texts))} - {*labelled} - listed
    if not free:
        raise UserError(f"{data}: every row has a label, or stands in {place} already")
    say("reading the texts with the frozen model")
    settings = ModelSettings(name=model, pooling="mean", layers="last")
    task, tokenizer = load_task(settings, HeadOnly(), Key(0), ("no", "yes"))
    longest = longest_text(task.model.config) or TOKENS
    examples = encode_texts(tokenizer, texts, min(TOKENS, longest))
    x_ND = features(task, task.params, examples, np.arange(len(texts)), 32).double().numpy()
    x_ND = (x_ND - x_ND.mean(0)) / np.maximum(x_ND.std(0), 1e-9)
    worth_n = surprises(x_ND[labelled], [labels[i] for i in labelled]) if labelled else np.zeros(0)
    found = next_rows(x_ND, labelled, worth_n, free, budget)
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    if not place.exists():
        writer.writerow(["row", "text"])
    writer.writerows([i + 1, texts[i]] for i in found)
    files.append(place, written.getvalue().encode())
    return place, len(found), len(free)


def asked_before(place: Path) -> set[int]:
    """The rows, from 0, that a list names.

    Raises:
        UserError: it is no such list.
    """
    if not place.exists():
        return set()
    with place.open(newline="", encoding="utf-8") as lines:
        try:
            return {int(line["row"]) - 1 for line in csv.DictReader(lines)}
        except (KeyError, TypeError, ValueError, UnicodeDecodeError, csv.Error):
            raise UserError(
                f"{place}: is no list of rows to label (a CSV file with the columns row and text); "
                "give another place by --to"
            ) from None
