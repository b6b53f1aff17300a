"""FedBuff: Nguyen et al., "Federated learning with buffered asynchronous aggregation" (AISTATS
2022, arXiv 2106.06639), Algorithm 1: ``cohort`` clients are always at work, each on the parameters
that it was sent when it was last free; the server moves as soon as ``buffer`` answers are there,
whoever they are from.

    w <- w - (1 / K) sum_i s(t_i) (old - new)_i,   s(t) = (1 + t)^-power,   t: moves since then

A round of the record is one move of the server. Clocks are simulated: an ordinary client takes one
unit of time, give or take ``spread``, a slow one ``slow_factor``; ``metrics.clock`` says when the
move was made. What a client answers is computed when it is sent its work and waits in the state,
with the time at which it will arrive, so a run goes on bit for bit.

With ``buffer`` = cohort everybody is waited for: synchronous rounds, and their clock.

Departures: the mean is weighted by examples, as the aggregator has it (published: 1 / K each).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from forefed.core.keys import Key
from forefed.core.states import State, below, keep
from forefed.core.types import Cohort, Order, Params, Update
from forefed.federation.report import RoundReport
from forefed.federation.state import RunState
from forefed.federation.topology.topology import Hook, Topology

if TYPE_CHECKING:
    from forefed.federation.star import Star

OWNER = "clock"
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Flight:
    """An answer on its way: what it says, from which parameters, and when it arrives."""

    update: Update
    version: int
    arrives: float


class Buffered(Topology):
    """The server moves with every so many answers, however old; clocks are simulated."""

    kind: Literal["buffered"] = "buffered"
    buffer: Annotated[int, Field(ge=1)] = 3
    """K: answers with which the server moves."""
    power: Annotated[float, Field(ge=0)] = 0.5
    """An answer that is t moves old counts (1 + t)^-power."""
    slow: Share = 0.0
    """Share of the clients that are slow, always the same ones."""
    slow_factor: Annotated[float, Field(ge=1)] = 10.0
    """How many times as long as others they take."""
    spread: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Times vary evenly by so much to either side."""

    source: ClassVar[str] = "FedBuff, arXiv 2106.06639"
    awaits: ClassVar[bool] = False

    def takes(self, run: Key, client: int, number: int, members: int) -> float:
        """How long this client works, in units of an ordinary client's round."""
        count = round(self.slow * members)
        slow = client in run.fold("slow").choice(members, count) if count else False
        drawn = float(run.fold("takes", number, client).uniform((1,)))
        return (1 + self.spread * (2 * drawn - 1)) * (self.slow_factor if slow else 1.0)

    def round(
        self, star: Star, state: RunState, on_outcome: Hook | None
    ) -> tuple[RunState, RoundReport]:
        clock = [time.perf_counter()]
        number, now, flights = state.round + 1, *flown(state.of(OWNER))
        busy = {f.update.client for f in flights}
        free = [c for c in star.transport.members() if c not in busy]
        wanted = min(star.cohort - len(flights), len(free))
        ctx = replace(star.server.context(state, ()), key=star.key.fold("round", number))
        sent = star.select.select(free, wanted, ctx) if wanted else []
        orders = star.plan(state, Cohort(tuple(sent), float(star.cohort)))
        clock.append(time.perf_counter())
        came = star.hear(orders, on_outcome)
        clock.append(time.perf_counter())
        members = len(star.transport.members())
        for update in came.found:
            takes = self.takes(star.key, update.client, number, members)
            flights.append(Flight(update, state.round, now + takes))
        flights.sort(key=lambda f: (f.arrives, f.update.client))
        here, later = flights[: self.buffer], flights[self.buffer :]
        now = max([now, *(f.arrives for f in here)])
        ages = [state.round - f.version for f in here]
        updates = [
            replace(f.update, grad=scaled(f.update.grad or {}, (1 + age) ** -self.power))
            for f, age in zip(here, ages, strict=True)
        ]
        done = star.server.finish(state, {u.client: _order(star, u) for u in updates}, updates)
        kept = keep(done.state.states, OWNER, flat_flights(now, later))
        clock.append(time.perf_counter())
        metrics = {
            **done.metrics,
            "clock": now,
            "age": sum(ages) / len(ages) if ages else 0.0,
            "at_work": float(len(later)),
        }
        report = RoundReport(
            number,
            tuple(sorted([*(u.client for u in updates), *(x.client for x in came.lost)])),
            tuple(sorted(updates, key=lambda u: u.client)),
            tuple(came.lost),
            came.bytes_up,
            came.bytes_down,
            {
                "plan": clock[1] - clock[0],
                "clients": clock[2] - clock[1] - came.receiving_s,
                "aggregate": clock[3] - clock[2] + came.receiving_s,
            },
            metrics=metrics,
            contributions=done.contributions,
        )
        return replace(done.state, states=kept), report

    def conflicts(self, config: Any) -> Iterator[str]:
        place = "topology.kind = 'buffered'"
        if self.buffer > config.cohort:
            yield (
                f"topology.buffer = {self.buffer} is more than the cohort = {config.cohort} that "
                "is at work; lower it"
            )
        if config.codec.sends_slopes or config.download.by_records:
            yield (
                f"{place} applies answers to other parameters than they were made from, which no "
                "record of slopes tells; set codec.kind = 'dense'"
            )
        if config.channel.sums or any(m.private for m in config.modifiers):
            yield (
                f"{place} hears clients one by one, as they come, so nothing hides one; set "
                "channel.kind = 'plain', and no modifier of privacy"
            )
        if config.partition.kind == "sites":
            yield f"{place} is simulated, with clocks of its own; choose clients of this machine"
        if config.trigger.kind != "round" or config.oversampling or config.select.kind != "uniform":
            yield (
                f"{place} decides itself who is heard when; leave trigger, oversampling and select "
                "as they are"
            )


def _order(star: Star, update: Update) -> Order:
    return Order(star.key.value, 0, update.client, tuple(update.grad or {}), {})


def scaled(grad: Params, factor: float) -> Params:
    return grad if factor == 1 else {n: x * factor for n, x in grad.items()}


def flat_flights(now: float, flights: list[Flight]) -> State:
    """The clock and what is on its way, as tensors; inverse: ``flown``."""
    tensors: State = {"now": torch.tensor(now, dtype=torch.float64)}
    for i, f in enumerate(flights):
        u = f.update
        numbers = [f.arrives, float(u.client), float(u.n_examples), float(f.version)]
        numbers.append(u.metrics.get("loss", float("nan")))
        tensors[f"{i}/about"] = torch.tensor(numbers, dtype=torch.float64)
        tensors |= {f"{i}/grad/{n}": x for n, x in (u.grad or {}).items()}
        for name, v in u.variance.items():
            tensors[f"{i}/noise/{name}"] = torch.tensor(v, dtype=torch.float64)
    return tensors


def flown(tensors: State) -> tuple[float, list[Flight]]:
    """The time, and the answers on their way in the order of their arrival."""
    now = float(tensors["now"]) if "now" in tensors else 0.0
    flights = []
    for i in range(sum(1 for n in tensors if n.endswith("/about"))):
        own = below(tensors, str(i))
        arrives, client, n, version, loss = own["about"].tolist()
        update = Update(
            int(client),
            int(n),
            below(own, "grad"),
            metrics={"loss": loss},
            variance={name: float(v) for name, v in below(own, "noise").items()},
        )
        flights.append(Flight(update, int(version), arrives))
    return now, flights
