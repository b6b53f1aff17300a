"""The planner's reasoning, on measurements written by hand; and one real measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Order
from forefed.directions import Basis, Fresh
from forefed.gradients import ENGINES
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.exact_head import ExactHead
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.models.adapters import Lora, TinyLora
from forefed.models.settings import ModelSettings
from forefed.plan import Plan, Scene, plan
from forefed.plan.measure import measure, run_probe
from forefed.plan.plan import choose
from forefed.plan.probe import batch_of, build
from forefed.plan.scene import Job, Measured, Step, Way, candidates
from forefed.plan.show import advice, plan_page, settings_of
from forefed.run import configure
from forefed.run.planning import scene_of_config
from tiny import tiny_model
from tiny_configs import Size

MB = 1_000_000
WAYS_OF_TABLE: tuple[tuple[Way, int, float], ...] = (
    (Way(engine=Backprop(micro_batch=None)), 400 * MB, 2.0),
    (Way(engine=Backprop(micro_batch=1)), 150 * MB, 2.5),
    (Way(engine=Checkpointed(micro_batch=1)), 60 * MB, 4.0),
    (Way(engine=Forward(micro_batch=1), directions=Fresh(k=1)), 20 * MB, 2.0),
    (Way(engine=Forward(micro_batch=1, tangents=8), directions=Basis()), 40 * MB, 5.0),
    (Way(engine=FiniteDifference(micro_batch=1), directions=Fresh(k=1)), 15 * MB, 3.0),
)
"""Peak above the weights, and seconds of a step (of one pass in basis mode); inference takes 1 s,
weights 100 MB and the client trains 64 elements."""


def table_prober(job: Job) -> Measured:
    """Every model is the table above; int8 weights are a quarter."""
    ways = job.ways or tuple(way for way, _, _ in WAYS_OF_TABLE)
    by_way = {w.model_dump_json(): (p, s) for w, p, s in WAYS_OF_TABLE}
    found = [by_way[w.model_dump_json()] for w in ways]
    weights = 25 * MB if job.scene.model.quantise == "int8" else 100 * MB
    return Measured(
        blocks=6,
        weights=weights,
        all_units=24,
        units=4,
        elements=64,
        head_elements=770,
        base_rss=200 * MB,
        inference=Step(peak=10 * MB, rss=400 * MB, seconds=1.0),
        ways=ways,
        steps=tuple(Step(peak=p, rss=400 * MB + p, seconds=s) for p, s in found),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    return tiny_folder(tmp_path_factory.mktemp("model"))


def of_table(model: ModelSettings, memory: str | None = None, **more: Any) -> Plan:
    more.setdefault("precisions", ("float32",))
    return plan(Scene(model=model, seq=16), memory, probe=table_prober, **more)


def tiny_folder(folder: Path, layers: int = 2, size: Size | None = None) -> ModelSettings:
    """A checkpoint with a tokeniser, as a user gives one."""
    from federation import tokenizer

    if not (folder / "config.json").exists():
        size = size or Size(layers=layers)
        tiny_model("bert", dtype=torch.float32, size=size).bert.save_pretrained(folder)
        tokenizer(types=True).save_pretrained(folder)
    return ModelSettings(name=str(folder), dtype="float32")


def test_each_budget_gets_what_is_quickest_within_it(model: ModelSettings) -> None:
    took = {}
    for memory in ("1GB", "300MB", "200MB", "150MB"):
        row = of_table(model, memory).recommended
        took[memory] = (row.name, row.engine.micro_batch)
    # forward by unit vectors takes 8 passes of 5 s; one direction 2 s, but 64 steps for one
    assert took == {
        "1GB": ("backprop", None),
        "300MB": ("backprop", 1),
        "200MB": ("checkpointed", 1),
        "150MB": ("forward, K = all", 1),
    }


def test_a_budget_below_everything_says_the_smallest_that_works(model: ModelSettings) -> None:
    with pytest.raises(UserError) as refusal:
        of_table(model, "110MB")
    words = str(refusal.value)
    assert "110 MB" in words and "115 MB" in words and "finite_difference" in words
    assert "100 MB of weights" in words and "model.quantise" in words


def test_low_precision_where_nothing_else_fits(model: ModelSettings) -> None:
    row = of_table(model, "90MB", precisions=("float32", "int8")).recommended
    assert (row.name, row.precision, row.total) == ("checkpointed", "int8", 85 * MB)
    assert of_table(model, "1GB", precisions=("float32", "int8")).recommended.precision == (
        "float32"
    )


@pytest.mark.parametrize(
    ("way", "noise"),
    [
        (Way(engine=Backprop()), 0.0),
        (Way(engine=Checkpointed()), 0.0),
        (Way(engine=ExactHead()), 0.0),
        (Way(engine=Forward(), directions=Basis()), 0.0),
        (Way(engine=Forward()), 63.0),
        (Way(engine=Forward(), directions=Fresh(k=4)), 15.75),
        (Way(engine=Forward(sub_batches=3), directions=Fresh(k=4)), 15.75),
        (Way(engine=FiniteDifference(), directions=Fresh(k=4)), 15.75),
    ],
    ids=str,
)
def test_noise_by_hand(way: Way, noise: float) -> None:
    assert way.noise(64) == noise


def test_noise_is_that_of_the_directions() -> None:
    """E|estimate - g|^2 / |g|^2 over many draws, for the directions that an engine really takes."""
    like = {"w": torch.zeros(4, 4, dtype=torch.float64)}
    g = Key(3).normal((4, 4)).double()
    way = Way(engine=Forward(), directions=Fresh(k=3))
    total, draws = 0.0, 1500
    for i in range(draws):
        directions = way.directions.of(Order(i, 1, 1, ("w",), like))
        slopes = directions.project({"w": g})
        estimate = directions.combine(like, slopes)
        assert estimate is not None
        total += float((estimate["w"] - g).square().sum() / g.square().sum())
    assert total / draws == pytest.approx(way.noise(16), rel=0.1)


def test_progress_counts_the_steps_that_noise_costs(model: ModelSettings) -> None:
    rows = {r.name: r for r in of_table(model).rows if r.engine.micro_batch == 1}
    assert rows["forward, K = 1"].progress_time == pytest.approx(2.0 * 64)
    assert rows["forward, K = all"].progress_time == pytest.approx(5.0 * 8)
    assert rows["forward, K = 1"].bytes_up == 4 * (1 + 770)
    assert rows["backprop"].bytes_up == 4 * (64 + 770)


def test_one_sentence_one_command_and_json(model: ModelSettings) -> None:
    found = of_table(model, "150MB")
    assert advice(found).startswith("Take forward, K = all (1 at a time, float32):")
    assert "checkpointed" in advice(found), "says what was missed, and by how much"
    assert "160 MB" in advice(found)
    data = json.loads(json.dumps(found.to_json()))
    assert ENGINES.parse(data["recommended"]["engine"]) == found.recommended.engine
    assert len(data["rows"]) == len(WAYS_OF_TABLE)
    plan_page(found)


@pytest.mark.parametrize("way", [w for w, _, _ in WAYS_OF_TABLE], ids=str)
def test_the_command_gives_this_way(way: Way, model: ModelSettings) -> None:
    from forefed.run import configure

    rows = {r.way.model_dump_json(): r for r in of_table(model).rows}
    config = configure(sets=settings_of(rows[way.model_dump_json()]))
    got, want = config.engine.model_dump(), way.engine.model_dump()
    if way.engine.estimates:
        assert config.directions == way.directions
    if want["micro_batch"] is None:  # a batch is never so large
        assert got.pop("micro_batch") is None and want.pop("micro_batch") is None
    assert got == want


def quadratic(job: Job) -> Measured:
    """A model whose backprop grows by 10 MB and whose forward mode by layers^2 MB per block."""
    layers = job.layers
    assert layers is not None
    return Measured(
        blocks=layers,
        weights=(3 + 2 * layers) * MB,
        all_units=4 * layers,
        units=layers,
        elements=16 * layers,
        head_elements=6,
        base_rss=200 * MB,
        inference=Step(peak=MB, rss=MB, seconds=0.1 * layers),
        ways=(Way(engine=Backprop()), Way(engine=Forward())),
        steps=(
            Step(peak=(5 + 10 * layers) * MB, rss=MB, seconds=0.2 * layers),
            Step(peak=layers**2 * MB, rss=MB, seconds=0.3 * layers),
        ),
    )


def test_depth_by_a_straight_line_and_its_error(tmp_path: Path) -> None:
    scene = Scene(model=tiny_folder(tmp_path, layers=12), seq=16)
    (found,) = measure(scene, ("float32",), lambda _: None, quadratic)
    assert found.measured.blocks == 12
    assert found.measured.weights == 27 * MB
    assert found.measured.steps[0].peak == 125 * MB
    assert found.measured.steps[0].seconds == pytest.approx(2.4)
    assert found.errors[0] == 0.0
    # 2 and 4 blocks: 4 and 16 MB; the line says 10 MB at 3, where there are 9
    assert found.errors[1] == pytest.approx(1 / 9)


def test_texts_longer_than_the_model(model: ModelSettings) -> None:
    with pytest.raises(UserError, match=r"seq: 33 tokens, .* at most 32"):
        plan(Scene(model=model, seq=33), probe=table_prober)


def test_no_such_model() -> None:
    with pytest.raises(UserError, match="nowhere"):
        plan(Scene(model=ModelSettings(name="nowhere/at all", dtype="float32")))


def test_nothing_but_a_head_to_train() -> None:
    kinds = {w.engine.kind for w in candidates(Scene(), elements=0, thorough=True)}
    assert kinds == {"exact_head"}


def test_a_real_process_measures_real_engines(tmp_path: Path) -> None:
    size = Size(hidden=64, feed_forward=256, layers=3, positions=32)
    model = tiny_folder(tmp_path, size=size)
    scene = Scene(model=model, adapter=TinyLora(r=2, u=2), batch=4, seq=32, units=1)
    engines = (Backprop(micro_batch=None), Forward(micro_batch=None), Forward(micro_batch=1))
    found = run_probe(Job(scene=scene, ways=tuple(Way(engine=e) for e in engines)))
    backprop, forward, by_rows = (s.peak for s in found.steps)
    assert backprop > 2 * forward > 2 * by_rows > 0
    assert (found.blocks, found.units, found.elements) == (3, 1, 2)
    weights = 4 * sum(p.numel() for p in tiny_model("bert", size=size).parameters())
    assert found.weights == pytest.approx(weights, rel=0.05)  # the adapter's fixed parts besides
    assert all(s.rss > found.base_rss > 50 * MB for s in found.steps)


def test_a_mistake_in_the_process_is_one_message(model: ModelSettings) -> None:
    scene = Scene(model=model, adapter=Lora(targets=("no_such_module",)), seq=16)
    with pytest.raises(UserError) as refusal:
        run_probe(Job(scene=scene))
    assert "no_such_module" in str(refusal.value) and "Traceback" not in str(refusal.value)


def test_choose_never_leaves_the_budget(model: ModelSettings) -> None:
    rows = of_table(model, precisions=("float32", "int8")).rows
    for budget in range(45 * MB, 600 * MB, 5 * MB):
        row, _ = choose(rows, budget)
        assert row.total <= budget
        exact = [r for r in rows if r.total <= budget and r.precision == row.precision]
        assert row.progress_time == min(r.progress_time for r in exact)


def test_shorter_texts_take_no_more_memory_than_planned() -> None:
    """ "auto" micro-batches hold about 512 tokens: of shorter texts than planned for, more rows and
    sometimes more tokens. So a plan names rows."""
    for seq in (20, 100, 128, 200, 300, 512):
        for way in candidates(Scene(seq=seq), elements=64, thorough=True):
            assert way.engine.micro_batch != "auto"


def test_a_configuration_says_what_is_planned(
    model: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forefed.run.planning import plan_from_options

    file = tmp_path / "mine.toml"
    file.write_text(
        f'cohort = 12\nmemory = "300MB"\nengine = "auto"\n[model]\nname = "{model.name}"\n'
        'dtype = "float32"\n[assign]\ncopies = 2\n[adapter]\nkind = "lora"\nr = 2\n'
        "[client]\nbatch_size = 5\n[data]\nmax_length = 20\n"
    )
    monkeypatch.setattr(
        "forefed.run.planning.plan",
        lambda scene, memory, **more: plan(scene, memory, probe=table_prober, **more),
    )
    say = lambda _: None  # noqa: E731
    found = plan_from_options(str(file), None, [], {"labels": None}, None, ["float32"], say)
    scene = found.scene
    assert (scene.batch, scene.seq, scene.split, scene.adapter.kind) == (5, 20, 6, "lora")
    assert found.memory == 300 * MB
    said = {"seq": 9, "units": 3}
    other = plan_from_options(str(file), "cpu", ["r=1"], said, "1GB", ["float32"], say)
    assert (other.scene.seq, other.scene.units, other.scene.split) == (9, 3, None)
    assert other.scene.adapter.model_dump()["r"] == 1 and other.memory == 1000 * MB


def test_classes_as_words_are_planned_with_the_language_models_own_head(tmp_path: Path) -> None:
    """No head is drawn or trained; the step reads one position a text."""
    task = {"kind": "choice", "words": {"a": "x", "b": "y"}}
    raw = scene_of_config(configure(sets=[], base={"data": {"task": task}}))
    assert raw["labels"] == "words"
    tiny_model("llama", causal=True).save_pretrained(tmp_path)
    settings = ModelSettings(name=str(tmp_path), dtype="float32")
    scene = Scene(model=settings, adapter=Lora(r=2), batch=3, seq=12, labels="words")
    task_ = build(scene, 2)
    assert task_.objective.head == "choice" and not task_.head
    batch = batch_of(scene, task_)
    loss = task_.loss(task_.params, batch)
    logits = task_.logits(task_.params, batch)
    assert logits.shape == (3, 2)
    assert float(loss) == pytest.approx(float(cross_entropy(logits, batch.labels)))


def test_units_of_a_deep_model(tmp_path: Path) -> None:
    """48 units in 12 blocks of 16 elements each; the probe with 2 blocks has 8 of them."""
    for change, units in (({"split": 1}, 48), ({"split": 5}, 10), ({"units": 3}, 3), ({}, 2)):
        scene = Scene(model=tiny_folder(tmp_path, layers=12), seq=16, **change)
        (found,) = measure(scene, ("float32",), lambda _: None, quadratic)
        assert (found.measured.units, found.measured.elements) == (units, 16 * units)
