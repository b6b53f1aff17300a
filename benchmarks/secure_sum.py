"""What a secure sum costs in bytes, processor seconds and memory: against the plain channel, and
against Flower's SecAgg+ on the same vectors.

No training: clients have a vector each. Ours are the messages and halves of a run (channel/).
Flower's are the functions of its client mod and of its server workflow, called in the same order on
the same vectors, with as many neighbours and the same threshold, without the transport around them.
Five in a hundred clients drop out after they have shared. Of
Flower's 1,000 clients a few are worked through, and the rest counted like them.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any, cast

import torch
from numpy.typing import NDArray

from benchmarks.table import markdown
from forefed.channel import SecureSum
from forefed.channel.channel import Group, Shapes, Sum, Upload, Work
from forefed.channel.fixed_point import Words
from forefed.channel.graph import degree, neighbours, threshold_of
from forefed.channel.messages import Message
from forefed.channel.summands import empty
from forefed.core.keys import Key, Secret
from forefed.core.types import ClientContext, Lost, Order, Reply, Transport, Update
from forefed.federation.exchange import exchange
from forefed.wire import Dense

SIZES = (10, 100, 1000)
DENSE, SLOPES = 75_000, 64
"""Numbers of MiniLM's LoRA r = 8 with its head, and of a round of slopes."""
SAMPLED = 20
"""Of Flower's 1,000 clients."""
EXAMPLES = 50
ROUND = 1


@dataclass
class Clock:
    """Processor seconds by who spent them."""

    spent: dict[str, float] = field(default_factory=lambda: {"clients": 0.0, "server": 0.0})
    who: str = "server"
    since: float = field(default_factory=time.process_time)

    def turn(self, who: str) -> None:
        now = time.process_time()
        self.spent[self.who] += now - self.since
        self.who, self.since = who, now


@dataclass(frozen=True)
class Cost:
    """Of one round: seconds of one client and of the server, bytes of one client (the longest
    way up; beside the order down), peak bytes at the server."""

    client_s: float
    server_s: float
    up: float
    down: float
    memory: float = 0.0


@dataclass
class Clients:
    """The clients' half, in this process. Those in ``lost`` drop out instead of working."""

    channel: SecureSum
    vectors: Mapping[int, torch.Tensor]
    lost: set[int]
    clock: Clock
    shapes: Shapes
    kept: dict[int, bytes | None] = field(default_factory=dict)

    def tell(
        self, messages: Mapping[int, bytes], round: int, deadline_s: float | None
    ) -> Iterator[Reply | Lost]:
        for client, message in messages.items():
            yield self.answer(client, message, None)

    def work(
        self, beside: Mapping[int, bytes], enough: Callable[[], bool]
    ) -> Iterator[Reply | Lost]:
        for client, message in beside.items():
            if client in self.lost:
                yield Lost(ROUND, client, "crash", "", len(message))
                continue
            x = self.vectors[client]
            update = Update(client, EXAMPLES, {"x": x}, None, {"loss": 1.0})
            upload = Upload(encode=bytes, update=update, shapes=lambda: self.shapes)
            yield self.answer(client, message, upload)

    def answer(self, client: int, message: bytes, upload: Upload | None) -> Reply:
        self.clock.turn("clients")
        asked, own = Message.decode(message), partial(Secret.rehearsed, client)
        kept = self.kept.get(client)
        payload, self.kept[client] = self.channel.answer(asked, upload, kept, client, own)
        self.clock.turn("server")
        return Reply(ROUND, client, payload, len(message))


def vectors(clients: int, size: int) -> dict[int, torch.Tensor]:
    """Changes of the size that a round of LoRA makes; few different ones, to spare memory."""
    some = [0.01 * Key(i).normal((size,)) for i in range(min(clients, 10))]
    return {c: some[c % len(some)] for c in range(clients)}


def ours(clients: int, size: int) -> Cost:
    channel = SecureSum()
    x, clock = vectors(clients, size), Clock()
    lost = {20 * i + 7 for i in range(clients // 20)}
    parties = Clients(channel, x, lost, clock, {"x": (size,)})
    asked: Work[Sum] = Work(
        groups=[Group(tuple(range(clients)), {"x": (size,)})],
        payload="delta",
        read=lambda client, payload: cast(Sum, None),
        of_sum=lambda total: total,
        own=Secret.rehearsed(0),
    )
    came = exchange(channel, asked, cast(Transport, parties), parties.work, ROUND, None)
    (total,) = came.found
    clock.turn("end")
    heard = [c for c in range(clients) if c not in lost]
    true = torch.stack([x[c].double() for c in heard]).mean(0)
    assert float((total.tensors["x"] - true).abs().max()) < 1e-5  # it is the sum
    spent = clock.spent
    up, down = came.bytes_up / len(heard), came.bytes_down / len(heard)
    return Cost(spent["clients"] / len(heard), spent["server"], up, down, memory(clients, size))


def memory(clients: int, size: int) -> float:
    """Peak bytes at the server while the words of clients come in, beside the keys and shares."""
    channel = SecureSum()
    like = empty({"x": (size,)}, channel)
    body = Words.zero(size, len(like.about), channel.bits).to_bytes()
    tracemalloc.start()
    total = empty({"x": (size,)}, channel)
    for _ in range(min(clients, 20)):
        total.add(Words.of_bytes(body, total))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(peak)


def plain(clients: int, size: int) -> Cost:
    """The dense codec: encoded, decoded, and the mean over all of them."""
    codec, x = Dense(), vectors(clients, size)
    params = {"x": torch.zeros(size)}
    clock = Clock()
    held, up = [], 0
    for client, delta in x.items():
        order = Order(1, ROUND, client, ("x",), params)
        clock.turn("clients")
        update = Update(client, EXAMPLES, {"x": delta}, None, {"loss": 1.0})
        data = codec.encode(update, ClientContext(order=order))
        clock.turn("server")
        up += len(data)
        grad = codec.decode(data, order).grad
        assert grad is not None
        held.append(grad["x"])
    mean = torch.stack(held).double().mean(0)
    clock.turn("end")
    assert bool(torch.isfinite(mean).all())
    spent = clock.spent
    # the loop holds every update until the round ends, and stacks them once more in float64
    return Cost(spent["clients"] / clients, spent["server"], up / clients, 0, 12.0 * size * clients)


def flower(clients: int, size: int) -> Cost:
    """SecAgg+ by Flower's own functions."""
    from flwr.common import ConfigRecord, ndarrays_to_parameters
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.secaggplus_constants import Key as Name
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
    from flwr.common.typing import Parameters
    from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

    mod = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    x = vectors(clients, size)
    graph = neighbours(range(clients), degree(clients, 0.1, 0.05), Key(1))
    holders = len(graph[0]) + 1
    threshold = threshold_of(holders)
    sampled = clients <= 100
    worked = list(range(clients)) if sampled else _around(graph, SAMPLED)
    lost = {20 * i + 7 for i in range(clients // 20)} if sampled else {worked[1]}
    clock = Clock()
    states = {}
    keys: dict[int, tuple[bytes, bytes]] = {}
    setup = ConfigRecord(
        {
            Name.SAMPLE_NUMBER: clients,
            Name.SHARE_NUMBER: holders,
            Name.THRESHOLD: threshold,
            Name.CLIPPING_RANGE: 8.0,
            Name.TARGET_RANGE: 1 << 22,
            Name.MOD_RANGE: 1 << 32,
            Name.MAX_WEIGHT: 1000.0,
        }
    )
    up = 0
    clock.turn("clients")
    for c in range(clients) if sampled else {*worked, *(o for w in worked for o in graph[w])}:
        states[c] = mod.SecAggPlusState()
        states[c].nid = c
        told = mod._setup(states[c], setup)
        keys[c] = cast(tuple[bytes, bytes], (told[Name.PUBLIC_KEY_1], told[Name.PUBLIC_KEY_2]))
    all_set_up = clock_seconds(clock)
    clock.spent["clients"] = all_set_up / len(states) * len(worked)
    sealed: dict[int, dict[int, bytes]] = {c: {} for c in states}
    for c in worked:
        near = {o: keys[o] for o in sorted({*graph[c], c})}
        clock.turn("clients")
        told = mod._share_keys(states[c], ConfigRecord({str(o): list(k) for o, k in near.items()}))
        clock.turn("server")
        up += len(keys[c][0]) + len(keys[c][1])
        pairs = zip(
            cast(list[int], told[Name.DESTINATION_LIST]),
            cast(list[bytes], told[Name.CIPHERTEXT_LIST]),
            strict=True,
        )
        for o, text in pairs:
            up += len(text) + 8
            sealed.setdefault(o, {})[c] = text
    if not sampled:  # what the neighbours that are not worked through would have sealed
        for c in worked:
            for o in graph[c]:
                if o not in worked:
                    sealed[c][o] = _sealed_for(c, o, keys, states, sealed)
    total: Any = None
    for c in worked:
        if c in lost:
            continue
        params = cast(Parameters, ndarrays_to_parameters([x[c].numpy()]))
        sources = sorted(sealed[c])
        clock.turn("clients")
        told = mod._collect_masked_vectors(
            states[c],
            ConfigRecord(
                {
                    Name.CIPHERTEXT_LIST: [sealed[c][o] for o in sources],
                    Name.SOURCE_LIST: sources,
                }
            ),
            EXAMPLES,
            params,
        )
        clock.turn("server")
        parts = cast(list[bytes], told[Name.MASKED_PARAMETERS])
        up += sum(map(len, parts))
        arrays = [_array(b) for b in parts]
        total = arrays if total is None else parameters_addition(total, arrays)
    shapes = [a.shape for a in total]
    collected: dict[int, list[bytes]] = {c: [] for c in worked}
    for c in worked:
        if c in lost:
            continue
        near = [o for o in sorted({*graph[c], c}) if o in states[c].rd_seed_share_dict]
        alive = [o for o in near if o not in lost]
        gone = [o for o in near if o in lost]
        record = ConfigRecord({Name.ACTIVE_NODE_ID_LIST: alive, Name.DEAD_NODE_ID_LIST: gone})
        clock.turn("clients")
        told = mod._unmask(states[c], record)
        clock.turn("server")
        shares = cast(list[bytes], told[Name.SHARE_LIST])
        up += sum(len(s) + 8 for s in shares)
        for o, share in zip(cast(list[int], told[Name.NODE_ID_LIST]), shares, strict=True):
            if o in collected:
                collected[o].append(share)
    clock.turn("server")
    for c in worked:
        shares = collected[c]
        if len(shares) < threshold:  # of the sampled ones: as many shares of its own making
            shares = _shares_of(states[c], c in lost, threshold, holders)
            clock.turn("server") if sampled else _forget(clock)
        secret = combine_shares(shares)
        if c not in lost:
            mask = pseudo_rand_gen(secret, 1 << 32, shapes)
            total = parameters_subtraction(total, mask)
            continue
        for o in graph[c]:
            agreed = generate_shared_key(
                bytes_to_private_key(secret), bytes_to_public_key(keys[o][0])
            )
            mask = pseudo_rand_gen(agreed, 1 << 32, shapes)
            total = parameters_addition(total, mask)
    parameters_mod(total, 1 << 32)
    clock.turn("end")
    spent, share = clock.spent, clients / len(worked)
    heard = len(worked) - len(lost)
    client_s = spent["clients"] / heard
    # a message of 8-byte words for each client, held until all are there
    return Cost(client_s, spent["server"] * share, up / heard, 0, 8.0 * size * clients)


def _around(graph: Mapping[int, tuple[int, ...]], count: int) -> list[int]:
    return sorted(list(graph)[:count])


def _array(data: bytes) -> NDArray[Any]:
    from flwr.common import bytes_to_ndarray

    return cast(NDArray[Any], bytes_to_ndarray(data))


def _sealed_for(
    client: int,
    other: int,
    keys: Mapping[int, tuple[bytes, bytes]],
    states: Mapping[int, Any],
    sealed: object,
) -> bytes:
    """What another client seals for this one, with shares of the right length."""
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
        encrypt,
        generate_shared_key,
    )
    from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat
    from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

    key = generate_shared_key(
        bytes_to_private_key(states[other].sk2), bytes_to_public_key(keys[client][1])
    )
    own = next(iter(states[client].rd_seed_share_dict.values()))
    secret = next(iter(states[client].sk1_share_dict.values()))
    return encrypt(key, share_keys_plaintext_concat(other, client, own, secret))


def _shares_of(state: Any, dropped: bool, threshold: int, holders: int) -> Sequence[bytes]:
    from flwr.common.secure_aggregation.crypto.shamir import create_shares

    return create_shares(state.sk1 if dropped else state.rd_seed, threshold, holders)[:threshold]


def clock_seconds(clock: Clock) -> float:
    clock.turn("server")
    return clock.spent["clients"]


def _forget(clock: Clock) -> None:
    """What was done since the last turn is the benchmark's own work."""
    clock.since = time.process_time()


def tables() -> Iterator[tuple[str, str]]:
    rows = []
    for clients in SIZES:
        k = degree(clients, 0.1, 0.05)
        one, mine, theirs = plain(clients, DENSE), ours(clients, DENSE), flower(clients, DENSE)
        few = ours(clients, SLOPES)
        whole, other = (clients * c.client_s + c.server_s for c in (mine, theirs))
        rows.append(
            [
                *(f"{clients:,}", k),
                *(f"{1000 * c.client_s:,.1f}" for c in (one, mine, theirs)),
                *(f"{c.server_s:,.2f}" for c in (one, mine, theirs)),
                f"{whole / other:.3f}",
                *(f"{c.up:,.0f}" for c in (one, mine, theirs)),
                f"{mine.up / one.up:.3f}",
                f"{mine.down:,.0f}",
                f"{few.up:,.0f}",
                *(f"{c.memory / 1e6:,.1f}" for c in (one, mine, theirs)),
            ]
        )
    ways = ("plain", "ours", "SecAgg+")
    header = [
        *("clients", "neighbours"),
        *(f"ms a client, {way}" for way in ways),
        *(f"s at the server, {way}" for way in ways),
        "all seconds, ours / SecAgg+ (target 0.333)",
        *(f"bytes up a client, {way}" for way in ways),
        "bytes up, ours / plain (target 1.1)",
        "bytes down a client beside the order, ours",
        f"bytes up a client, {SLOPES} slopes, ours (target 2,000)",
        *(f"MB of vectors at the server, {way}" for way in ways),
    ]
    said = (
        "Processor seconds without any training; SecAgg+ by the functions of flwr "
        f"{version('flwr')} (for 1,000 clients: {SAMPLED} of them, times the rest). A twentieth of "
        "the clients drops out after it has shared. Memory of plain and SecAgg+ is counted, not "
        "measured."
    )
    yield f"Secure sums of {DENSE:,} numbers", f"{said}\n\n{transposed(header, rows)}"


def transposed(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """One column for each number of clients."""
    columns = list(zip(header, *rows, strict=True))
    return markdown([str(x) for x in columns[0]], columns[1:])
