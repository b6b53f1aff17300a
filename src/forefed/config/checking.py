"""What ``forefed check`` says: what a configuration would run, and what of it cannot.

Rows are read and split as a run does it, of the model only its files' headers are read; nothing is
tokenised, trained or asked of a network, and nothing is written but what was found of the model,
into the user's cache (``models/outline.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from forefed.aggregate.aggregator import PerUnit
from forefed.config.advice import taken
from forefed.config.compat import check as refuse
from forefed.config.compat import check_population
from forefed.config.config import Config
from forefed.config.privacy import check_units
from forefed.config.privacy import notes as privacy_notes
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.sizes import format_bytes
from forefed.core.terminal import one_line, printable
from forefed.data.preview import Preview, preview
from forefed.data.sources import Hub
from forefed.models.objectives import objective_of
from forefed.models.outline import Outline, outline
from forefed.optimisers import Optimiser, Sgd

SHOWN_CLASSES = 12


@dataclass(frozen=True)
class Checked:
    """``data``: None where only the network could tell."""

    config: Config
    model: Outline
    data: Preview | None
    notes: tuple[str, ...]


def check_run(config: Config) -> Checked:
    """Look at everything that a run stands on.

    Raises:
        UserError: what cannot work; as the run would say it.
    """
    refuse(config)
    model = outline(config.model)
    if model.positions is not None and config.data.max_length > model.positions:
        raise UserError(
            f"data.max_length = {config.data.max_length} is more than the {model.positions} tokens "
            f"that the model '{config.model.name}' has positions for; lower it"
        )
    data, notes = None, [*model.notes]
    if isinstance(config.data.source, Hub):
        notes.append("the rows are not looked at: the network would be asked for them")
    else:
        key, cache = Key(config.seed).fold("data"), config.out / ".cache"
        there = cache if cache.is_dir() else None
        data = preview(config.data, config.partition, key, there)
        notes += data.notes
        check_population(config, data.clients)
        check_units(config, data.clients)
        notes += privacy_notes(config, data.clients, config.partition.kind != "sites")
        model = outline(config.model, data.label_names or None, config.data.task.head)
        notes += [note for note in model.notes if note not in notes]
    return Checked(config, model, data, (*taken(config), *notes, *_rates(config), *_few(config)))


def check_table(checked: Checked) -> Table:
    """Data, clients and model as they were found."""
    table = Table(title="what is there", title_justify="left", box=None, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, text in _found(checked):
        table.add_row(name, printable(text))
    return table


def _found(checked: Checked) -> Iterator[tuple[str, str]]:
    config, data, model = checked.config, checked.data, checked.model
    if data is not None:
        how = "of the source's own" if data.given else "held out"
        yield "rows", f"{data.train:,} to train on, {data.test:,} to test on ({how})"
        for setting, columns in data.columns.items():
            guessed = "; guessed, data.task names none" if setting in data.guessed else ""
            if columns:
                yield setting, f"{', '.join(one_line(c, 60) for c in columns)} (column{guessed})"
        classes = objective_of(data.label_names, config.data.task.head).classes
        if classes:
            shown = [one_line(name, 40) for name in classes[:SHOWN_CLASSES]]
            more = ", ..." if len(classes) > SHOWN_CLASSES else ""
            yield "classes", f"{len(classes):,}: {', '.join(shown)}{more}"
        elif data.label_names:
            yield "scale", " to ".join(data.label_names)
        yield "clients", f"{data.clients:,}{_sizes(data)}, {config.cohort} per round"
    layers = f"{model.layers} layers of width {model.hidden}, {model.vocabulary:,} tokens"
    longest = "" if model.positions is None else f", texts of up to {model.positions:,} tokens"
    weights = f"{model.parameters / 1e6:,.1f} M parameters ({format_bytes(model.weights_bytes)})"
    yield "model", f"{model.family}: {weights}, {layers}{longest}"


def _sizes(data: Preview) -> str:
    if not len(data.sizes):
        return ""
    low, middle, high = (int(x) for x in np.quantile(data.sizes, [0, 0.5, 1]))
    return f" with {low:,} to {high:,} training rows (half have {middle:,} or more)"


def _rates(config: Config) -> Iterator[str]:
    """Rates that train nothing, and those of optimisers that move every number by about the rate
    in each step."""
    places: dict[str, Optimiser] = {
        "client.optimiser": config.client.optimiser,
        "server": config.server,
    }
    for place, optimiser in places.items():
        if not optimiser.lr and not optimiser.head_lr:
            yield f"{place}.lr = 0: nothing is trained; 0.001 to 0.1 is usual"
        if not isinstance(optimiser, Sgd) and optimiser.lr > 1:
            yield (
                f"{place}.lr = {optimiser.lr:g}: {optimiser.kind} moves every number by about that "
                "much a step; 0.001 to 0.1 is usual"
            )


def _few(config: Config) -> Iterator[str]:
    """A cohort in which the aggregator cannot do what it promises."""
    rule = config.aggregator
    if isinstance(rule, PerUnit) and config.cohort < rule.least():
        yield (
            f"aggregator.kind = '{rule.kind}' needs {rule.least()} clients a round and cohort = "
            f"{config.cohort}: the mean of updates cut to their median length stands in for it; "
            "raise the cohort"
        )
