"""Entries of somebody else: registered in a process, or offered by an installed package."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

import forefed
from federation import CLASSES, World
from forefed.config.config import SLOTS
from forefed.core.errors import ProtocolError, UserError
from forefed.core.plugins import Entries
from forefed.core.types import ClientContext, Order, Update
from forefed.directions import Fresh
from forefed.directions.sets import RandomDirections
from forefed.optimisers import OPTIMISERS, Optimiser, Rate
from forefed.run import Config, configure
from forefed.run.rebuild import replay_log
from forefed.strategies import STRATEGIES
from forefed.wire import Codec
from forefed.wire.message import KINDS, pack, unpack

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_method"


class Signs(Optimiser):
    """Signs of the gradient."""

    kind: Literal["signs"] = "signs"
    lr: Rate = 0.1

    def update(
        self, rate: float, w: Tensor, g: Tensor, moments: dict[str, Tensor], t: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        return {}, w - rate * torch.sign(g)


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    for entries in (STRATEGIES, *(s.registry._entries for s in SLOTS.values())):
        monkeypatch.setattr(entries, "_entries", dict(entries._entries))
    known = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(known)


def test_an_own_choice_is_refused_until_it_is_registered(registries: None) -> None:
    with pytest.raises(ValueError, match=r"forefed\.register\(Signs\)"):
        Config(server=Signs())
    with pytest.raises(UserError, match="'signs' is unknown"):
        configure(sets=["server=signs"])
    assert forefed.register(Signs) is Signs
    config = configure(sets=["server=signs", "client.optimiser={kind='signs', lr=0.5}"])
    assert isinstance(config.server, Signs) and config.client.optimiser == Signs(lr=0.5)
    stored = json.loads(json.dumps(config.model_dump(mode="json")))
    assert configure(base=stored) == config


def test_an_own_method_runs_like_ours(registries: None, world: World, tmp_path: Path) -> None:
    forefed.register(Signs)
    forefed.register(
        forefed.Strategy("mine", "A method of a test.", "none", {"server": {"kind": "signs"}})
    )
    result = world.run(tmp_path, "strategy=mine")
    assert json.loads((result.folder / "config.json").read_text())["server"]["kind"] == "signs"
    assert result.summary["status"] == "finished"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (type("Lion", (), {}), "fits no slot"),
        ("lion", "fits no slot"),
        (type("Half", (Optimiser,), {"__doc__": "A half."}), "lacks update"),
        (type("Sgd2", (Signs,), {"__doc__": "Taken.", "__annotations__": {}}), "'signs' is taken"),
        (type("Mute", (Signs,), {"__doc__": None, "__module__": __name__}), "docstring"),
    ],
)
def test_what_cannot_be_registered(registries: None, entry: Any, words: str) -> None:
    OPTIMISERS.register(Signs)
    with pytest.raises(UserError, match=words):
        forefed.register(entry)


class Stale(Fresh):
    """The directions of the first round, in every round."""

    kind: Literal["stale"] = "stale"
    lasting: ClassVar[bool] = True

    def chosen(
        self, fresh: RandomDirections, order: Order, names: Sequence[str], projected: bool
    ) -> RandomDirections:
        return dataclasses.replace(fresh, round=1)


def test_own_directions_are_walked_and_replayed(
    registries: None, world: World, tmp_path: Path
) -> None:
    forefed.register(Stale)
    sets = ["directions.k=2", "codec=one_byte", "directions.head_k=4"]
    plain = world.run(tmp_path, *sets, "name=plain")
    own = world.run(tmp_path, *sets, "directions.kind=stale", "name=own")
    assert own.summary["digest"] != plain.summary["digest"]
    assert replay_log(own.folder).digest == own.summary["digest"]


class Sums(Codec):
    """One number: the sum of the change."""

    kind: Literal["sums"] = "sums"
    wire_id: ClassVar[int] = 1000

    def encode(self, update: Update, ctx: ClientContext) -> bytes:
        return pack("sums", {"s": sum(float(x.sum()) for x in (update.grad or {}).values())})

    def decode(self, data: bytes, order: Order) -> Update:
        meta, _ = unpack(data, "sums")
        return Update(order.client, 1, {n: torch.tensor(meta["s"]) for n in order.assigned})


def test_a_codec_brings_the_number_of_its_messages(registries: None) -> None:
    order, sent = Order(1, 1, 1, ("w",), {}), Update(1, 1, {"w": torch.ones(3)})
    with pytest.raises(KeyError):
        Sums().encode(sent, ClientContext(order=order))
    forefed.register(Sums)
    back = Sums().decode(Sums().encode(sent, ClientContext(order=order)), order)
    assert back.grad == {"w": torch.tensor(3.0)}
    with pytest.raises(ProtocolError, match="dense message was expected, not sums"):
        unpack(pack("sums", {}), "dense")


@pytest.mark.parametrize(
    ("kind", "number", "words"),
    [
        ("ours", 2, "wire_id = 2 of Other is that of 'dense'"),
        ("message", 7, "wire_id = 7 of Other is that of 'round'"),
        ("theirs", 1000, "that of 'sums'; give another, from 1000 to 65535"),
        ("order", 1001, "'order' is the name of another message"),
        ("large", 65536, "needs the number of its messages"),
        ("none", None, "needs the number of its messages"),
    ],
)
def test_numbers_of_codecs_do_not_collide(
    registries: None, kind: str, number: int | None, words: str
) -> None:
    forefed.register(Sums)
    known = dict(KINDS)
    body = {"__doc__": "Another.", "__annotations__": {"kind": Literal[kind]}, "kind": kind}  # type: ignore[valid-type]
    other = type("Other", (Sums,), {**body, "__module__": __name__, "wire_id": number})
    with pytest.raises(UserError, match=words):
        forefed.register(other)
    assert known == KINDS


def test_a_package_that_cannot_be_loaded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[forefed.things]\nx = no_such_module:X\n")
    monkeypatch.syspath_prepend(tmp_path)
    forefed.core.plugins._offered.cache_clear()
    things: Entries[int] = Entries("things", [1], str)
    try:
        assert things["1"] == 1  # our own need nobody's code
        with pytest.raises(UserError, match=r"the package 'broken' offers 'x'.*uninstall"):
            list(things)
    finally:
        forefed.core.plugins._offered.cache_clear()


def test_the_example_package_works_everywhere(world: World, tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "packages"
    shutil.copytree(EXAMPLE, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", "--target", site, source], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    paths = os.pathsep.join(
        [str(site), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    play = Path(__file__).parent / "plugin_play.py"
    places = (tmp_path / "out", *dataclasses.astuple(world))
    said = subprocess.run(
        [sys.executable, play, *map(str, places)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"},
    )
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    assert told["whole"] == told["resumed"] == told["replayed"]
    assert any(name in told["predicted"] for name in CLASSES) and told["heard"] == [3, 3]
    assert "lion" in told["listed"] and "2302.06675" in told["listed"]
