"""What a new channel is made of: one class. Here one that adds a phase, in a simulation, a run, a
resumed run and at sites."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

import forefed
from deployment import FakePost, connect_by, deployed, make_sites, rehearsal
from federation import Interrupted, StopAfter, World, lines
from forefed.channel import CHANNELS, Channel
from forefed.channel.channel import Session, Single, T, Upload, Work
from forefed.channel.messages import Message
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret
from forefed.core.types import Params
from forefed.run import run

NAME = b"no names"
NEVER: set[int] = set()
"""Clients of a test that do not tell their pad."""


def padded(data: bytes, pad: bytes) -> bytes:
    stream = hashlib.shake_128(pad).digest(len(data))
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))


class Opening(Single[T]):
    """Keeps what came sealed until its pad comes."""

    def __init__(self, work: Work[T]):
        super().__init__(work)
        self.sealed: dict[int, bytes] = {}

    def ask(self, phase: str) -> Mapping[int, Message | None]:
        if phase == "train":
            return super().ask(phase)
        return dict.fromkeys(self.sealed, Message("open", NAME))

    def take(self, phase: str, client: int, answer: bytes) -> None:
        if phase == "train":
            self.sealed[client] = answer
        else:
            pad = Message.decode(answer).body
            super().take(phase, client, padded(self.sealed[client], pad))


class Sealed(Channel):
    """Answers come sealed, and are opened when all are there: none depends on another's."""

    kind: Literal["sealed"] = "sealed"
    phases: ClassVar[tuple[str, ...]] = ("train", "open")

    def session(self, work: Work[T]) -> Session[T]:
        return Opening(work)

    def answer(
        self,
        asked: Message | None,
        upload: Upload | None,
        kept: bytes | None,
        client: int,
        secret: Callable[[], Secret],
    ) -> tuple[bytes, bytes | None]:
        if asked is None and upload is not None:
            pad = secret().fold("pad").bytes[:16]
            return padded(upload.encode(), pad), pad
        if kept is None or client in NEVER:
            raise ProtocolError("nothing to open")
        return Message("open", NAME, body=kept).encode(), None


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    forefed.register(Sealed)
    yield
    CHANNELS._entries._entries.pop("sealed")
    NEVER.clear()


def loss(params: Params, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return ((params["w"] - batch["y"]) ** 2).mean() / 2


def play(channel: Any) -> forefed.Simulation:
    clients = [{"y": torch.tensor([t, t + 1])} for t in (0.0, 3.0, 6.0)]
    start = {"w": torch.zeros(())}
    return forefed.simulate(loss, start, clients, rounds=2, channel=channel)


def test_a_phase_more_is_counted_and_changes_no_bit() -> None:
    plain, sealed = play("plain"), play(Sealed())
    assert sealed.params["w"].equal(plain.params["w"])
    pad = len(Message("open", NAME, body=bytes(16)).encode())
    asked = len(Message("open", NAME).encode())
    for one, other in zip(plain.reports, sealed.reports, strict=True):
        assert other.bytes_up == one.bytes_up + 3 * pad
        assert other.bytes_down == one.bytes_down + 3 * asked
        assert one.contributions == other.contributions


def test_whoever_does_not_open_is_lost() -> None:
    NEVER.add(1)
    found = play(Sealed())
    for report in found.reports:
        assert report.heard == (0, 2) and report.abandoned == 0
        assert [(x.client, x.reason, x.detail) for x in report.lost] == [
            (1, "error", "nothing to open")
        ]


def test_a_run_and_the_same_resumed(world: World, tmp_path: Path) -> None:
    sets = ["strategy=fedavg", "guard=held_out", "data.client_test_fraction=0.3"]
    plain = world.run(tmp_path, *sets, "name=plain")
    config = world.config(tmp_path, *sets, "channel=sealed", "name=sealed")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(1))
    sealed = run(config, resume=True)
    assert sealed.summary["digest"] == plain.summary["digest"]
    one, other = (lines(r.folder, "rounds.jsonl") for r in (plain, sealed))
    assert [r["guard"]["rows"] for r in one] == [r["guard"]["rows"] for r in other]
    assert all(a["bytes_up"] < b["bytes_up"] for a, b in zip(one, other, strict=True))
    # questions go the same way as updates
    assert all(
        a["guard"]["bytes_up"] < b["guard"]["bytes_up"] for a, b in zip(one, other, strict=True)
    )


def test_at_sites_with_the_bits_of_a_rehearsal(world: World, tmp_path: Path) -> None:
    more = ["strategy=fedavg", "rounds=1", "start=none", "guard=none"]
    alone = run(rehearsal(world, tmp_path / "a", *more))
    sites = make_sites(world, tmp_path / "b", policy={"channels": ["sealed"]})
    post = FakePost(sites)
    config = deployed(world, tmp_path / "b", *more, "channel=sealed")
    together = run(config, connect=connect_by(post))
    assert together.summary["digest"] == alone.summary["digest"]
    assert [e.kind for _, e in post.asked if e.kind != "join"] == ["train"] * 3 + ["ask"] * 3
    NEVER.add(1)
    post = FakePost(make_sites(world, tmp_path / "c", policy={"channels": ["sealed"]}))
    config = deployed(world, tmp_path / "c", *more, "channel=sealed")
    (line,) = lines(run(config, connect=connect_by(post)).folder, "rounds.jsonl")
    assert (line["replies"], line["lost"]) == (2, {"error": 1})
