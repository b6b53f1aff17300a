"""MUD-HoG: Gupta, Luo, Ngo, Das, "Long-short history of gradients is all you need: detecting
malicious and unreliable clients in federated learning" (ESORICS 2022, arXiv 2208.10273).

The server keeps, per client and unit, the mean of the last three updates (short) and of all (long),
and names whoever has answered three times:

    flip        cos(short, median of short) < 0
    of the rest, with M their median short and r = |short - M|:
    suspicious  r > 3 x median r, and then
    unreliable  <short, M> / |M|^2 < 0.6                     stays in the mean
    targeted    |long - median long| > 0.8 r (persistent)
    noise       otherwise

Hostile in two rounds in a row (targeted: four) is left out of the mean; five clean rounds forgive.

Departures: thresholds are relative (published: DBSCAN with an absolute radius and 2-means, which
names a minority of clean clients, too, and depends on the scale of updates); histories are copies
(in the public code all entries are one object, so that the history stands still from the third
round on). Clients count equally.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from forefed.aggregate.aggregator import Aggregator, Metrics, units_of, vectors_of
from forefed.aggregate.vectors import TINY, coordinate_median, middle
from forefed.core import trees
from forefed.core.states import State
from forefed.core.types import Contribution, Params, ServerContext

HISTORY = 3
LABELS = ("honest", "flip", "noise", "targeted", "unreliable")
HONEST, FLIP, NOISE, TARGETED, UNRELIABLE = range(len(LABELS))
CONFIRM = {FLIP: 2, NOISE: 2, TARGETED: 4}
FORGIVE = 5


class MudHog(Aggregator):
    """Mean without the clients whose history of updates is that of an attacker."""

    kind: Literal["mud_hog"] = "mud_hog"
    source: ClassVar[str] = "Gupta et al., arXiv 2208.10273"

    def __call__(
        self, cs: Sequence[Contribution], state: State, ctx: ServerContext
    ) -> tuple[Params, State, Metrics]:
        total: Params = {}
        new = dict(state)
        counts = dict.fromkeys((*LABELS[1:], "excluded"), 0.0)
        dropped = 0
        for unit in units_of(cs, ctx.units):
            held, x_ND = vectors_of(cs, unit)
            dropped += len([c for c in cs if unit.params[0] in c.delta]) - len(held)
            if not held:
                continue
            places = [f"{unit.name}/{c.client}" for c in held]
            history = [remembered(new, p, x) for p, x in zip(places, x_ND.float(), strict=True)]
            labels = labels_of(history)
            kept = []
            for i, (place, past, label) in enumerate(zip(places, history, labels, strict=True)):
                past = judged(past, label)
                new |= {f"{place}/{n}": x for n, x in past.items()}
                counts[LABELS[label]] = counts.get(LABELS[label], 0.0) + 1
                if int(past["excluded"]):
                    counts["excluded"] += 1
                else:
                    kept.append(i)
            x_D = x_ND[kept].mean(dim=0) if kept else torch.zeros_like(x_ND[0])
            like = trees.pick(held[0].delta, unit.params)
            total |= {n: x.to(like[n].dtype) for n, x in trees.unflatten(x_D, like).items()}
        counts.pop(LABELS[HONEST], None)
        if dropped:
            counts["not_finite"] = float(dropped)
        return total, new, counts

    def conflicts(self, config: Any) -> Iterator[str]:
        if config.trigger.kind != "round":
            yield (
                "aggregator.kind = 'mud_hog' keeps a history by round, and trigger.kind = "
                f"'{config.trigger.kind}' joins several; set trigger.kind = 'round'"
            )
        if config.codec.sends_slopes and config.directions.shared:
            yield (
                "aggregator.kind = 'mud_hog' compares a client's updates over rounds, and slopes "
                "are along other directions in each; use codec.kind = 'dense', or 'trimmed_mean'"
            )


def remembered(state: State, place: str, x_D: Tensor) -> State:
    """What is known of one client (``recent`` [<= 3, D], ``sum`` [D], counters) after one more
    update."""
    own = {
        n: state[f"{place}/{n}"]
        for n in ("recent", "sum", "count", "streak", "clean", "excluded")
        if f"{place}/{n}" in state
    }
    zero = torch.zeros((), dtype=torch.int64)
    return {
        "recent": torch.cat([own.get("recent", x_D[:0].reshape(0, len(x_D))), x_D[None]])[
            -HISTORY:
        ],
        "sum": own.get("sum", torch.zeros_like(x_D)) + x_D,
        "count": own.get("count", zero) + 1,
        **{n: own.get(n, zero) for n in ("streak", "clean", "excluded")},
    }


def labels_of(history: Sequence[State]) -> list[int]:
    """What each of these clients looks like; honest, as long as it has answered fewer than three
    times."""
    labels = [HONEST] * len(history)
    old = [i for i, past in enumerate(history) if int(past["count"]) >= HISTORY]
    if not old:
        return labels
    short = torch.stack([history[i]["recent"].double().mean(dim=0) for i in old])
    long = torch.stack([history[i]["sum"].double() / int(history[i]["count"]) for i in old])
    against = short @ coordinate_median(short) < 0
    rest = torch.nonzero(~against).flatten()
    for place in torch.nonzero(against).flatten().tolist():
        labels[old[place]] = FLIP
    if not len(rest):
        return labels
    m_D, long_D = coordinate_median(short[rest]), coordinate_median(long[rest])
    r_N = (short[rest] - m_D).norm(dim=1)
    square = m_D.square().sum().clamp(min=TINY)
    for k, place in enumerate(rest.tolist()):
        if r_N[k] <= 3 * middle(r_N):
            continue
        if short[place] @ m_D / square < 0.6:
            labels[old[place]] = UNRELIABLE
        elif (long[place] - long_D).norm() > 0.8 * r_N[k]:
            labels[old[place]] = TARGETED
        else:
            labels[old[place]] = NOISE
    return labels


def judged(past: State, label: int) -> State:
    """The client's counters after a round in which it looked like this."""
    hostile = label in CONFIRM
    streak = int(past["streak"]) + 1 if hostile else 0
    clean = 0 if hostile else int(past["clean"]) + 1
    excluded = bool(past["excluded"]) and clean < FORGIVE
    excluded |= hostile and streak >= CONFIRM[label]
    counters = {"streak": streak, "clean": clean, "excluded": int(excluded)}
    return {**past, **{n: torch.tensor(x, dtype=torch.int64) for n, x in counters.items()}}
