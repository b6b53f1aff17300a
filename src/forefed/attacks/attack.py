"""What hostile clients send: simulated, to measure what an aggregator makes of it.

Some clients of a simulation are hostile, for the whole run, drawn by its key. They train as the
others do, then everything that they send is crafted: a function of the benign updates that they
know and of the round's key, nothing else. What they crafted is encoded as any update, so that the
server sees only bytes (federation/adversary.py). Sites of a deployment are never attacked.

    full     the benign updates of the round are known (worst case)
    partial  the hostile clients' own honest updates stand for them
    none     no data and no sight of others: the mean step of the global model so far, with noise of
             its own size, stands for them

Between the last two, ``compromised`` clients are real, and the other hostile ones train on rows
drawn like theirs (attacks/fakes.py).

Source of the threat models: Mozaffari, Choudhary, Houmansadr, "Fake or compromised?" (arXiv
2403.06319).

Parameters that the same clients hold are one vector; where clients train different units, each of
them is attacked by itself. Slopes along shared directions are one vector, too.

Legend: N benign updates that are known, F hostile ones, D elements.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from forefed.aggregate import Aggregator
from forefed.aggregate.aggregator import share_of
from forefed.attacks.answers import Lies
from forefed.attacks.fakes import synthetic
from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.settings import Choice
from forefed.core.types import Contribution, Params, ServerContext, Unit, Update
from forefed.data.examples import ClientData

Payload = Literal["delta", "projections"]
Lookup = Callable[[int], ClientData]


@dataclass(frozen=True, kw_only=True)
class AttackContext:
    """What the adversary knows beside updates: the run's settings and every broadcast.

    ``key``: of the run, which every party can draw from; ``params``: the global parameters of the
    round; ``first``: those of round 1; ``assigned``: names that each client of the cohort trains.
    """

    round: int
    key: Key
    aggregator: Aggregator
    units: Sequence[Unit] = ()
    params: Params = field(default_factory=dict)
    first: Params = field(default_factory=dict)
    assigned: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One vector under attack.

    ``n`` clients hold it, ``f`` of them hostile. ``key``: of this round and vector; ``always``: of
    this vector in every round. ``params``, ``moved``: the global parameters and their change since
    round 1 (zero for slopes). ``rule``: what the server would make of vectors [M, D], M >= 1, where
    the last ones are hostile.
    """

    n: int
    f: int
    key: Key
    always: Key
    params: Tensor
    moved: Tensor
    aggregator: str
    rule: Callable[[Tensor], Tensor]


class Attack(Choice):
    """Base of the attacks."""

    def craft(
        self, honest: Sequence[Update], own: Sequence[Update], ctx: AttackContext
    ) -> list[Update]:
        """What the hostile clients send instead of their honest updates.

        Args:
            honest: updates of the benign clients of the round, by client.
            own: what the hostile ones would have sent, by client.

        Returns:
            One update for each of ``own``, in their order.
        """
        return list(own)

    def data_of(self, client: int, lookup: Lookup, who: frozenset[int], key: Key) -> ClientData:
        """A hostile client's data, as it trains on them.

        Args:
            lookup: what every client really holds.
            who: all hostile clients.
            key: of the run.
        """
        return lookup(client)


class NoAttack(Attack):
    """All clients are honest."""

    kind: Literal["none"] = "none"


class Hostile(Attack):
    """Base of the attacks that some clients carry out."""

    hostile: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Hostile clients: a number, or a share of all."""
    claims: Annotated[float, Field(gt=0)] = 1.0
    """So many times their examples they claim to have, by which a weighted mean weighs them."""
    answers: Lies = "honest"
    """What they say to questions about their rows (the guard's, those of the start's heads and
    words): the truth, its reverse, or that with losses that drown all others' (attacks/answers.py).
    The start's sums of features tell what they train on."""

    payloads: ClassVar[tuple[Payload, ...]] = ("delta", "projections")
    crafts: ClassVar[bool] = True
    """Replaces updates (and not only data)."""
    reads_others: ClassVar[bool] = False
    """Compares updates of different clients."""

    def who(self, population: int, key: Key) -> frozenset[int]:
        """The numbers of the hostile clients, the same in every round."""
        count = min(share_of(self.hostile, population), population)
        return frozenset(key.fold("attack", "who").choice(population, count))

    def craft(
        self, honest: Sequence[Update], own: Sequence[Update], ctx: AttackContext
    ) -> list[Update]:
        return [self.claimed(u) for u in own]

    def claimed(self, update: Update) -> Update:
        return replace(update, n_examples=max(1, round(update.n_examples * self.claims)))

    def told(self) -> str:
        """What a reader of a record must know."""
        many = (
            f"{self.hostile} clients are"
            if isinstance(self.hostile, int)
            else f"{self.hostile:.0%} of the clients are"
        )
        return f"simulated attack '{self.kind}': {many} hostile; the model is no result to use"

    def conflicts(self, config: Any) -> Iterator[str]:
        place, codec = f"attack.kind = '{self.kind}'", config.codec
        if config.partition.kind == "sites":
            yield f"{place} is simulated, and sites are real; set attack.kind = 'none'"
        lies = self.crafts or self.claims != 1 or self.answers != "honest"
        if config.channel.kind != "plain" and lies:
            yield (
                f"{place} replaces single updates, and under channel.kind = "
                f"'{config.channel.kind}' none is ever seen; set channel.kind = 'plain', or take "
                "attack.kind = 'label_flip' with attack.claims = 1 and honest attack.answers"
            )
        if codec.payload not in self.payloads:
            yield (
                f"{place} makes {' or '.join(self.payloads)}, and codec.kind = '{codec.kind}' "
                f"sends {codec.payload}; set codec.kind = 'dense'"
            )
        elif codec.sends_slopes and self.reads_others and not config.directions.shared:
            yield (
                f"{place} compares clients, whose slopes are along directions of their own; set "
                "directions.shared = true, codec.kind = 'dense', or attack.kind = 'sign_flip'"
            )


class Crafted(Hostile):
    """Base of the attacks on vectors."""

    knowledge: Literal["full", "partial", "none"] = "full"
    """Of the benign updates: all, those of hostile clients' own data, or the broadcasts only."""
    compromised: Annotated[int, Field(ge=1)] | None = None
    """With partial knowledge: so many hostile clients have data; the others are fake and train on
    rows drawn like theirs. None: all have."""
    labels: str = "y"
    """Over tensors of one's own (``forefed.simulate``): the one with the classes."""

    reads_others: ClassVar[bool] = True

    @abstractmethod
    def vectors(self, known_ND: Tensor, own_FD: Tensor, scene: Scene) -> Tensor:
        """The hostile vectors [F, D], float64.

        Args:
            known_ND: benign updates, N >= 1.
            own_FD: what the hostile clients would have sent.
        """

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if self.compromised is not None and self.knowledge != "partial":
            yield (
                "attack.compromised: what fake clients train stands for benign updates; set "
                "attack.knowledge = 'partial', or leave it out"
            )
        if self.compromised is not None and config.data.task.kind != "classification":
            yield (
                f"attack.compromised draws texts by class, and data.task.kind = "
                f"'{config.data.task.kind}' has others or none; leave it out"
            )
        if self.knowledge == "none" and config.codec.sends_slopes:
            yield (
                "attack.knowledge = 'none' knows the model's steps, not slopes; set it to "
                "'partial', or codec.kind = 'dense'"
            )

    def craft(
        self, honest: Sequence[Update], own: Sequence[Update], ctx: AttackContext
    ) -> list[Update]:
        if not own:
            return []
        if own[0].slopes is not None:
            made = self._slopes(honest, own, ctx)
        else:
            made = self._deltas(honest, own, ctx)
        return [self.claimed(u) for u in made]

    def data_of(self, client: int, lookup: Lookup, who: frozenset[int], key: Key) -> ClientData:
        real = sorted(who)[: self.compromised]
        if client in real:
            return lookup(client)
        pool = [lookup(c) for c in real]
        return synthetic(pool, self.labels, key.fold("attack", "fake", client))

    def _known(self, there: Sequence[Tensor], mine: Sequence[Tensor], scene: Scene) -> Tensor:
        if self.knowledge == "none":
            return guesses(scene)
        return torch.stack([*there] if there and self.knowledge == "full" else [*mine])

    def _deltas(
        self, honest: Sequence[Update], own: Sequence[Update], ctx: AttackContext
    ) -> list[Update]:
        crafted: dict[int, Params] = {u.client: {} for u in own}
        for names in blocks([*honest, *own]):
            there = [u for u in honest if names[0] in (u.grad or {})]
            mine = [u for u in own if names[0] in (u.grad or {})]
            if not mine:
                continue
            place = names[0]
            like = trees.pick(mine[0].grad or {}, names)
            start = {n: ctx.params[n] - ctx.first[n] for n in names if n in ctx.first}
            scene = Scene(
                n=len(there) + len(mine),
                f=len(mine),
                key=ctx.key.fold("attack", ctx.round, place),
                always=ctx.key.fold("attack", "always", place),
                params=flat(ctx.params, names, like),
                moved=flat(start, names, like) / max(1, ctx.round - 1),
                aggregator=ctx.aggregator.kind,
                rule=partial(served, ctx, like=like, units=ctx.units),
            )
            theirs, ours = ([flat(u.grad or {}, names, like) for u in us] for us in (there, mine))
            known_ND = self._known(theirs, ours, scene)
            for u, x_D in zip(mine, self.vectors(known_ND, torch.stack(ours), scene), strict=True):
                crafted[u.client] |= {
                    n: x.to(like[n].dtype) for n, x in trees.unflatten(x_D, like).items()
                }
        return [replace(u, grad={n: crafted[u.client][n] for n in u.grad or {}}) for u in own]

    def _slopes(
        self, honest: Sequence[Update], own: Sequence[Update], ctx: AttackContext
    ) -> list[Update]:
        alike: dict[object, list[Update]] = {}
        for u in (*honest, *own):
            widths = tuple((g, x.shape[1]) for g, x in (u.slopes or {}).items())
            alike.setdefault((ctx.assigned.get(u.client), widths), []).append(u)
        hostile, made = {u.client for u in own}, dict[int, Update]()
        for i, some in enumerate(alike.values()):
            mine = [u for u in some if u.client in hostile]
            if not mine:
                continue
            steps = max(len(x) for u in some for x in (u.slopes or {}).values())
            padded = {u.client: slopes_of(u, steps) for u in some}
            like = padded[mine[0].client]
            there = [trees.flatten(padded[u.client]) for u in some if u.client not in hostile]
            own_FD = torch.stack([trees.flatten(padded[u.client]) for u in mine])
            zero = torch.zeros(own_FD.shape[1], dtype=torch.float64)
            scene = Scene(
                n=len(some),
                f=len(mine),
                key=ctx.key.fold("attack", ctx.round, "slopes", i),
                always=ctx.key.fold("attack", "always", "slopes"),
                params=zero,
                moved=zero,
                aggregator=ctx.aggregator.kind,
                rule=partial(served, ctx, like=like, units=()),
            )
            known_ND = self._known(there, list(own_FD), scene)
            for u, x_D in zip(mine, self.vectors(known_ND, own_FD, scene), strict=True):
                sent = {g: x.float() for g, x in trees.unflatten(x_D, like).items()}
                if not self.reads_others:  # along its own directions: its own number of steps
                    sent = {g: x[: len((u.slopes or {})[g])] for g, x in sent.items()}
                made[u.client] = replace(u, slopes=sent)
        return [made[u.client] for u in own]


def likeness(honest: Sequence[Update], own: Sequence[Update]) -> float | None:
    """Cosine of the mean of what hostile clients found to the benign mean, over what both trained:
    how good a stand-in the one is for the other. None: nothing to compare."""
    totals: list[dict[str, Tensor]] = [{}, {}]
    for total, some in zip(totals, (honest, own), strict=True):
        for u in some:
            for name, x in (u.grad or {}).items():
                total[name] = total.get(name, torch.zeros_like(x)) + x
    shared = [n for n in totals[0] if n in totals[1]]
    a, b = (trees.pick(total, shared) for total in totals)
    length = trees.norm(a) * trees.norm(b)
    return trees.dot(a, b) / length if length else None


def blocks(updates: Sequence[Update]) -> list[tuple[str, ...]]:
    """Names that are held by the same clients, together."""
    holders: dict[str, list[int]] = {}
    for u in updates:
        for name in u.grad or {}:
            holders.setdefault(name, []).append(u.client)
    together: dict[tuple[int, ...], list[str]] = {}
    for name, who in holders.items():
        together.setdefault(tuple(who), []).append(name)
    return [tuple(names) for names in together.values()]


def flat(tree: Params, names: Sequence[str], like: Params) -> Tensor:
    """These parameters in one vector, float64; 0 where they are missing."""
    return torch.cat([tree.get(n, torch.zeros_like(like[n])).flatten().double() for n in names])


def slopes_of(update: Update, steps: int) -> Params:
    """[steps, K] float64 by group; 0 where the client had no step, and for what is not finite."""
    padded: Params = {}
    for group, x in (update.slopes or {}).items():
        finite = torch.nan_to_num(x.double(), 0.0, 0.0, 0.0)
        padded[group] = torch.cat([finite, finite.new_zeros(steps - len(x), x.shape[1])])
    return padded


def served(ctx: AttackContext, x_ND: Tensor, like: Params, units: Sequence[Unit]) -> Tensor:
    """What the server's rule makes of these vectors, as far as the adversary can tell: it does not
    have the server's state."""
    cs = [Contribution(i, 1.0, trees.unflatten(x_D, like)) for i, x_D in enumerate(x_ND)]
    server = ServerContext(round=ctx.round, key=ctx.key.fold("server", ctx.round), units=units)
    total, _, _ = ctx.aggregator(cs, {}, server)
    return torch.cat([total[n].flatten().double() for n in like])


def guesses(scene: Scene) -> Tensor:
    """Benign updates as somebody imagines them who has seen nothing but the global model: [N, D].

    The mean step so far (old - new), and Gaussian noise of the same length.
    """
    step_D = -scene.moved
    count = max(2, scene.n - scene.f)
    noise_ND = scene.key.fold("guess").normal((count, len(step_D))).double()
    return step_D + noise_ND * step_D.norm() / math.sqrt(len(step_D))
