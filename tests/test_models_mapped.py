"""Weights in a map: the same numbers as in memory, read when used, refused when damaged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from federation import World
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Batch, Order
from forefed.deploy.weights import weights_of
from forefed.directions import Fresh
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.gradients.structured import Structured
from forefed.models.adapters import Ia3, Lora, LoraSb, TinyLora
from forefed.models.load import load_task
from forefed.models.pages import Pages
from forefed.models.quantised import QuantisedLinear, weights_bytes
from forefed.models.settings import ModelSettings
from forefed.models.task import Task
from tiny import moved, tiny_examples

CAUSAL = {"llama": True, "bert": False}


def task_of(world: World, family: str, adapter: Any = None, **settings: Any) -> Task:
    chosen = ModelSettings(name=str(getattr(world, family)), dtype="float32", **settings)
    names = None if CAUSAL[family] else ("a", "b", "c")
    return load_task(chosen, adapter or Lora(r=2), Key(0), names)[0]


def batch_of(family: str) -> Batch:
    return tiny_examples(4, CAUSAL[family], types=False).batch(range(4))


def layers(task: Task) -> dict[str, QuantisedLinear]:
    return {n: m for n, m in task.model.named_modules() if isinstance(m, QuantisedLinear)}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FOREFED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "maps"


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("family", CAUSAL)
def test_every_engine_finds_the_same_bits(world: World, family: str, scheme: str) -> None:
    """As with the same integers in memory: when the map is written, and when it is there."""
    kept = task_of(world, family, quantise=scheme)
    for _ in range(2):
        mapped = task_of(world, family, quantise=scheme, weights="mapped")
        assert layers(mapped).keys() == layers(kept).keys()
        assert all(m.pages is not None for m in layers(mapped).values())
        assert weights_of(mapped.model) == weights_of(kept.model)
        params, batch = moved(kept.params), batch_of(family)
        directions = Fresh(k=2).of(Order(1, 1, 1, tuple(params), params))
        for engine in (Backprop(), Checkpointed(), Structured(), Forward(), FiniteDifference()):
            few = directions if engine.estimates else None
            found, expected = (
                engine(engine.loss_of(task), params, batch, few, task.head)
                for task in (mapped, kept)
            )
            assert found.loss == expected.loss
            assert trees.digest(found.grad) == trees.digest(expected.grad)
            if expected.slopes_K is not None and found.slopes_K is not None:
                assert torch.equal(found.slopes_K, expected.slopes_K)


@pytest.mark.parametrize("adapter", [TinyLora(u=3), LoraSb(r=2), Ia3()], ids=lambda a: a.kind)
def test_adapters_start_the_same(world: World, adapter: Any) -> None:
    """Also those whose first values follow from the matrices, from the map's second use on."""
    kept = task_of(world, "bert", adapter, quantise="int8")
    for _ in range(2):
        mapped = task_of(world, "bert", adapter, quantise="int8", weights="mapped")
        assert trees.digest(mapped.params) == trees.digest(kept.params)
        batch, params = batch_of("bert"), moved(kept.params)
        assert float(mapped.loss(params, batch)) == float(kept.loss(params, batch))


def test_matrices_are_not_in_memory(world: World) -> None:
    kept = task_of(world, "bert", quantise="int8")
    mapped = task_of(world, "bert", quantise="int8", weights="mapped")
    inside = sum(m.packed.nbytes + m.scale.nbytes for m in layers(kept).values())
    assert weights_bytes(kept.model) - weights_bytes(mapped.model) == inside


def test_blocks_are_asked_for_ahead(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards the block behind, backwards the one before; each matrix is let go after its use."""
    task = task_of(world, "llama", quantise="int8", weights="mapped")
    pages = next(iter(layers(task).values())).pages
    assert pages is not None and len(pages.groups) == 3  # two blocks and the output matrix
    asked: list[int] = []
    let_go: list[int] = []

    def advise(what: str, begin: int, size: int) -> None:
        if what == "MADV_WILLNEED":
            asked.append([a for a, _ in pages.groups].index(begin))
        else:
            let_go.append(begin)

    monkeypatch.setattr(pages, "_advise", advise)
    pages.last = None
    Backprop()(Backprop().loss_of(task), moved(task.params), batch_of("llama"))
    assert asked == [1, 2, 0]
    used = {n: m for n, m in layers(task).items() if not n.endswith(".table")}
    assert {m.packed.data_ptr() - pages.address for m in used.values()} <= set(let_go)


@pytest.mark.parametrize("damage", ["cut", "head", "other", "empty", "changed"])
def test_a_damaged_map_is_one_sentence(world: World, cache: Path, damage: str) -> None:
    task_of(world, "bert", quantise="int8", weights="mapped")
    (place,) = cache.iterdir()
    data = place.read_bytes()
    if damage == "other":
        task_of(world, "llama", quantise="int8", weights="mapped")
        (other,) = set(cache.iterdir()) - {place}
        shutil.copyfile(other, place)
    elif damage == "changed":
        place.write_bytes(data.replace(b'"F32"', b'"I32"', 1))
    else:
        length = {"cut": len(data) - 5, "head": 100, "empty": 0}[damage]
        place.write_bytes(data[:length])
    with pytest.raises(UserError, match=r"model\.weights: the map") as error:
        task_of(world, "bert", quantise="int8", weights="mapped")
    said = str(error.value)
    assert "remove it" in said and "\n" not in said
    assert ("of other weights" in said) == (damage == "other")


def test_a_place_that_takes_no_map_is_said_with_its_remedy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREFED_CACHE", str(world.texts))
    with pytest.raises(UserError, match=r"cannot be written .* FOREFED_CACHE"):
        task_of(world, "bert", quantise="int8", weights="mapped")


def test_a_model_that_was_trained_further_has_a_map_of_its_own(
    world: World, cache: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    task_of(world, "bert", quantise="int8", weights="mapped")
    folder = tmp_path / "further"
    shutil.copytree(world.bert, folder)
    file = folder / "model.safetensors"
    save_file({n: x * 1.01 for n, x in load_file(file).items()}, file, {"format": "pt"})
    settings = ModelSettings(name=str(folder), quantise="int8", weights="mapped")
    load_task(settings, Lora(), Key(0), ("a", "b"))
    assert len([*cache.iterdir()]) == 2


def test_a_map_is_a_safetensors_file(world: World, cache: Path) -> None:
    from safetensors.torch import load_file

    task_of(world, "llama", quantise="int4", weights="mapped")
    (place,) = cache.iterdir()
    pages, read = Pages(place), load_file(place)
    assert read.keys() == pages.index.keys()
    for name, x in read.items():
        assert torch.equal(x, pages.tensor(name))


def test_settings_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"set model\.quantise = 'int8' or 'int4'"):
        ModelSettings(weights="mapped")
    with pytest.raises(ValueError, match=r"set model\.device = 'cpu'"):
        ModelSettings(weights="mapped", quantise="int8", device="cuda")
