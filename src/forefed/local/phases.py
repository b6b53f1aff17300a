"""A client's round in several parts, each of which trains other parameters, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from forefed.core.states import States, keep
from forefed.core.types import ClientContext, Order, Params
from forefed.data.examples import ClientData, Indices
from forefed.local.training import OPTIMIZER, LocalTraining, Trainer, Walked
from forefed.modifiers import Modifier

ADDED = ("steps", "skipped", "forwards", "clamped")
"""Numbers of which the round's is the sum over its parts; of the others the last part's counts."""


@dataclass(frozen=True)
class Phase:
    """One part: what is trained, on which rows, beside which values of other parameters.

    ``epochs``: None for the client's own; ``modifiers``: after the run's own.
    """

    names: tuple[str, ...]
    rows: Indices
    beside: Params = field(default_factory=dict)
    epochs: int | None = None
    modifiers: tuple[Modifier, ...] = ()


def in_phases(
    trainer: Trainer,
    order: Order,
    data: ClientData,
    states: States,
    ctx: ClientContext,
    phases: Iterable[Phase],
) -> Walked:
    """The parts, each from where the former ones have led; every part has the client's epochs, and
    at most its ``max_steps``, and begins with an optimiser of its own.

    Returns:
        The final values of what was to be trained, and the numbers of all parts.
    """
    params, told = dict(order.params), dict[str, float]()
    for phase in phases:
        if not len(phase.rows):
            continue
        part = replace(order, params={**params, **phase.beside}, assigned=phase.names)
        settings = trainer.settings
        if phase.epochs is not None:
            settings = settings.model_copy(update={"epochs": phase.epochs})
        modifiers = (*trainer.modifiers, *phase.modifiers)
        walked = replace(trainer, settings=settings, modifiers=modifiers).walk(
            part,
            replace(data, train=phase.rows),
            keep(states, OPTIMIZER, {}),
            replace(ctx, order=part),
        )
        params |= walked.params
        states, found = walked.states, walked.metrics
        summed = {n: told.get(n, 0.0) + found.get(n, 0.0) for n in ADDED}
        peaks = [m["peak_bytes"] for m in (told, found) if "peak_bytes" in m]
        told = {**told, **found, **summed, **({"peak_bytes": max(peaks)} if peaks else {})}
    trained = {n: params[n] for n in order.assigned}
    return Walked(trained, keep(states, OPTIMIZER, {}), len(data.train), told)


def phase_conflicts(client: LocalTraining, config: Any) -> Iterator[str]:
    """What cannot be said of a round in parts."""
    place = f"client.kind = '{client.kind}'"
    if client.keep_optimiser:
        yield f"client.keep_optimiser: {place} begins each of its parts anew; leave it out"
    for m in config.modifiers:
        if type(m).on_step is not Modifier.on_step or m.per_example or m.reads_batches:
            yield (
                f"modifiers: '{m.kind}' acts on every local step, and {place} trains other "
                "parameters in each of its parts; drop it"
            )
