"""Slopes along directions that clients share, which are aggregated before they are rebuilt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from forefed.aggregate import Aggregator
from forefed.aggregate.aggregator import Metrics
from forefed.core.states import State
from forefed.core.types import Contribution, Json, Params, ServerContext
from forefed.federation.lengths import described
from forefed.wire.records import Entry


def average_slopes(
    aggregator: Aggregator, state: State, entries: Sequence[Entry], ctx: ServerContext
) -> tuple[State, list[Entry], tuple[Json, ...], Metrics]:
    """One entry out of all that walked along the same directions over the same parameters.

    Slopes along shared directions are those of the mean loss once they are averaged. A client with
    fewer local steps counts with slopes of 0 in the others, as its parameters rested; so does a
    step in which a slope was not finite.
    """
    alike: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        widths = tuple(sorted((group, x.shape[1]) for group, x in entry.slopes.items()))
        alike.setdefault((entry.assigned, widths), []).append(entry)
    averaged = []
    told: list[Json] = []
    counted: Counter[str] = Counter()
    # what was aggregated before are parameters, or slopes along other directions
    ctx = replace(ctx, units=(), previous={})
    for some in alike.values():
        steps = max(len(x) for e in some for x in e.slopes.values())
        slopes = [Contribution(e.client, e.n_examples, _padded(e.slopes, steps)) for e in some]
        mean, state, numbers = aggregator(slopes, state, ctx)
        counted.update(numbers)
        told += described(slopes, mean)
        total = sum(e.n_examples for e in some)
        rounded = {group: x.to(torch.float32) for group, x in mean.items()}
        averaged.append(Entry(some[0].client, total, some[0].assigned, rounded))
    return state, averaged, tuple(sorted(told, key=lambda c: c["client"])), dict(counted)


def fitted(slopes: Mapping[str, Tensor], like: Params) -> Params:
    """Slopes in the form of ``like``, float64: rows of 0 for steps that were not made."""
    found: Params = {}
    steps = max((len(x) for x in like.values()), default=0)
    for group, zeros in like.items():
        x = slopes.get(group)
        fits = x is not None and x.shape[1:] == zeros.shape[1:]
        rows = _padded({group: x[:steps]}, steps)[group] if x is not None and fits else zeros
        found[group] = rows.double()
    return found


def _padded(slopes: Mapping[str, Tensor], steps: int) -> Params:
    """[steps, K] float64 by group, 0 where there was no step."""
    padded: Params = {}
    for group, x in slopes.items():
        whole = torch.isfinite(x).all(1, keepdim=True)
        rows = torch.where(whole, x, 0.0).double()
        padded[group] = torch.cat([rows, rows.new_zeros(steps - len(x), x.shape[1])])
    return padded
