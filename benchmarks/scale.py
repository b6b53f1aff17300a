"""What a round costs the server as clients grow: real messages through decode, rule and optimiser.

Every size is measured in a process of its own. The messages are one client's, re-encoded for each
client number, so that decoding, checks and the mean do what they do for different ones.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from benchmarks.table import markdown
from forefed.assign import Everything
from forefed.config.config import Config
from forefed.core.keys import Key, Secret
from forefed.core.types import ClientContext, Order, Params, Reply, Unit, Update
from forefed.data.examples import ClientData
from forefed.directions import Fresh
from forefed.federation.inprocess import ClientStore
from forefed.federation.replica import Replica
from forefed.federation.star import RunState, Star
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining, TaskView
from forefed.optimisers import Sgd
from forefed.run.assemble import assemble, make_trainer
from forefed.run.simulate import OwnLoss, OwnModel
from forefed.wire import Codec, Dense, Scalars


@dataclass(frozen=True)
class Sent:
    """What a client sends: tensors of these shapes, or slopes along directions over them."""

    shapes: Sequence[tuple[int, ...]]
    slopes: bool = False
    shared: bool = False


TINY = [(64,)] * 18
SENT = {
    "dense, LoRA r=8 on MiniLM and its head": Sent([(8, 384), (384, 8)] * 12 + [(770,)]),
    "dense, 64 numbers in 18 matrices, and the head": Sent([*TINY, (770,)]),
    "4 slopes a step, 4 steps, own directions": Sent(TINY, slopes=True),
    "4 slopes a step, one step, shared directions": Sent(TINY, slopes=True, shared=True),
}
SIZES = (1_000, 10_000, 100_000)
MOST_BYTES, MOST_S = 4e9, 90.0
"""Of updates in memory, and of work: a size that would take more is left out."""


@dataclass(frozen=True)
class Messages:
    """A transport whose clients have all answered already."""

    codec: Codec
    update: Update
    count: int
    store: ClientStore = field(default_factory=ClientStore)
    replica: Replica | None = None

    def members(self) -> range:
        return range(self.count)

    def tell(self, *asked: object) -> Iterator[Reply]:
        raise AssertionError("nobody is asked anything")

    def exchange(self, orders: Any, deadline_s: float | None, enough: Any) -> Iterator[Reply]:
        for order in orders:
            update = Update(
                order.client, 32, self.update.grad, self.update.slopes, {"loss": 0.5, "steps": 4.0}
            )
            payload = self.codec.encode(update, ClientContext(order=order))
            yield Reply(order.round, order.client, payload, len(payload))


def star_of(sent: Sent, count: int) -> tuple[Star, Params, Messages]:
    """A server and its clients' answers."""
    params: Params = {f"block.{i}": torch.zeros(shape) for i, shape in enumerate(sent.shapes)}
    units = [Unit(n, (n,), i, x.numel()) for i, (n, x) in enumerate(params.items())]
    grad = {n: Key(1).fold(n).normal(x.shape).float() for n, x in params.items()}
    slopes = {"body": Key(2).normal((1 if sent.shared else 4, 4)).float()}
    codec: Codec = Scalars() if sent.slopes else Dense()
    update = Update(0, 32, None if sent.slopes else grad, slopes if sent.slopes else None, {})
    config = Config(
        seed=1,
        cohort=count,
        assign=Everything(),
        engine=Forward(),
        directions=Fresh(k=4, shared=sent.shared),
        client=LocalTraining(optimiser=Sgd(lr=0.1)),
        codec=codec,
        server=Sgd(),
    )
    model = OwnModel(params, tuple(units), frozenset())
    nothing = OwnLoss(lambda p, rows: torch.zeros(()))
    view = TaskView(nothing, nothing, model.head, None, model.units, params)
    trainer = make_trainer(config, view)
    messages = Messages(codec, update, count)
    star, _ = assemble(
        *(config, model, lambda _: trainer, count, _nobody, Secret.rehearsed(1), messages)
    )
    return star, params, messages


def _nobody(client: int) -> ClientData:
    raise AssertionError("clients have answered already")


def measure(name: str, count: int, result: Any) -> None:
    """Seconds, bytes held and bytes sent of one round of ``count`` answers, into ``result``."""
    torch.set_num_threads(1)
    star, params, messages = star_of(SENT[name], count)
    before = psutil.Process().memory_info().rss
    started = time.process_time()
    _, report = star.round(RunState(0, params))
    seconds = time.process_time() - started - _encoding(messages, min(count, 1000)) * count
    held = psutil.Process().memory_info().rss - before
    result.put((seconds, held, report.bytes_up))


def _encoding(transport: Messages, some: int) -> float:
    """Seconds per message that the clients' half takes."""
    orders = [Order(1, 1, c, (), {}) for c in range(some)]
    started = time.process_time()
    for _ in transport.exchange(orders, None, None):
        pass
    return (time.process_time() - started) / some


def rows() -> Iterator[tuple[str, ...]]:
    context = multiprocessing.get_context("spawn")
    for name, sent in SENT.items():
        numbers = sum(torch.Size(shape).numel() for shape in sent.shapes)
        per_client = 0.0
        for count in SIZES:
            if count * numbers * 4 > MOST_BYTES or count * per_client > MOST_S:
                yield name, f"{count:,}", "left out", "", "", ""
                continue
            queue = context.Queue()
            process = context.Process(target=measure, args=(name, count, queue))
            process.start()
            seconds, held, bytes_up = queue.get()
            process.join()
            per_client = seconds / count
            yield (
                name,
                f"{count:,}",
                f"{seconds:.2f} s",
                f"{1e6 * per_client:,.0f} µs",
                f"{held / 1e6:,.0f} MB",
                f"{bytes_up / count:,.0f} B",
            )


def tables() -> Iterator[tuple[str, str]]:
    header = ("message", "clients", "server's CPU", "per client", "memory after", "up, per client")
    yield "A round at the server, by the number of clients", markdown(header, list(rows()))
