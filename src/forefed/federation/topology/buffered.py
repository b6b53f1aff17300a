"""FedBuff: Nguyen et al., "Federated learning with buffered asynchronous aggregation" (AISTATS
2022, arXiv 2106.06639), Algorithm 1: ``cohort`` clients are always at work, each on the parameters
that it was sent when it was last free; the server moves as soon as ``buffer`` answers are there,
whoever they are from.

    w <- w - (1 / K) sum_i s(t_i) (old - new)_i,   s(t) = (1 + t)^-power,   t: moves since then

A round of the record is one move of the server. Between machines answers are taken as they come,
and orders on their way wait in the state (``standing.py``). In a rehearsal clocks are simulated: an
ordinary client takes one unit of time, give or take ``spread``, a slow one ``slow_factor``;
``metrics.clock`` says when the move was made. What a client answers is computed when it is sent its
work and waits in the state, with the time at which it will arrive, so a run goes on bit for bit.

With ``buffer`` = cohort everybody is waited for: synchronous rounds, and their clock.

Departures: the mean is weighted by examples, as the aggregator has it (published: 1 / K each). A
client that is free is sent work at the server's next move (published: at once, another client).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from forefed.core.keys import Key
from forefed.core.states import State, below, keep
from forefed.core.types import Cohort, Order, Params, Standing, Update
from forefed.federation.exchange import Came
from forefed.federation.report import Laps, RoundReport
from forefed.federation.state import RunState
from forefed.federation.topology.standing import flat_orders, orders_of
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


@dataclass(frozen=True)
class Heard:
    """What a move is made of.

    Attributes:
        answers: updates, with the moves since their parameters were sent.
        orders: theirs, at least.
        later: what stays on its way, as the state keeps it, of so many clients (``at_work``).
        clock: the time, where it is simulated.
    """

    answers: Sequence[tuple[Update, int]]
    orders: Mapping[int, Order]
    came: Came[Update]
    later: State
    at_work: int
    clock: Mapping[str, float] = field(default_factory=dict)


class Buffered(Topology):
    """The server moves with every so many answers, however old."""

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
        laps = Laps()
        hear = self.arriving if isinstance(star.transport, Standing) else self.timed
        heard = hear(star, state, on_outcome, laps)
        came, enough = heard.came, len(heard.answers) >= star.cohort_min
        updates = [
            replace(u, grad=scaled(u.grad or {}, (1 + age) ** -self.power))
            for u, age in (heard.answers if enough else [])
        ]
        done = star.server.finish(state, heard.orders, updates)
        laps.end("aggregate")
        laps.move(came.receiving_s, "clients", "aggregate")
        ages = [age for _, age in heard.answers]
        metrics = {**done.metrics, **heard.clock, "age": sum(ages) / max(1, len(ages))}
        clients = [*(u.client for u, _ in heard.answers), *(x.client for x in came.lost)]
        report = RoundReport(
            state.round + 1,
            tuple(sorted(clients)),
            tuple(sorted(updates, key=lambda u: u.client)),
            tuple(came.lost),
            came.bytes_up,
            came.bytes_down,
            laps.seconds,
            abandoned=0 if enough else len(heard.answers),
            metrics={**metrics, "at_work": float(heard.at_work)},
            contributions=done.contributions,
        )
        return replace(done.state, states=keep(done.state.states, OWNER, heard.later)), report

    def arriving(self, star: Star, state: RunState, on_outcome: Hook | None, laps: Laps) -> Heard:
        """The next answers of sites, to whatever order; bytes of orders are counted with them."""
        at_work = orders_of(state.of(OWNER))
        orders = {**at_work, **self.sent(star, state, at_work)}
        laps.end("plan")
        came = star.hear(orders, on_outcome, buffer=self.buffer)
        laps.end("clients")
        answers = [(u, state.round + 1 - orders[u.client].round) for u in came.found]
        over = {*came.heard, *(lost.client for lost in came.lost)}
        later = {c: order for c, order in orders.items() if c not in over}
        return Heard(answers, orders, came, flat_orders(later), len(later))

    def timed(self, star: Star, state: RunState, on_outcome: Hook | None, laps: Laps) -> Heard:
        """The next answers by simulated clocks. All are there already; who is heard, time says."""
        now, flights = flown(state.of(OWNER))
        orders = self.sent(star, state, {f.update.client for f in flights})
        laps.end("plan")
        came = star.hear(orders, on_outcome)
        laps.end("clients")
        members = len(star.transport.members())
        for update in came.found:
            takes = self.takes(star.key, update.client, state.round + 1, members)
            flights.append(Flight(update, state.round, now + takes))
        flights.sort(key=lambda f: (f.arrives, f.update.client))
        here, later = flights[: self.buffer], flights[self.buffer :]
        now = max([now, *(f.arrives for f in here)])
        answers = [(f.update, state.round - f.version) for f in here]
        known = {u.client: _order(star, u) for u, _ in answers}
        return Heard(answers, known, came, flat_flights(now, later), len(later), {"clock": now})

    def sent(self, star: Star, state: RunState, busy: Collection[int]) -> dict[int, Order]:
        """Orders to as many of the free clients as bring those at work to the cohort."""
        free = [c for c in star.transport.members() if c not in busy]
        wanted = min(star.cohort - len(busy), len(free))
        ctx = star.server.context(state, ())
        ctx = replace(ctx, key=star.key.fold("round", state.round + 1))
        sent = star.select.select(free, wanted, ctx) if wanted > 0 else []
        return star.plan(state, Cohort(tuple(sent), float(star.cohort)))

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
        clocks = {"slow": self.slow, "spread": self.spread, "slow_factor": self.slow_factor}
        told = [n for n, x in clocks.items() if x != type(self).model_fields[n].default]
        if config.partition.kind == "sites" and told:
            yield f"topology.{told[0]} is of simulated clocks; sites have their own; drop it"
        if config.cohort_min > self.buffer:
            yield (
                f"cohort_min = {config.cohort_min} is more than topology.buffer = {self.buffer}, "
                "so every move would be abandoned; lower it"
            )
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
