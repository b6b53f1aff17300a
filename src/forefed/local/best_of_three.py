"""A client that keeps the best of three models by its own held-out rows (``sharing/
best_of_three.py``).

    client i: its rows in two parts, the same ones in every round: held out, and the others
      others:    train the own model from where it was (first: the run's first values)
                 train the common one; send its change
      held out:  the loss of the common model as it came, as trained here, and of the own one
      keep the number of the smallest loss
      all rows:  what answers has learned from these, too: the own model by a copy that is trained
                 beside it, the tuned one, where it is chosen, by training the common one again

Three times FedAvg's steps, four where the tuned one is chosen, and FedAvg's bytes. Nobody hears
what was chosen. The choice is of the last round that the client took part in; where the common
model is chosen, the newest one answers. It goes by the loss, in which a model that is too sure of
itself is worse than its answers are, and a client of few rows has few to choose by
(docs/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from forefed.core.keys import Key
from forefed.core.states import States, below
from forefed.core.types import ClientContext, LossFn, Order, Params
from forefed.data.examples import ClientData, Indices
from forefed.local.phases import Phase, in_phases, phase_conflicts
from forefed.local.training import PRIVATE, SCORED, LocalTraining, Trainer, Walked
from forefed.sharing.best_of_three import ALONE, CHOICE, JUDGED, MODELS, TUNED


class BestOfThree(LocalTraining):
    """Trains a model of its own beside the common one, and keeps the best by held-out rows."""

    kind: Literal["best_of_three"] = "best_of_three"  # type: ignore[assignment]
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of a client's rows, by which it chooses; what is sent has not learned from them. One at
    least, and with a single row none: then the common model answers."""
    source: ClassVar[str] = "Mansour et al., arXiv 2002.10619"

    def walk(
        self, trainer: Trainer, order: Order, data: ClientData, states: States, ctx: ClientContext
    ) -> Walked:
        judged, rows = self.parts(order, data.train)
        names = order.assigned

        def trained(start: Params, on: Indices, states: States) -> Walked:
            there = replace(order, params={**order.params, **start})
            return in_phases(trainer, there, data, states, ctx, [Phase(names, on)])

        def alone(place: str, on: Indices, states: States) -> Walked:
            known = below(states.get(PRIVATE, {}), place)
            return trained({n: known.get(n, trainer.task.first[n]) for n in names}, on, states)

        own = alone(JUDGED, rows, states)
        whole = alone(ALONE, data.train, own.states)
        walked = trained({}, rows, whole.states)
        found = ({n: order.params[n] for n in names}, walked.params, own.params)
        losses = [
            mean_loss(trainer.task.loss, {**order.params, **one}, data, judged) for one in found
        ]
        best = int(np.argmin(losses)) if len(judged) else 0
        kept = {CHOICE: torch.tensor(best), **_at(JUDGED, own.params), **_at(ALONE, whole.params)}
        if MODELS[best] == TUNED:
            kept |= _at(TUNED, trained({}, data.train, walked.states).params)
        return replace(walked, examples=len(rows), kept=kept)

    def parts(self, order: Order, rows: Indices) -> tuple[Indices, Indices]:
        """The rows that a client chooses by, and those that it trains on."""
        if len(rows) < 2:
            return rows[:0], rows
        drawn = Key(order.run).fold("choose", order.client).permutation(len(rows))
        count = min(max(1, round(self.held_out * len(rows))), len(rows) - 1)
        return rows[drawn[:count]], rows[np.sort(drawn[count:])]

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        yield from phase_conflicts(self, config)
        if config.sharing.kind != "best_of_three":
            yield (
                f"client.kind = 'best_of_three': with sharing.kind = '{config.sharing.kind}' what "
                "is chosen answers nothing; set sharing.kind = 'best_of_three'"
            )


def mean_loss(loss: LossFn, params: Params, data: ClientData, rows: Indices) -> float:
    """The mean loss of these rows; 0 of none."""
    total, weight = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), SCORED):
            batch = data.examples.batch(rows[start : start + SCORED])
            total += float(loss(params, batch)) * loss.weight(batch)
            weight += loss.weight(batch)
    return total / max(1, weight)


def _at(place: str, params: Params) -> Params:
    return {f"{place}/{n}": x for n, x in params.items()}
