"""The boundary types: what one part of the house hands to another.

All of them are frozen; nothing here computes. Shapes use the axis letters of the whole house:
B examples of a batch, S sequence positions, K directions, N clients that hold one parameter,
D elements of one parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from forefed.core.files import Json as Json
from forefed.core.keys import Key, Secret

Params = dict[str, Tensor]
"""Trainable tensors by name; float32 unless said. Never mutated after construction."""

RATE = "rate/times"
"""What the server tells by which clients' learning rates are multiplied; nothing: by 1."""

LossReason = Literal["error", "crash", "offline", "deadline", "transport"]
LOSS_REASONS: tuple[LossReason, ...] = ("error", "crash", "offline", "deadline", "transport")


@dataclass(frozen=True)
class Unit:
    """A set of tensors that is always trained together (SPRY section 4's atomic unit).

    ``depth`` is the index of the first model block that uses the unit (-1: before the blocks;
    the head comes after the last block), ``size`` the number of elements.
    """

    name: str
    params: tuple[str, ...]
    depth: int
    size: int
    is_head: bool = False


@dataclass(frozen=True)
class Batch:
    """One padded mini-batch.

    ``inputs``: the model's keyword tensors, ``input_ids_BS`` and so on; ``labels``: [B] for
    classification, [B, S] with -100 where there is no loss for language modelling. ``dropout`` is
    the key of this step's adapter dropout masks (None: dropout off) and ``first_row`` the position
    of row 0 in the batch that masks are drawn for, so that a micro-batch sees its own rows' masks.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    dropout: Key | None = None
    first_row: int = 0
    added: Tensor | None = None
    """[B, C]: what a loss adds to ``times`` the logits: what the texts' words say of
    them, a client's prior (``Modifier.on_batch``)."""
    times: float = 1.0
    choices: tuple[int, ...] | None = None
    """The tokens whose logits behind a row's last token are those of the classes."""

    @property
    def size(self) -> int:
        return len(self.labels)

    @property
    def length(self) -> int:
        """Padded positions of a row."""
        return max((x.shape[1] for x in self.inputs.values() if x.dim() > 1), default=1)

    def rows(self, start: int, stop: int) -> Batch:
        """The micro-batch of rows ``start`` to ``stop`` (views, no copies)."""
        return Batch(
            inputs={name: x[start:stop] for name, x in self.inputs.items()},
            labels=self.labels[start:stop],
            dropout=self.dropout,
            first_row=self.first_row + start,
            added=None if self.added is None else self.added[start:stop],
            times=self.times,
            choices=self.choices,
        )


class LossFn(Protocol):
    """Mean loss of a batch, a scalar tensor; and how many terms the mean runs over.

    The weight makes micro-batching exact: examples for classification, predicted tokens for
    language modelling (which differ between the micro-batches of one batch).
    """

    def __call__(self, params: Params, batch: Batch) -> Tensor: ...

    def weight(self, batch: Batch) -> int: ...


class Losses(Protocol):
    """One loss, by how much of a forward pass it keeps for its backward pass (``models.task``)."""

    @property
    def loss(self) -> LossFn: ...

    @property
    def loss_recomputed(self) -> LossFn: ...

    @property
    def loss_structured(self) -> LossFn | None: ...


Each = Callable[[Params, Batch], Tensor]
"""The loss of every example [B], as if it were a batch of its own."""


def each_of(loss: LossFn) -> Each | None:
    """A loss's attribute ``each``; None: its examples cannot be told apart in one pass."""
    each: Each | None = getattr(loss, "each", None)
    return each


Locally = Callable[[Params, Batch, int, Params], Iterator[Tensor]]
"""(parameters, batch, parts, copies) -> the losses of the parts of a model, one after the other:
scalars, each with a graph of its own part alone; the last one is the loss. What a part's loss takes
of other parts is theirs of ``copies``, which are constants."""


def locally_of(loss: LossFn) -> Locally | None:
    """A loss's attribute ``locally``; None: it has no parts."""
    parts: Locally | None = getattr(loss, "locally", None)
    return parts


@dataclass(frozen=True)
class InTwo:
    """A loss in its two halves.

    ``logits``: of a batch, [B, C]; ``losses``: of every example [B] from them, convex in them.
    """

    logits: Callable[[Params, Batch], Tensor]
    losses: Callable[[Tensor, Batch], Tensor]


def in_two_of(loss: LossFn) -> InTwo | None:
    """A loss's attribute ``in_two``; None: it has no logits that are few and held at once."""
    halves: InTwo | None = getattr(loss, "in_two", None)
    return halves


AtPoints = Callable[[Params, Batch], Tensor]
"""The loss of a batch at P values of the parameters, stacked [P, ...] by name: [P] float64."""


def at_points_of(loss: LossFn) -> AtPoints | None:
    """A loss's attribute ``at_points``; None: it is asked for one point after the other."""
    many: AtPoints | None = getattr(loss, "at_points", None)
    return many


class DirectionSet(Protocol):
    """The K directions of one step over a set of parameters, as an engine walks along them."""

    def count(self, like: Params) -> int:
        """K for these parameters (their dimension in basis mode)."""

    def tangents(self, like: Params, ks: range) -> Params:
        """Directions ``ks``, stacked: name -> [len(ks), *shape]."""

    def project(self, grad: Params, ks: range | None = None) -> Tensor:
        """<grad, v_k> for every k, or for ``ks``: [K] float64."""


@dataclass(frozen=True)
class Estimate:
    """What a gradient engine returns for one batch.

    ``grad`` holds the parameters whose gradient is exact, ``slopes_K`` the directional derivatives
    along the step's directions over all *other* parameters it was asked for. ``forwards`` counts
    forward-equivalents: forward passes over one example (a backward pass counts as one more,
    a tangent pass likewise). ``fallbacks`` names operators that the forward engine had no rule for.
    """

    loss: float
    grad: Params = field(default_factory=dict)
    slopes_K: Tensor | None = None
    forwards: float = 0.0
    fallbacks: dict[str, int] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    """What the engine has seen of the loss beside it: for what is sent after the last step
    (``ClientContext.memory``), and where it remembers for its next one
    (``GradientEngine.recalling``)."""


@dataclass(frozen=True)
class Order:
    """What the server asks of one client in one round.

    ``params`` are all current trainable tensors (the forward pass needs them all), ``assigned``
    the names this client trains. ``run`` is the run's 64-bit key value, ``key`` the client's own
    key of this round. ``broadcast`` is what modifiers tell the clients, by "kind/parameter name".

    Clients may keep the parameters and follow by records (wire/records.py): ``missed`` holds the
    rounds since this client's last visit. None: it receives the parameters, the broadcast and
    ``carried``, what else of the server's state it takes to follow from here on. ``digest`` is that
    of the parameters which a client that follows must have arrived at.
    """

    run: int
    round: int
    client: int
    assigned: tuple[str, ...]
    params: Params
    broadcast: Params = field(default_factory=dict)
    carried: Params = field(default_factory=dict)
    missed: bytes | None = None
    digest: str = ""
    channel: bytes = b""
    """What the channel says beside it, in its phase "train"."""
    beside: Params = field(default_factory=dict)
    """The form of what modifiers send beside the change, by "kind/name" (``Modifier.beside``);
    known to whoever reads the answer, so it does not travel."""

    @property
    def key(self) -> Key:
        return Key(self.run).fold("client", self.round, self.client)

    @property
    def times(self) -> float:
        """By what the client's learning rates are multiplied."""
        return float(self.broadcast[RATE]) if RATE in self.broadcast else 1.0

    def remembered(self, kind: str, names: Iterable[str]) -> Params:
        """What the modifier of this kind tells of these parameters (nothing, before it does)."""
        told = self.broadcast
        return {n: told[f"{kind}/{n}"] for n in names if f"{kind}/{n}" in told}


def _whole(change: Params) -> Params:
    return change


@dataclass(frozen=True, kw_only=True)
class ClientContext:
    """What an algorithm at a client may read of its round, beside the data.

    ``own`` is the client's secret of this round, drawn from by ``secret``: None where none was
    given, which drawing tells (a public key in its place would protect nobody).
    """

    order: Order
    own: Secret | None = None
    head: frozenset[str] = frozenset()
    arriving: Callable[[Params], Params] = _whole
    """What the server will hold of a change that is sent: less than all of it, where the codec
    rounds or leaves out (``Codec.lossy``)."""
    memory: Params = field(default_factory=dict)
    """What the client's engine has seen of its loss (``Estimate.kept``; in ``on_send``)."""

    @property
    def round(self) -> int:
        return self.order.round

    @property
    def client(self) -> int:
        return self.order.client

    @property
    def start(self) -> Params:
        """All parameters before the round's first step."""
        return self.order.params

    @property
    def key(self) -> Key:
        """Public: every party of the run can draw from it."""
        return self.order.key

    @property
    def secret(self) -> Secret:
        return drawn_from(self.own)


def drawn_from(secret: Secret | None) -> Secret:
    """The secret; raises RuntimeError where a party was given none."""
    if secret is None:
        raise RuntimeError("this party has no secret to draw from")
    return secret


@dataclass(frozen=True)
class Update:
    """What a client answers: a descent direction (old - new), or the slopes to rebuild it from.

    ``slopes`` maps a group of parameters ("body", "head") to [steps, K] float32; exactly one of
    ``grad`` and ``slopes`` is filled on the wire, and ``grad`` always is after the server's replay.
    ``metrics`` are plain numbers (loss, steps, skipped, forwards, seconds). ``variance`` is filled
    by the server, from the engine it knows the client to run: E|estimate|^2 / |gradient|^2 by
    parameter (absent: 1, exact); ``last`` by its replay: the gradient estimate of the last local
    step.
    """

    client: int
    n_examples: int
    grad: Params | None = None
    slopes: dict[str, Tensor] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    variance: Mapping[str, float] = field(default_factory=dict)
    last: Params = field(default_factory=dict)
    clients: int = 1
    """Of how many clients it is the weighted mean, where the server sees sums only."""
    beside: Params = field(default_factory=dict)
    """What modifiers send beside the change, by "kind/name" (``Modifier.beside``)."""


@dataclass(frozen=True)
class Contribution:
    """What one client adds to a round, as the server aggregates it.

    ``delta``: old - new by parameter; ``weight``: its number of examples; ``noise``:
    E|estimate|^2 / |gradient|^2 by parameter, from the engine that the client runs (absent: 1,
    exact); ``last_gradient``: the gradient estimate of its last local step, where slopes travel.
    """

    client: int
    weight: float
    delta: Params
    noise: Mapping[str, float] = field(default_factory=dict)
    last_gradient: Params = field(default_factory=dict)
    clients: int = 1
    """Of how many clients it is the weighted mean, where the server sees sums only."""
    beside: Params = field(default_factory=dict)
    """What modifiers sent beside the change; aggregators leave it to them."""

    def scaled(self, factor: float) -> Contribution:
        """The same with ``delta`` times ``factor``."""
        return replace(self, delta={n: x * factor for n, x in self.delta.items()})


@dataclass(frozen=True)
class Cohort:
    """Who was drawn for a round, and what may be said of the draw.

    ``expected``: clients on average, a constant of the run; ``probability``: the chance of each
    member, where privacy may be amplified by it (``Selector.probability``).
    """

    clients: tuple[int, ...]
    expected: float
    probability: float | None = None


@dataclass(frozen=True, kw_only=True)
class ServerContext:
    """What an algorithm at the server may read of a round.

    ``cohort``: the clients that were heard; ``params``: the parameters before the step;
    ``previous``: the former aggregate, where it is kept (``Aggregator.remembers``);
    ``last_gradient``: the aggregate of the clients' last gradient estimates, where a modifier reads
    it; ``divisor``: what sums are divided by, where a modifier wants a constant (None: by the sum
    of the weights); ``probability``: of a member to be drawn, where it may be claimed; ``blank``:
    zeros in the form of an aggregate, whoever was heard, for a private modifier; ``times``: by what
    clients' learning rates were multiplied (``Order.times``).
    """

    round: int
    key: Key
    own: Secret | None = None
    units: Sequence[Unit] = ()
    params: Params = field(default_factory=dict)
    cohort: tuple[int, ...] = ()
    previous: Params = field(default_factory=dict)
    last_gradient: Params = field(default_factory=dict)
    divisor: float | None = None
    probability: float | None = None
    blank: Params = field(default_factory=dict)
    times: float = 1.0

    @property
    def secret(self) -> Secret:
        return drawn_from(self.own)


@dataclass(frozen=True)
class Reply:
    """A client's answer as it came over the wire, with the bytes it cost both ways."""

    round: int
    client: int
    payload: bytes
    bytes_down: int
    together: tuple[int, ...] = ()
    """Whose answers are in it, where an aggregator has added them up; ``client`` is the first."""

    @property
    def clients(self) -> tuple[int, ...]:
        return self.together or (self.client,)

    @property
    def bytes_up(self) -> int:
        return len(self.payload)


@dataclass(frozen=True)
class Lost:
    """An order that got no usable answer, and why."""

    round: int
    client: int
    reason: LossReason
    detail: str = ""
    bytes_down: int = 0

    @property
    def clients(self) -> tuple[int, ...]:
        return (self.client,)


class Transport(Protocol):
    """Carries orders to clients and outcomes back (in this process, or over Flower)."""

    def members(self) -> Sequence[int]:
        """The client ids that exist now; a ``range`` for a declared population of any size."""

    def exchange(
        self,
        orders: Iterable[Order],
        deadline_s: float | None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[Reply | Lost]:
        """Exactly one outcome per order, in any order; of orders whose answers were added up one
        for all of them.

        ``enough`` is true once the round has all the answers it wants: whoever has not answered
        then is lost by the reason "deadline".
        """

    def tell(
        self, messages: Mapping[int, bytes], round: int, deadline_s: float | None
    ) -> Iterator[Reply | Lost]:
        """To each client its own message: a question (wire/questions.py), a phase of the channel
        (channel/messages.py), or both. Exactly one outcome for each."""


@runtime_checkable
class Standing(Transport, Protocol):
    """A transport whose orders may stay on their way while the server moves."""

    def gather(
        self, orders: Iterable[Order], deadline_s: float | None, enough: Callable[[], bool]
    ) -> Iterator[Reply | Lost]:
        """Outcomes as they come, until there is enough; the other orders stay on their way, and are
        heard when they are among those of a later call. What is on its way is not sent again."""


ClientState = dict[str, Tensor]
"""What one client keeps between rounds (never leaves it); empty on its first visit."""

ServerState = dict[str, Tensor]
"""Moments and counters of an optimiser, by "moment/parameter name"."""
