"""Configurations: what is written is what is read, and what a strategy brings gives way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation import World
from forefed.config.advice import taken
from forefed.config.config import SLOTS, merge
from forefed.core.errors import UserError
from forefed.core.settings import Registry, parse
from forefed.models.adapters import Lora
from forefed.optimisers import OPTIMISERS
from forefed.run import Config, configure
from forefed.run.checkpoint import config_digest
from forefed.run.record import read_config
from forefed.strategies import STRATEGIES

EXTRA: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "lora": {"r": st.integers(1, 64), "alpha": st.floats(0.1, 64)},
    "tinylora": {"u": st.integers(1, 64), "layers": st.sampled_from(["all", "last:2", [0, 1]])},
    "fresh": {"k": st.none() | st.integers(1, 9), "clamp": st.floats(0, 20)},
    "basis": {"head_k": st.one_of(st.integers(1, 99), st.just("all"))},
    "dirichlet": {"alpha": st.floats(1e-3, 100), "clients": st.integers(10, 1000)},
    "bootstrap": {"alpha": st.none() | st.floats(0.1, 10)},
    "contiguous": {"replicas": st.integers(1, 4), "rotate": st.booleans()},
}
"""Settings to draw beside the kind (with its slot, where another slot has one of that name)."""

NEEDED: dict[str, dict[str, st.SearchStrategy[Any]]] = {"sites": {"names": st.just(["a", "b"])}}


def table(registry: Registry[Any]) -> st.SearchStrategy[dict[str, Any]]:
    def of(kind: str) -> st.SearchStrategy[dict[str, Any]]:
        extra = EXTRA.get(kind, EXTRA.get(f"{registry.slot}.{kind}", {}))
        return st.fixed_dictionaries(
            {"kind": st.just(kind), **NEEDED.get(kind, {})}, optional=extra
        )

    return st.sampled_from(registry.kinds()).flatmap(of)


OPTIMISER = st.fixed_dictionaries(
    {"kind": st.sampled_from(OPTIMISERS.kinds())},
    optional={"lr": st.floats(0, 1), "head_lr": st.none() | st.floats(0, 1)},
)
TABLES: dict[str, st.SearchStrategy[Any]] = {
    **{
        name: table(slot.registry)
        for name, slot in SLOTS.items()
        if name not in ("client", "assign") and "." not in name and not slot.many
    },
    "server": OPTIMISER,
    "client": st.fixed_dictionaries(
        {}, optional={"optimiser": OPTIMISER, "max_steps": st.none() | st.integers(1, 9)}
    ),
    "modifiers": st.lists(
        st.fixed_dictionaries({"kind": st.just("clip")}, optional={"norm": st.floats(0.1, 9)}),
        max_size=2,
    ),
    "data": st.fixed_dictionaries(
        {},
        optional={
            "source": st.sampled_from(["pydocs", {"kind": "files", "path": "a/b.csv"}]),
            "task": st.sampled_from(
                ["causal_lm", {"kind": "classification", "labels": ["x", "y"]}]
            ),
            "limit": st.none() | st.integers(2, 99),
        },
    ),
    "faults": st.fixed_dictionaries({}, optional={"crash": st.floats(0, 1)}),
    "seed": st.integers(0, 2**64 - 1),
    "deadline_s": st.none() | st.floats(0.1, 100),
}
NAMES = st.sampled_from(["fedavg", "spry"])
RAW = st.fixed_dictionaries({"strategy": NAMES}, optional=TABLES)


@given(RAW)
def test_a_stored_configuration_configures_the_same_run(raw: dict[str, Any]) -> None:
    config = configure(base=raw)
    stored = json.loads(json.dumps(config.model_dump(mode="json")))
    again = configure(base=stored)
    assert again == config and config_digest(again) == config_digest(config)
    assert again.model_dump(mode="json") == stored


@given(RAW)
def test_whatever_the_user_sets_wins(raw: dict[str, Any]) -> None:
    stored = configure(base=raw).model_dump(mode="json")

    def within(part: Any, whole: Any, path: str) -> None:
        if isinstance(part, dict) and isinstance(whole, dict):
            for key, value in part.items():
                within(value, whole[key], f"{path}.{key}")
        elif isinstance(whole, dict):
            assert part in (whole.get("kind"), whole.get("name")), path
        elif isinstance(part, list):
            for a, b in zip(part, whole, strict=True):
                within(a, b, path)
        else:
            assert part == whole, path

    within(raw, stored, "")


def test_the_config_file_of_a_run_configures_it_again(world: World, tmp_path: Path) -> None:
    sets = ["strategy=fedavg", 'modifiers=[{kind="clip", norm=0.5}]', "rounds=1"]
    config = world.config(tmp_path, *sets)
    folder = world.run(tmp_path, *sets).folder
    assert configure(base=read_config(folder)) == config
    assert configure(sets=["seed=4"], base=read_config(folder)).seed == 4


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_fills_what_the_user_left_open(name: str) -> None:
    config = configure(sets=[f"strategy={name}"]).model_dump(mode="json")
    for section, defaults in STRATEGIES[name].sections.items():
        if isinstance(defaults, list):
            kinds = [choice["kind"] for choice in config[section]]
            assert kinds == [choice["kind"] for choice in defaults]
            continue
        for key, value in defaults.items():
            if isinstance(value, dict):
                assert all(config[section][key][k] == v for k, v in value.items()), (section, key)
            else:  # (a bare word chooses a kind)
                assert config[section][key] in (value, {"kind": value}), (section, key)


SPRY = "strategy=spry"


@pytest.mark.parametrize(
    ("sets", "name", "engine", "why"),
    [
        ([], "fedavg", "backprop", "no memory is named"),
        (["strategy=auto", "assign=everything"], "fedavg", "backprop", "no memory is named"),
        (["memory=150MB"], "spry", "auto", "memory = 150 MB is named"),
        (
            ['memory=[{budget="2GB",share=0.5},{budget="90MB",share=0.5}]'],
            "spry",
            "auto",
            "90.0 MB",
        ),
        (["engine.head=exact"], "spry", "forward", "engine.kind = 'forward'"),
        (["directions.k=4"], "spry", "forward", "directions are set"),
        (["adapter.u=7"], "spry", "forward", "adapter.kind = 'tinylora'"),
        (["codec=scalars"], "spry", "forward", "codec.kind = 'scalars'"),
        (["engine=auto"], "fedavg", "auto", "no memory is named"),
        ([SPRY], "spry", "forward", ""),
        (["strategy=fedavg", "memory=2GB", "engine=auto"], "fedavg", "auto", ""),
        (["strategy=fedavg", "engine=forward"], "fedavg", "forward", ""),
    ],
)
def test_the_strategy_that_nobody_named(sets: list[str], name: str, engine: str, why: str) -> None:
    config = configure(sets=sets)
    assert (config.strategy.name, config.engine.kind) == (name, engine)
    assert why in config.strategy.because and bool(why) is bool(taken(config))
    assert configure(base=config.model_dump(mode="json")) == config


def test_a_setting_beside_a_strategys_default() -> None:
    config = configure(sets=[SPRY, "adapter.u=7", "client.batch_size=3"])
    assert config.adapter.model_dump()["u"] == 7
    assert config.adapter.model_dump()["r"] == 64  # spry's own, not TinyLoRA's 2
    assert config.client.batch_size == 3 and config.client.optimiser.head_lr == 2e-2


def test_another_kind_drops_the_strategys_table() -> None:
    config = configure(sets=[SPRY, "adapter.kind=lora", "client.optimiser.kind=sgd"])
    assert config.adapter.model_dump()["r"] == Lora().r != 64  # LoRA's own default, not spry's
    assert (config.client.optimiser.lr, config.client.optimiser.head_lr) == (1.0, None)


def test_the_same_kind_keeps_the_strategys_table() -> None:
    assert configure(sets=[SPRY, "adapter=tinylora"]) == configure(sets=[SPRY])
    assert configure(sets=[SPRY, "client.optimiser=adamw"]).client.optimiser.head_lr == 2e-2


@pytest.mark.parametrize(
    "sets",
    [
        ["data.source=files", "data.source.path=a.csv"],
        ["data.source.kind=files", "data.source.path=a.csv"],
        ["data.source.path=a.csv", "data.source.kind=files"],
        ["data.source.path=a.csv", "data.source=files"],
        ["data.source={kind='files', path='a.csv'}"],
    ],
)
def test_short_and_long_forms_in_any_order(sets: list[str]) -> None:
    source = configure(sets=sets).data.source.model_dump(mode="json")
    assert (source["kind"], source["path"]) == ("files", "a.csv")


def test_short_names() -> None:
    config = configure(sets=["model=some/where", "model.dtype=float32", "strategy=fedavg"])
    assert (config.model.name, config.model.dtype) == ("some/where", "float32")
    assert config == configure(sets=["strategy.name=fedavg", *_model("some/where")])


def _model(name: str) -> list[str]:
    return ["model.dtype=float32", f"model={name}"]


def test_the_last_setting_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('rounds = 5\nseed = 3\n[adapter]\nkind = "lora"\nr = 2\n')
    config = configure(file, ["rounds=6", "rounds=7", "adapter.alpha=3"], base={"seed": 1})
    assert (config.rounds, config.seed) == (7, 3)
    assert config.adapter.model_dump(include={"r", "alpha"}) == {"r": 2, "alpha": 3.0}


@pytest.mark.parametrize(
    ("item", "path", "value"),
    [
        ("rounds=50", "rounds", 50),
        ("rounds = 50", "rounds", 50),
        ("client.optimiser.lr=1e-3", "client.optimiser.lr", 1e-3),
        ("client.optimiser.lr=1", "client.optimiser.lr", 1.0),
        ("client.keep_optimiser=true", "client.keep_optimiser", True),
        ("name=try-1.b", "name", "try-1.b"),
        ('name="quoted"', "name", "quoted"),
        ("name=2024-01-31", "name", "2024-01-31"),
        ("model.name=org/name", "model.name", "org/name"),
        ("model.name=C=D", "model.name", "C=D"),
        ('adapter.targets=["query", "value"]', "adapter.targets", ["query", "value"]),
        ("adapter.layers=[0, 1]", "adapter.layers", [0, 1]),
        ("directions.head_k=all", "directions.head_k", "all"),
        ("directions.k=3", "directions.k", 3),
        ("out=some/folder", "out", "some/folder"),
    ],
)
def test_values_of_set(item: str, path: str, value: Any) -> None:
    found: Any = configure(sets=[item]).model_dump(mode="json")
    for part in path.split("."):
        found = found[part]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("roundz=5", ["roundz", "did you mean 'rounds'"]),
        ("evaluate.evry=5", ["evaluate.evry", "did you mean 'every'"]),
        ("client.epoch=5", ["client.epoch", "did you mean 'epochs'"]),
        ("server.lrr=5", ["server.lrr", "did you mean 'lr'"]),
        ("client.optimiser.bet1=5", ["client.optimiser.bet1", "did you mean 'beta1'"]),
        ("data.source.pth=5", ["data.source.pth", "Known here: kind"]),
        ("strategy.nam=spry", ["strategy.nam", "did you mean 'name'"]),
        ("engine=forwad", ["engine", "did you mean 'forward'"]),
        ("client.optimiser=adam_w", ["client.optimiser", "did you mean 'adamw'"]),
        ("client.kind=remote", ["client", "local"]),
        ("rounds.of=3", ["rounds"]),
        ("client.batch_size=none", ["client.batch_size", "integer", "'all'"]),
        ("seed=-1", ["seed", "greater"]),
        ("name=7", ["name", "string", "7"]),  # a number; name="7" is the string
        ("=5", ["key=value"]),
        ("a..b=5", ["a"]),
    ],
)
def test_what_nothing_reads_is_an_error(item: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        configure(sets=[item])
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        configure(sets=["engine=forwad", "client.optimiser.rl=1", "rounds=-1"])
    told = [line.partition(":")[0] for line in str(error.value).splitlines()]
    assert sorted(told) == ["client.optimiser.rl", "engine", "rounds"]


def test_merge_leaves_its_arguments() -> None:
    base, over = {"a": {"kind": "x", "b": 1}}, {"a": {"c": 2}}
    assert merge(base, over) == {"a": {"kind": "x", "b": 1, "c": 2}}
    assert (base, over) == ({"a": {"kind": "x", "b": 1}}, {"a": {"c": 2}})


def test_the_digest_of_a_configuration_is_about_its_numbers() -> None:
    plain = config_digest(configure())
    for same in ("name=other", "out=elsewhere", "checkpoint_every=3"):
        assert config_digest(configure(sets=[same])) == plain
    for other in ("seed=1", "rounds=21", "client.optimiser.lr=0.1", "evaluate.every=2"):
        assert config_digest(configure(sets=[other])) != plain


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().rounds = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["engine.shared=true"], {"kind": "fresh", "shared": True}),
        (["engine.shared=false"], {"kind": "fresh", "shared": False}),
        (["engine.pool=8"], {"kind": "pool", "size": 8, "shared": False}),
        (["engine.candidates=4"], {"kind": "candidates", "count": 4, "shared": False}),
        (["strategy=fedkseed", "engine.pool=64"], {"kind": "pool", "size": 64, "shared": False}),
        (
            ["strategy=fedkseed", "engine.shared=true"],
            {"kind": "pool", "size": 1024, "shared": True},
        ),
        (["strategy=decomfl", "engine.shared=false"], {"kind": "fresh", "shared": False}),
        (["strategy=fwdllm", "engine.candidates=1"], {"kind": "fresh", "shared": False, "k": 20}),
        (
            ["strategy=spry", "engine.directions=4", "engine.law=gauss16", "engine.clamp=3"],
            {"kind": "fresh", "k": 4, "distribution": "gauss16", "clamp": 3.0},
        ),
        (["strategy=decomfl", "engine.directions=all"], {"kind": "basis", "shared": True}),
        (
            ["codec=scalars", "strategy=fedavg", "codec.directions=4", "codec.law=gauss16"],
            {"kind": "fresh", "k": 4, "distribution": "gauss16", "head_distribution": "gauss16"},
        ),
        (["codec=scalars", "strategy=spry", "codec.head_directions=all"], {"head_k": "all"}),
        (["directions.shared=true"], {"kind": "fresh", "shared": True}),
        (["directions=pool", "directions.size=3"], {"kind": "pool", "size": 3, "shared": False}),
    ],
)
def test_what_engines_said_of_directions_is_read(
    sets: list[str], expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(sets=sets)
    assert config.directions.model_dump().items() >= expected.items()
    former = any(x.startswith(("engine.", "codec.")) for x in sets) and sets != [
        "engine.shared=false"
    ]
    assert ("settings of directions now" in caplog.text) == former


def test_an_engine_of_a_former_record_is_read_and_two_draws_are_refused() -> None:
    engine = {"kind": "forward", "shared": False, "pool": None, "candidates": 1}
    assert configure(base={"engine": engine}) == configure(sets=["engine=forward"])
    with pytest.raises(UserError, match="either from candidates or from a pool"):
        configure(sets=["engine.candidates=4", "engine.pool=8"])
    with pytest.raises(UserError, match="nothing to draw"):
        configure(sets=["strategy=fedkseed", "engine.directions=all"])


def test_the_record_of_a_former_run_is_read() -> None:
    config = configure(sets=["oversampling=0.3"])
    record = config.model_dump(mode="json")
    record["collect"], record["over_select"] = record.pop("trigger"), record.pop("oversampling")
    assert parse(Config, record) == config


def test_former_names_are_read_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    former = ["collect.at_most=7", "over_select=0.3", "assign.copies=2"]
    former += ["engine.rehearse=true", "engine.independent=3"]
    now = ["trigger.at_most=7", "oversampling=0.3", "assign.replicas=2"]
    now += ["engine.emulate=true", "engine.sub_batches=3"]
    common = ["strategy=zorba", "trigger=variance"]
    found = configure(sets=[*common, *former])
    assert len(caplog.records) == len(former)
    assert "assign.copies is called replicas now" in caplog.text
    assert found == configure(sets=[*common, *now])
    assert len(caplog.records) == len(former)
