"""Clients of different memory: groups, engines by budget, and weights by noise."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from federation import Interrupted, StopAfter, World, lines
from forefed.aggregate import Mean
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Contribution, Order, Params, ServerContext
from forefed.directions import Basis, Directions, Fresh, Pool
from forefed.directions.sets import RandomDirections
from forefed.gradients import GradientEngine
from forefed.gradients.auto import Auto
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining, TaskView, Trainer, variance_of
from forefed.plan import Plan, Scene, Way, plan
from forefed.plan.scene import Job, Measured, Step
from forefed.run import configure, run
from forefed.run.build import build
from forefed.run.client_engines import Engines, kept_engines, kept_way
from forefed.run.simulate import OwnLoss
from forefed.wire import Codec, Dense, Scalars

MB = 1_000_000
TWO_GROUPS = 'memory=[{budget="100MB", share=0.5}, {budget="1GB", share=0.5}]'
AUTO = (
    "strategy=spry",
    "assign.replicas=1",
    "adapter.targets=qv-and-outputs",
    "engine=auto",
    TWO_GROUPS,
)


def small_and_large(job: Job) -> Measured:
    """In 100 MB fits forward mode alone; backprop is quicker."""
    ways: tuple[Way, ...] = (
        Way(engine=Backprop()),
        Way(engine=Forward(tangents=4), directions=Fresh(k=4)),
    )
    return Measured(
        blocks=2,
        weights=50 * MB,
        all_units=8,
        units=2,
        elements=32,
        head_elements=51,
        base_rss=MB,
        inference=Step(peak=MB, rss=MB, seconds=1.0),
        ways=ways,
        steps=(Step(peak=200 * MB, rss=MB, seconds=2.0), Step(peak=20 * MB, rss=MB, seconds=2.0)),
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Scene]:
    """The scenes that a run measures, by ``small_and_large`` in the machine's place."""
    scenes: list[Scene] = []

    def measured(scene: Scene, **more: Any) -> Plan:
        scenes.append(scene)
        return plan(scene, probe=small_and_large, **more)

    monkeypatch.setattr("forefed.run.client_engines.plan", measured)
    return scenes


def test_every_client_has_one_group_by_its_number_and_the_seed() -> None:
    kinds = (Forward(), Checkpointed(), Backprop())
    shares = tuple(zip((0.2, 0.3, 0.5), (Way(engine=e) for e in kinds), strict=True))
    engines = Engines(Key(1), shares)
    groups = [engines.group(c) for c in range(2000)]
    counts = Counter(groups)
    for number, (share, engine) in enumerate(shares):
        assert counts[number] / 2000 == pytest.approx(share, abs=0.035)
        assert engines.of(groups.index(number)) == engine
    assert groups == [engines.group(c) for c in range(2000)]
    assert groups != [Engines(Key(2), shares).group(c) for c in range(2000)]


def test_settings_of_memory() -> None:
    one = configure(sets=["engine=auto", "memory=2GB"]).memory
    assert [(b.budget, b.share) for b in one] == [(2_000_000_000, 1.0)]
    two = configure(sets=["engine=auto", TWO_GROUPS])
    assert [(b.budget, b.share) for b in two.memory] == [(100 * MB, 0.5), (1000 * MB, 0.5)]
    again = configure(base=json.loads(two.model_dump_json()))
    assert again == two and isinstance(again.engine, Auto)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["strategy=spry", "memory=2GB"], "engine.kind must be 'auto'"),
        (["engine=auto", 'memory=[{budget="1GB", share=0.4}]'], "sum to 1"),
        (["engine=auto", "memory=much"], "'much' is no size"),
        (["engine=auto", "engine.micro_batch=4"], "micro_batch"),
        (["engine=auto", "strategy=fedfgd"], "would not be fedfgd"),
        (["engine.sub_batches=4", "directions.kind=basis"], "engine.sub_batches"),
    ],
    ids=lambda x: x[-1] if isinstance(x, list) else "",
)
def test_mistakes(sets: list[str], words: str) -> None:
    from forefed.config.compat import check

    with pytest.raises(UserError) as refusal:
        check(configure(sets=sets))
    assert words in str(refusal.value)


def test_clients_of_two_kinds_in_one_run(world: World, tmp_path: Path, asked: list[Scene]) -> None:
    config = world.config(
        tmp_path, *AUTO, "rounds=3", "client.batch_size=all", "client.max_steps=1"
    )
    result = run(config)
    assert result.summary["status"] == "finished"
    (scene,) = asked
    clients = build(config).data.population.client
    assert scene.batch == max(len(clients(c).train) for c in range(6))
    assert (scene.seq, scene.labels) == (12, 3)
    assert scene.units == 3, "eight units among three clients: somebody has three"
    kept = json.loads((result.folder / "plan.json").read_text())
    assert [g["engine"]["kind"] for g in kept["groups"]] == ["forward", "backprop"]
    assert [g["spare"] for g in kept["groups"]] == [30 * MB, 750 * MB]
    engines = Engines(Key(0), ((0.5, Way(engine=Forward())), (0.5, Way(engine=Backprop()))))
    passes = (5, 2)  # of a row: a primal and four tangents; forward and backward
    seen: set[str] = set()
    for line in lines(result.folder, "rounds.jsonl"):
        groups = [engines.group(c) for c in line["cohort"]]
        assert line["groups"]["cohort"] == groups
        assert line["groups"]["peaks"].keys() == {str(g) for g in groups}
        assert all(peak > 0 for peak in line["groups"]["peaks"].values())
        sizes = [len(clients(c).train) for c in line["cohort"]]
        assert line["forwards"] == sum(passes[g] * n for g, n in zip(groups, sizes, strict=True))
        seen |= line["groups"]["peaks"].keys()
    assert seen == {"0", "1"}


@pytest.mark.parametrize("codec", ["dense", "scalars"])
def test_resumed_it_does_not_measure_again(
    codec: str, world: World, tmp_path: Path, asked: list[Scene]
) -> None:
    whole = run(world.config(tmp_path / "whole", *AUTO, f"codec={codec}"))
    config = world.config(tmp_path / "parts", *AUTO, f"codec={codec}")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(1))
    assert len(asked) == 2
    parts = run(config, resume=True)
    assert len(asked) == 2
    assert parts.summary["digest"] == whole.summary["digest"]


def test_a_plan_of_other_settings_is_not_taken(
    world: World, tmp_path: Path, asked: list[Scene]
) -> None:
    build(world.config(tmp_path, *AUTO))
    build(world.config(tmp_path, *AUTO))
    assert len(asked) == 1
    build(world.config(tmp_path, *AUTO, "client.batch_size=2"))
    build(world.config(tmp_path, *AUTO, "client.batch_size=2", "memory=1GB"))
    assert len(asked) == 3


def test_ranks_by_memory(world: World, tmp_path: Path) -> None:
    """Backprop takes 10 MB a rank beside 50 of weights: rank 4 fits 100 MB, 1 GB bears all 8; in 55
    MB nothing exact fits, and forward mode at the smallest rank does not either."""
    scenes: list[int] = []

    def planner(scene: Scene) -> Plan:
        r = int(scene.adapter.r)  # type: ignore[attr-defined]
        scenes.append(r)

        def probe(job: Job) -> Measured:
            found = small_and_large(job)
            steps = (found.steps[0].model_copy(update={"peak": 10 * MB * r}), found.steps[1])
            return found.model_copy(update={"steps": steps})

        return plan(scene, precisions=("float32",), probe=probe)

    sets = ("strategy=hetlora", "engine=auto", "sharing.ranks=auto")
    config = world.config(tmp_path, *sets, TWO_GROUPS)
    federation = build(config, planner=planner)
    assert federation.engines.ranks == (4, 8) and sorted(scenes) == [4, 8]
    star, group = federation.star, federation.engines.group
    orders = star.plan(federation.start())
    assert {group(c) for c in range(6)} == {0, 1}
    for client, order in orders.items():
        shapes = {len(x) for n, x in order.params.items() if ".lora_A." in n}
        assert shapes == {(4, 8)[group(client)]}
    again = build(config, planner=planner)
    assert again.engines.ranks == (4, 8) and len(scenes) == 2
    with pytest.raises(UserError, match="is too small"):
        build(world.config(tmp_path / "b", *sets, "memory=55MB"), planner=planner)
    assert scenes[2:] == [8, 4, 2, 1]


def test_a_budget_that_is_too_small(world: World, tmp_path: Path, asked: list[Scene]) -> None:
    with pytest.raises(UserError, match=r"the least that works here is 70\.0 MB"):
        run(world.config(tmp_path, "engine=auto", "memory=60MB"))


def test_a_chosen_engine_must_fit_the_other_settings(
    world: World, tmp_path: Path, asked: list[Scene]
) -> None:
    config = world.config(tmp_path, *AUTO, "directions.shared=true")
    with pytest.raises(UserError, match=r"an exact engine has no directions to share"):
        run(config)


def test_the_prefix_cache_keeps_to_the_budget(
    world: World, tmp_path: Path, asked: list[Scene]
) -> None:
    def limit(*sets: str) -> int:
        prefix = build(world.config(tmp_path, *sets)).trainer.task.prefix
        assert prefix is not None
        return prefix.cache.limit_bytes

    assert limit(*AUTO) == 30 * MB
    assert limit(*AUTO, "client.prefix_cache_limit=1MB") == MB
    assert limit(*AUTO, "client.prefix_cache=disk") == 500 * MB
    assert limit("engine=auto") == limit() == 500 * MB


LIKE = {"a": torch.zeros(8, 4), "b": torch.zeros(32), "head": torch.zeros(3)}
ORDER = Order(1, 1, 1, ("a", "b", "head"), LIKE)


@pytest.mark.parametrize(
    ("engine", "directions", "codec", "body", "head"),
    [
        (Backprop(), Fresh(), Dense(), 1.0, 1.0),
        (Forward(), Basis(), Dense(), 1.0, 1.0),
        (Forward(), Fresh(k=4), Dense(), 1 + 63 / 4, 1.0),
        (Forward(), Fresh(k=4, distribution="gauss16"), Dense(), 1 + 65 / 4, 1.0),
        (Forward(head="perturbed"), Fresh(k=4), Dense(), 1 + 66 / 4, 1 + 66 / 4),
        (Forward(), Fresh(k=4, head_k=2), Scalars(), 1 + 63 / 4, 1 + 2 / 2),
        (Backprop(), Fresh(head_k="all"), Scalars(), 1 + 63 / 16, 1.0),
    ],
    ids=str,
)
def test_variance_by_hand(
    engine: GradientEngine, directions: Directions, codec: Codec, body: float, head: float
) -> None:
    """64 elements in the body, 3 in the head."""
    nothing = OwnLoss(lambda p, rows: torch.zeros(()))
    view = TaskView(nothing, nothing, frozenset({"head"}))
    trainer = Trainer(LocalTraining(), engine, codec, view, directions=directions)
    assert variance_of(trainer, ORDER) == {
        "a": body,
        "b": body,
        "head": head,
    }


def update(client: int, n: int, value: float, variance: float | None = None) -> Contribution:
    known = {} if variance is None else {"w": variance}
    return Contribution(client, n, {"w": torch.full((2,), value)}, known)


CONTEXT = ServerContext(round=1, key=Key(1))


def aggregate(rule: Mean, cs: Sequence[Contribution]) -> Params:
    return rule(cs, {}, CONTEXT)[0]


def mean(rule: Mean, *cs: Contribution) -> float:
    return float(aggregate(rule, cs)["w"][0])


def test_weights_by_hand() -> None:
    """10 examples with variance 16, 20 with variance 4, 30 exact ones: 1 : 4 : 16 by noise."""
    held = (update(1, 10, 1.0, 16.0), update(2, 20, 2.0, 4.0), update(3, 30, 4.0))
    plain = (10 * 1 + 20 * 2 + 30 * 4) / 60
    by_noise = (10 * 1 + 20 * 4 * 2 + 30 * 16 * 4) / (10 + 80 + 480)
    bounded = (10 * 1 + 20 * 4 * 2 + 30 * 10 * 4) / (10 + 80 + 300)
    assert mean(Mean(weights="examples"), *held) == pytest.approx(plain)
    assert mean(Mean(max_ratio=100), *held) == pytest.approx(by_noise)
    assert mean(Mean(), *held) == pytest.approx(bounded)
    assert mean(Mean(max_ratio=1), *held) == pytest.approx(plain)


def test_equal_noise_is_the_mean_by_examples_bit_for_bit() -> None:
    values = Key(1).normal((5, 64)).double() / 3

    def held(variance: dict[str, float]) -> list[Contribution]:
        return [Contribution(i, 3 + 7 * i, {"w": x}, variance) for i, x in enumerate(values)]

    plain = aggregate(Mean(weights="examples"), held({}))
    for noise in ({}, {"w": 16.75}, {"w": 1 / 3}):
        assert trees.digest(aggregate(Mean(), held(noise))) == trees.digest(plain)


def test_weights_halve_the_error_and_keep_the_mean() -> None:
    """An exact client and one with a single direction over 16 elements, of one gradient: E = g, and
    the squared error 15 |g|^2 times the noisy client's share, squared."""
    g = Key(2).normal((16,)).double()
    draws = 3000
    for rule, share in ((Mean(weights="examples"), 1 / 2), (Mean(), 1 / 11)):
        total, squared = torch.zeros(16, dtype=torch.float64), 0.0
        for i in range(draws):
            directions = RandomDirections(i, 1, 1, k=1)
            noisy = directions.combine({"w": g}, directions.project({"w": g}))
            assert noisy is not None
            held = [Contribution(1, 8, noisy, {"w": 16.0}), Contribution(2, 8, {"w": g})]
            found = aggregate(rule, held)["w"]
            total += found
            squared += float((found - g).square().sum())
        expected = 15 * share**2 * float(g.square().sum())
        assert squared / draws == pytest.approx(expected, rel=0.15)
        assert float((total / draws - g).square().sum()) < 6 * expected / draws


@pytest.mark.parametrize(
    ("sets", "rehearsed"),
    [
        ([], True),
        (["directions.k=4"], False),
        (["engine.emulate=false"], False),
        (["directions.k=4", "engine.emulate=true"], True),
        (["partition.kind=sites", "partition.names=['a', 'b']"], False),
    ],
    ids=str,
)
def test_exact_slopes_of_simulated_clients_are_rehearsed(sets: list[str], rehearsed: bool) -> None:
    engine = kept_engines(configure(sets=["strategy=spry", *sets])).of(0).engine
    assert engine.emulates is rehearsed
    assert (engine.stands_for is not engine) is rehearsed


def test_a_plan_of_a_former_version_is_read() -> None:
    engine = {"kind": "forward", "directions": 4, "law": "gauss16", "rehearse": False}
    way = kept_way({"engine": engine}, Basis(head_k=8))
    assert way.engine == Forward(emulate=False)
    assert way.directions == Fresh(k=4, head_k=8)  # how they are drawn the configuration says
    assert kept_way({"engine": {**engine, "directions": "all"}}, Fresh()).directions == Basis()
    assert kept_way({"engine": {"kind": "backprop"}}, Basis(head_k=8)).directions == Fresh(head_k=8)
    with pytest.raises(UserError, match="the planner has chosen unit vectors"):
        kept_way({"engine": {**engine, "directions": "all"}}, Pool())
