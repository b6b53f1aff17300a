"""Clients without torch (forefed.slim): their folders, and processes of theirs in a rehearsal.

    federation = build(config)
    with slim_clients(federation, folder) as smaller:      # one process a client, ONNX Runtime
        state, report = smaller.star.round(smaller.start())

Only training is done there: what a start asks of rows is answered in this process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from forefed.config.config import Config
from forefed.core.errors import UserError
from forefed.core.frame import HEAD_BYTES, frame_bytes
from forefed.core.keys import Key, Secret
from forefed.core.types import ClientState, Order, Update
from forefed.data.encoding import placeholder_of
from forefed.data.examples import ClientData
from forefed.data.prepare import chosen_rows
from forefed.federation.inprocess import InProcess
from forefed.gradients.without_torch import why_not
from forefed.models.graph import write_graph
from forefed.models.load import load_tokenizer
from forefed.models.task import Task
from forefed.run.build import Federation
from forefed.slim.settings import GRAPH, ROWS, TOKENS, Settings
from forefed.wire import Codec
from forefed.wire.orders import encode_broadcast, encode_order


def settings_of(config: Config, task: Task, tokenizer: Any, deployed: bool = False) -> Settings:
    """A run's settings as such a client has them.

    Args:
        tokenizer: the model's.
        deployed: is it a site, not a client of a rehearsal?

    Raises:
        UserError: those that it cannot do, one line each.
    """
    if wrong := why_not(config, deployed):
        raise UserError("\n".join(f"a client without torch: {why}" for why in wrong))
    client, directions, engine = config.client, config.directions, config.engine
    optimiser, rows = client.optimiser, engine.micro_batch
    return Settings(
        codec=config.codec.kind,
        k=getattr(directions, "k", None) or 1,
        distribution=getattr(directions, "distribution", "rademacher"),
        shared=directions.shared,
        clamp=directions.slope_bound,
        eps=float(getattr(engine, "eps", 0)),
        lr=optimiser.lr,
        head_lr=optimiser.head_lr,
        head=tuple(sorted(task.head)),
        batch_size=0 if client.batch_size == "all" else client.batch_size,
        epochs=client.epochs,
        max_steps=client.max_steps,
        group_by_length=client.group_by_length,
        micro_batch=-1 if rows is None else 0 if rows == "auto" else rows,
        max_length=config.data.max_length,
        pad_id=tokenizer.pad_token_id,
        empty_id=placeholder_of(tokenizer),
    )


def write_client(
    folder: Path, settings: Settings, tokenizer: Any, texts: Sequence[str], labels: Sequence[int]
) -> None:
    """A client's folder, but for the graph (``models.graph.write_graph``, to ``GRAPH``).

    Args:
        tokenizer: the model's, a fast one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings.write(folder)
    (folder / TOKENS).write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    with (folder / ROWS).open("w", encoding="utf-8") as lines:
        for text, label in zip(texts, labels, strict=True):
            lines.write(json.dumps({"text": text, "label": int(label)}) + "\n")


class Processes:
    """Clients in processes of their own, as the work of ``InProcess`` (a ``ClientFn``).

    Args:
        folders: of the clients, by their number.
        codec: what reads their answers.
        python: the interpreter that runs them; it needs no torch.
    """

    def __init__(self, folders: Sequence[Path], codec: Codec, python: str = sys.executable):
        self.folders, self.codec, self.python = folders, codec, python
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.told: dict[int, int] = {}
        """The round whose parameters a client has."""

    def __call__(
        self, order: Order, data: ClientData, state: ClientState, secret: Secret | None
    ) -> tuple[Update, ClientState]:
        payload = self.ask(order)
        return self.codec.decode(payload, order), {}

    def ask(self, order: Order) -> bytes:
        """A client's answer as it travels.

        Raises:
            UserError: it ended, with what it said last.
        """
        process = self.process(order.client)
        assert process.stdin is not None and process.stdout is not None
        try:
            if self.told.get(order.client) != order.round:
                process.stdin.write(encode_broadcast(order))
                self.told[order.client] = order.round
            process.stdin.write(encode_order(order))
            process.stdin.flush()
        except BrokenPipeError:
            raise self.ended(order.client, process) from None
        head = process.stdout.read(HEAD_BYTES)
        if len(head) < HEAD_BYTES:
            raise self.ended(order.client, process)
        return head + process.stdout.read(frame_bytes(head) - HEAD_BYTES)

    def process(self, client: int) -> subprocess.Popen[bytes]:
        if client not in self.running:
            self.running[client] = subprocess.Popen(
                [self.python, "-m", "forefed.slim", str(self.folders[client])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        return self.running[client]

    def ended(self, client: int, process: subprocess.Popen[bytes]) -> UserError:
        assert process.stderr is not None
        said = process.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
        return UserError(f"client {client} without torch has ended: {said or 'it said nothing'}")

    def close(self) -> None:
        """Ends the processes."""
        for process in self.running.values():
            for stream in (process.stdin, process.stdout, process.stderr):
                assert stream is not None
                stream.close()
            process.wait()
        self.running.clear()
        self.told.clear()


@contextmanager
def slim_clients(
    federation: Federation, folder: Path, python: str = sys.executable
) -> Iterator[Federation]:
    """The federation with processes without torch for its clients, while it is open.

    Args:
        folder: gets the graph, and a folder for each client. One process of some 130 MB (MiniLM)
            runs for each client that has been asked: for rehearsals of few.
        python: their interpreter.

    Raises:
        UserError: settings that such a client cannot do, or a graph that cannot be written.
    """
    config, task = federation.config, federation.task
    population = federation.data.population
    tokenizer = load_tokenizer(config.model)
    settings = settings_of(config, task, tokenizer)
    folders = [folder / f"client-{i}" for i in range(population.size)]
    folder.mkdir(parents=True, exist_ok=True)
    write_graph(task, folder / GRAPH)
    table, _, split = chosen_rows(
        config.data, config.partition, Key(config.seed).fold("data"), config.out / ".cache"
    )
    texts = config.data.task.arrange(table, config.data.test_fraction, split).train.first
    for client, place in enumerate(folders):
        rows = population.client(client).train
        labels = population.examples.labels[rows].tolist()
        write_client(place, settings, tokenizer, [texts[i] for i in rows], labels)
        link_graph(folder, place)
    transport = federation.star.transport
    assert isinstance(transport, InProcess), "a rehearsal"
    processes = Processes(folders, config.codec, python)
    try:
        star = replace(
            federation.star,
            transport=replace(transport, client=processes, measuring=None, workers=1),
        )
        yield replace(federation, star=star)
    finally:
        processes.close()


@contextmanager
def clients_elsewhere(federation: Federation, say: Callable[[str], None]) -> Iterator[Federation]:
    """The federation, with its clients in processes without torch where ``engine.runtime`` says so;
    their folders, which hold texts, last as long as they.

    Raises:
        UserError: as for ``slim_clients``.
    """
    if getattr(federation.config.engine, "runtime", "torch") == "torch":
        yield federation
        return
    say("writing the clients' graph")
    with (
        tempfile.TemporaryDirectory(prefix="forefed-clients-") as folder,
        slim_clients(federation, Path(folder)) as smaller,
    ):
        yield smaller


def link_graph(folder: Path, client: Path) -> None:
    """The graph of a rehearsal in a client's folder, as one file of all."""
    for name in (GRAPH, GRAPH + ".data"):
        (client / name).unlink(missing_ok=True)
        try:
            os.link(folder / name, client / name)
        except OSError:
            shutil.copyfile(folder / name, client / name)
