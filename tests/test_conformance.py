"""Every entry of every registry runs end to end, leaves a whole record, and repeats itself.

A new entry is covered as soon as it is registered: what it needs beside its name, if anything,
stands in ``NEEDS``.
"""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from digests import check_digest, codecs_of
from federation import CLASSES, SITES, World, lines, without_clock
from forefed.config.config import SLOTS
from forefed.core import trees
from forefed.core.settings import parse
from forefed.data.population import Population
from forefed.data.tasks import TASKS, encode_texts
from forefed.models.adapters import ADAPTERS
from forefed.models.load import load_tokenizer
from forefed.models.objectives import OBJECTIVES, Objective
from forefed.run import Config, Result
from forefed.run.checkpoint import BEST, config_digest
from forefed.run.rebuild import replay_log
from forefed.sharing import SHARINGS
from forefed.strategies import STRATEGIES
from forefed.use.predict import trained
from forefed.wire import CODECS

NEEDS: dict[str, list[str]] = {
    "engine=exact_head": ["adapter=head"],
    "engine=finite_difference": ["directions.k=2"],
    "adapter=lora": ["adapter.r=2", "directions.k=2"],
    "adapter=lora_sb": ["strategy=fedsb"],
    **{f"codec={kind}": ["directions.head_k=8"] for kind in ("scalars", "one_byte", "feedsign")},
    "download=scalars": ["codec=scalars", "directions.head_k=8"],
    "download=pool": ["strategy=fedkseed", "client.max_steps=2", "directions.size=64"],
    "strategy=fedkseed": ["directions.size=64"],
    "trigger=variance": ["trigger.at_most=2"],
    "directions=candidates": [
        *("directions.k=2", "directions.distribution=gauss16", 'modifiers=["last_update"]')
    ],
    "directions=pool": ["directions.k=2"],
    'modifiers=["last_update"]': [
        *("directions.k=2", "directions.distribution=gauss16", "directions.kind=candidates")
    ],
    'modifiers=["curvature"]': ["codec=scalars", "directions.head_k=8", "directions.k=2"],
    'modifiers=["scaffold"]': ["strategy=fedavg", "client.optimiser.kind=sgd"],
    'modifiers=["dp_client"]': [
        *("strategy=fedavg", 'modifiers=[{{kind="dp_client", noise_multiplier=0.5}}]')
    ],
    'modifiers=["dp_example"]': [
        'modifiers=[{{kind="dp_example", noise_multiplier=0.5}}]',
        *("client.sampler.kind=poisson", "client.sampler.rate=0.5"),
    ],
    "strategy=zorba": ["directions.head_k=8"],
    "strategy=spry": ["client.optimiser.lr=2e-2"],  # the digests' rate
    "strategy=fwdllm": ["trigger.at_most=2", "directions.k=2"],
    "assign=everything": ["strategy=fedfgd"],
    **{f"sharing={kind}": [f"strategy={kind}"] for kind in ("ffa_lora", "rolora", "fedsa_lora")},
    "engine=sam": ["strategy=fedspeed"],
    "engine=block_local": ["strategy=fedavg"],
    "engine=surrogate": ["strategy=fzoos", "client.batch_size=all"],
    "strategy=fzoos": ["client.batch_size=all"],
    'modifiers=["fzoos"]': ["strategy=fzoos", "client.batch_size=all"],
    'modifiers=["feddyn"]': ["strategy=feddyn"],
    'modifiers=["gauss_newton"]': [
        *("codec=dense", "client.max_steps=1", "client.optimiser={{kind='sgd', lr=1.0}}"),
        *("engine.curvature=true", "adapter.u=4", "adapter.layers=last:1"),
    ],
    "topology=buffered": ["strategy=fedbuff"],
    "topology=dadao": ["strategy=dadao", "client.batch_size=all"],
    "strategy=dadao": ["client.batch_size=all"],
    "sharing=fine_tune": ["strategy=fedavg", "sharing.after=1"],
    "sharing=local_only": ["strategy=fedavg"],
    "sharing=local_labels": ["strategy=fedavg"],
    "select=availability": ["select.part=0.9"],
    "sharing=ranks": ["strategy=flexlora"],
    **{
        entry: ["strategy=best_of_three"]
        for entry in ("sharing=best_of_three", "client=best_of_three")
    },
    **{entry: ["strategy=flow"] for entry in ("sharing=flow", "client=flow", "adapter=lora_flow")},
    **{
        entry: ["strategy=hyperfl", "adapter.width=4", "client.epochs=1"]
        for entry in ("sharing=hyperfl", "client=hyperfl", "adapter=lora_hyper")
    },
    "strategy=hyperfl": ["adapter.width=4", "client.epochs=1"],
    **{
        f"aggregator={kind}": [f"strategy={kind}"]
        for kind in ("fedex", "flora", "flexlora", "hetlora", "fedsvd", "fedkrso")
    },
    "channel=secure_sum": ["strategy=fedavg", "cohort=5"],
    "channel=partial_sums": ["strategy=fedavg", "channel.aggregators=2"],
    "topology=gossip": ["strategy=fedavg", "codec=dense", "cohort=6", "partition.clients=6"],
    "partition=natural": ["partition.column=site"],
    "partition=bootstrap": ["partition.clients=6", "partition.examples_per_client=9"],
    "data.task=pairs": ["data.source.path='{world.pairs}'"],
    "data.task=multilabel": ["data.source.path='{world.tags}'"],
    "data.task=regression": ["data.source.path='{world.scores}'"],
    "data.task=causal_lm": ["model.name='{world.llama}'"],
    "data.task=generate": [
        "model.name='{world.llama}'",
        "data.source.path='{world.pairs}'",
        "data.task.prompt=text1",
        "data.task.text=text2",
        "data.task.tokens=4",
    ],
    "data.task=choice": [
        "model.name='{world.llama}'",
        "data.task.prompt='{{text}} w3'",
        "data.task.words={{animal='w9',metal='w10',tree='w11'}}",
    ],
    "data.task=qa": ["data.source.path='{world.questions}'"],
    "data.source=pydocs": ["data.limit=40"],
}
"""What an entry needs beside its name. Partitions get six clients unless they stand here."""

ENTRIES = [
    f'{place}=["{kind}"]' if slot.many else f"{place}={kind}"
    for place, slot in SLOTS.items()
    for kind in slot.registry.kinds()
    # what "auto" chooses depends on the clock: test_client_engines.py; "sites" is another machine:
    # test_deploy_remote.py; "hub" is the network; "trainer" is a script's (test_hf.py)
    if kind not in ("auto", "sites", "hub", "trainer")
]
SLOPES = [kind for kind in CODECS.kinds() if CODECS[kind].payload == "projections"]
EIGHT = ["directions.head_k=8"]
METHODS = [(n, c) for n, s in STRATEGIES.items() for c in codecs_of(s)]
WITH_ALL = ("dense", "scalars")
"""Codecs that are run with every strategy; the others with these, and with all by ``-m full``."""
WITH_THESE = ("fedavg", "fedavg_split", "feedsign", "spry")
FREE = [kind for kind in ADAPTERS.kinds() if not ADAPTERS[kind].only]
"""Adapters for any strategy."""
ADAPTED = list(
    product(
        [n for n, s in STRATEGIES.items() if "adapter" not in s.fixed],
        FREE,
    )
)


def covering(pairs: list[tuple[str, str]]) -> list[Any]:
    """The pairs as parameters, of which every first and every second one is run by default; the
    others bear the marker ``full`` (``pytest -m full``)."""
    seconds = list(dict.fromkeys(b for _, b in pairs))
    firsts = dict.fromkeys(a for a, _ in pairs)
    chosen = {(a, seconds[i % len(seconds)]) for i, a in enumerate(firsts)}
    return [p if p in chosen else pytest.param(*p, marks=pytest.mark.full) for p in pairs]


DEFAULT_ATTACKS = ("none", "label_flip", "min_max")
"""The others are met over small vectors in test_attacks.py; here they bear the marker ``full``."""


def attack_beyond(entry: str) -> bool:
    return entry.startswith("attack=") and entry.removeprefix("attack=") not in DEFAULT_ATTACKS


@pytest.mark.parametrize(
    "entry",
    [pytest.param(e, marks=pytest.mark.full) if attack_beyond(e) else e for e in ENTRIES],
)
def test_every_entry_runs_and_repeats(entry: str, world: World, tmp_path: Path) -> None:
    clients = ["partition.clients=6"] if entry.startswith("partition=") else []
    needs = [text.format(world=world) for text in NEEDS.get(entry, clients)]
    source = [] if entry == "data.source=pydocs" else [f"data.source.path='{world.texts}'"]
    sets = ["data.source=files", *source, entry, *needs]
    run_twice(world, tmp_path, sets, export=entry.startswith(EXPORTED))


@pytest.mark.parametrize(
    ("method", "codec"),
    [
        p if p[1] in WITH_ALL or p[0] in WITH_THESE else pytest.param(*p, marks=pytest.mark.full)
        for p in METHODS
    ],
)
def test_every_strategy_with_every_codec(
    method: str, codec: str, world: World, tmp_path: Path
) -> None:
    fewer = EIGHT if codec in SLOPES else []
    needs = NEEDS.get(f"strategy={method}", [])
    sets = [f"strategy={method}", f"codec={codec}", *fewer, *needs]
    # with the other codecs it repeats what was recorded; each codec repeats itself as an entry
    first = codec == codecs_of(STRATEGIES[method])[0]
    result = run_twice(world, tmp_path, sets, again=first, export=first)
    check_digest(f"{method}/{codec}", result)


def test_the_default_pairs_cover_every_method_and_every_adapter() -> None:
    default = [p for p in covering(ADAPTED) if type(p) is tuple]
    assert {a for a, _ in default} == {a for a, _ in ADAPTED}
    assert {b for _, b in default} == {*FREE}
    assert len(default) == len({a for a, _ in ADAPTED})


@pytest.mark.parametrize(("method", "adapter"), covering(ADAPTED))
def test_every_strategy_with_every_adapter(
    method: str, adapter: str, world: World, tmp_path: Path
) -> None:
    fewer = EIGHT if STRATEGIES[method].sections.get("codec", {}).get("kind") in SLOPES else []
    needs = NEEDS.get(f"strategy={method}", [])
    sets = [f"strategy={method}", f"adapter.kind={adapter}", *fewer, *needs, "name=once"]
    result = world.run(tmp_path, *few(world, tmp_path, sets))
    check_record(result)
    check_adapter(world, result)


@pytest.mark.parametrize("method", ["spry", "fedavg"])
def test_bfloat16_weights(method: str, world: World, tmp_path: Path) -> None:
    result = run_twice(world, tmp_path, [f"strategy={method}", "model.dtype=bfloat16"])
    assert read(result.folder, "environment.json")["model"]["dtype"] == "bfloat16"
    saved = load_file(result.folder / "checkpoint.safetensors")
    assert {x.dtype for n, x in saved.items() if n.startswith("params/")} == {torch.float32}


def test_published_spry(world: World, tmp_path: Path) -> None:
    published = ["adapter=lora", "adapter.r=1", "directions.k=1", "directions.distribution=gauss16"]
    published += ["engine.head=perturbed", "assign=cyclic", "assign.head=unit"]
    run_twice(world, tmp_path, [*published, "assign.rotate=false", "server=yogi", "server.lr=0.01"])


EXPORTED = ("adapter", "aggregator", "data.task", "engine", "guard", "sharing", "start", "topology")
"""Slots whose entries decide what the end of a run is made of; of the others' the numbers only."""
RUN: dict[str, Result] = {}
"""Results by configuration: many entries are the defaults of a slot and mean the same run."""
DONE: set[tuple[str, str]] = set()
"""By configuration, what has been looked at beside its record: "again", "export"."""


def few(world: World, out: Path, sets: list[str]) -> list[str]:
    """The same with fewer numbers per matrix, where SPRY's adapter stands as it comes."""
    config = world.config(out, *sets).model_dump()
    own = STRATEGIES["spry"].sections["adapter"]["u"]
    return [*sets, "adapter.u=6"] if config["adapter"].get("u") == own else sets


def run_twice(
    world: World, out: Path, sets: list[str], again: bool = True, export: bool = True
) -> Result:
    """Two runs of these settings, with everything checked that holds for every run. Without
    ``again`` there is one, without ``export`` nothing outside is made of its adapter."""
    sets = few(world, out, sets)
    digest = config_digest(world.config(out, *sets))
    if digest not in RUN:
        RUN[digest] = world.run(out, *sets, "name=first")
        check_record(RUN[digest])
    if export and (digest, "export") not in DONE:
        check_adapter(world, RUN[digest])
        DONE.add((digest, "export"))
    if again and (digest, "again") not in DONE:
        check_same(RUN[digest], world.run(out, *sets, "name=second"))
        DONE.add((digest, "again"))
    return RUN[digest]


def check_same(first: Result, second: Result) -> None:
    assert first.summary["digest"] == second.summary["digest"]
    rounds = [without_clock(lines(r.folder, "rounds.jsonl")) for r in (first, second)]
    assert rounds[0] == rounds[1]
    evaluations = [(r.folder / "evaluations.jsonl").read_bytes() for r in (first, second)]
    assert evaluations[0] == evaluations[1]


def task_has_details(config: dict[str, Any]) -> bool:
    """Is there more to say of an evaluation than numbers?"""
    objective = OBJECTIVES[TASKS[config["data"]["task"]["kind"]].head]
    return objective.details is not Objective.details


def asks_clients(config: dict[str, Any]) -> bool:
    """Are clients tested on their own rows?"""
    return config["evaluate"]["clients"] > 0 or SHARINGS.parse(config["sharing"]).personal


def check_record(result: Result) -> None:
    """The files of a finished run agree with one another and with what it was asked."""
    folder, config = result.folder, read(result.folder, "config.json")
    private = any(m["kind"].startswith("dp_") for m in config["modifiers"])
    kept = {p.name for p in folder.iterdir() if not p.name.startswith(".")}
    assert kept - {BEST} == {
        *("config.json", "environment.json", "partition.json", "rounds.jsonl"),
        *("evaluations.jsonl", "checkpoint.safetensors", "adapter", "summary.json"),
        *(("details.json",) if task_has_details(config) else ()),
        *(("clients.json",) if asks_clients(config) else ()),
        *(("start.json", "start.safetensors") if config["start"]["kind"] == "closed_form" else ()),
        *(("scalars.log",) if config["codec"]["kind"] in SLOPES else ()),
        *(("privacy.jsonl",) if private else ()),
    }
    if config["codec"]["kind"] in SLOPES:  # the log alone says what the run ended with
        assert replay_log(folder).digest == read(folder, "summary.json")["digest"]
    summary = read(folder, "summary.json")
    assert summary == result.summary and summary["status"] == "finished"
    partition, environment = read(folder, "partition.json"), read(folder, "environment.json")
    held = sum(partition["sizes"]) + partition["dropped"]
    if partition["kind"] != "bootstrap":
        assert held == environment["data"]["counts"]["examples"]
    exact = config["directions"]["kind"] == "basis" and "emulate" in config["engine"]
    assert environment["emulated"] is (exact and config["engine"]["emulate"] == "auto")
    units = environment["model"]["units"]
    assert environment["model"]["trainable"] == sum(size for _, _, size in units) > 0

    rounds = lines(folder, "rounds.jsonl")
    assert [line["round"] for line in rounds] == [*range(1, config["rounds"] + 1)]
    for line in rounds:
        drawn = len(set(line["cohort"]))
        fixed = (config["select"]["kind"], config["topology"]["kind"]) == ("uniform", "star")
        assert drawn == len(line["cohort"]) and (not fixed or drawn == config["cohort"])
        assert all(0 <= client < partition["clients"] for client in line["cohort"])
        assert line["replies"] + sum(line["lost"].values()) == drawn
        assert line["bytes_down"] > 0 or not drawn
        assert line["seconds"]["total"] > 0 and line["memory"]["rss"] > 0
        if line["replies"] and not private:  # else clients say nothing of themselves
            assert line["bytes_up"] > 0 and line["steps"] > 0 and line["forwards"] > 0
            assert math.isfinite(line["loss"])
            if config["channel"]["kind"] == "plain":  # a peak is no sum
                assert line["memory"]["peak_above_weights"] > 0
    before = read(folder, "start.json") if (folder / "start.json").exists() else {}
    for name in ("bytes_up", "bytes_down", "forwards"):
        spent = before.get(name, 0) + sum(line[name] for line in rounds)
        assert summary["totals"][name] == spent

    evaluations = [e for e in lines(folder, "evaluations.jsonl") if e["split"] == "test"]
    assert [e["round"] for e in evaluations] == [*range(config["rounds"] + 1)]
    assert all(isinstance(v, str) or math.isfinite(v) for e in evaluations for v in e.values())
    assert summary["final"] == evaluations[-1] and summary["best"] in evaluations

    saved = load_file(folder / "checkpoint.safetensors")
    params = {n.removeprefix("params/"): x for n, x in saved.items() if n.startswith("params/")}
    assert trees.digest(params) == summary["digest"]
    trained = [x.numel() for n, x in params.items() if not n.endswith(".folded")]
    assert sum(trained) == environment["model"]["trainable"]


def check_adapter(world: World, result: Result) -> None:
    """Plain PEFT, on the same base, gives the run's logits (in float32 to the rounding of one
    product: a single column is summed by where it lies in memory on some processors)."""
    config = parse(Config, read(result.folder, "config.json"))
    task, state = trained(result.folder, config)
    params = state.params
    texts = ["w5 w6", "w20 w21 w22 w23", "w40"]
    batch = encode_texts(load_tokenizer(config.model), texts, 12, None).batch(range(3))
    loaded = peft_model(task.objective, result.folder, config)
    with torch.no_grad():
        ours = task.logits(params, batch)
        theirs = task.objective.logits(loaded(**batch.inputs))
        if config.model.dtype == "float32":
            dense = getattr(config.adapter, "fold", False)  # exported as factors
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 if dense else 1e-7)
        else:  # PEFT computes the adapter and the head in other dtypes than we do
            torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.02, atol=0.02)
        if config.sharing.kind != "local_only":  # else nothing of it is the server's
            assert not torch.equal(ours, task.logits(task.params, batch))  # it learned something
    card = (result.folder / "adapter" / "README.md").read_text()
    assert config.strategy.name in card and str(world.root) not in card


def peft_model(objective: Objective, folder: Path, config: Config) -> Any:
    import transformers
    from peft import PeftModel

    known = ("num_labels", "problem_type")
    options = {k: v for k, v in objective.options().items() if k in known}
    auto: Any = getattr(transformers, objective.auto)
    with torch.random.fork_rng(devices=[]):
        dtype = getattr(torch, config.model.dtype)
        model = auto.from_pretrained(config.model.name, dtype=dtype, **options)
        return PeftModel.from_pretrained(model, folder / "adapter").eval()


def test_another_seed_is_another_run(world: World, tmp_path: Path) -> None:
    digests = {world.run(tmp_path, f"name=s{s}", f"seed={s}").summary["digest"] for s in (0, 1)}
    assert len(digests) == 2


def test_a_language_model_is_scored_in_bits_per_byte(world: World, tmp_path: Path) -> None:
    result = world.run(tmp_path, *world.lm, "strategy=fedavg", "evaluate.clients=4")
    final, baseline = result.summary["final"], result.summary["baseline"]
    assert 0 < final["bits_per_byte"] < baseline["untrained"] and baseline["majority"] is None
    assert "accuracy" not in final
    own = [e for e in lines(result.folder, "evaluations.jsonl") if e["split"] == "clients"]
    assert [e["clients"] for e in own] == [4, 4, 4]
    assert all(math.isfinite(e["bits_per_byte"]) for e in own)


def test_a_million_clients_of_whom_only_the_cohort_is_looked_up(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[int] = []
    inner = Population.client

    def client(self: Population, i: int) -> Any:
        looked_up.append(i)
        return inner(self, i)

    monkeypatch.setattr(Population, "client", client)
    many = ["partition=bootstrap", "partition.clients=1000000", "partition.examples_per_client=5"]
    result = world.run(tmp_path, *many)
    cohorts = [c for line in lines(result.folder, "rounds.jsonl") for c in line["cohort"]]
    # whose first step is measured is looked at before, too: has it any rows?
    assert [*dict.fromkeys(looked_up)] == cohorts and len(looked_up) <= len(cohorts) + 2
    assert len(cohorts) == 6 and max(cohorts) > 1000
    partition = read(result.folder, "partition.json")
    assert partition["clients"] == 1_000_000 and partition["shown"] == 1000


def test_lost_answers_are_counted_and_the_run_goes_on(world: World, tmp_path: Path) -> None:
    faults = ["faults.crash=0.3", "faults.offline=0.2", "faults.transport=0.2", "rounds=6"]
    result = run_twice(world, tmp_path, faults)
    rounds = lines(result.folder, "rounds.jsonl")
    reasons = {reason for line in rounds for reason in line["lost"]}
    assert reasons == {"crash", "offline", "transport"}
    whole = [line for line in rounds if not line["lost"].get("offline")]
    fewer = [line for line in rounds if line["lost"].get("offline")]
    # Whoever is offline costs no bytes; a broadcast is far larger than an order.
    assert max(x["bytes_down"] for x in fewer) < min(x["bytes_down"] for x in whole)


@pytest.mark.parametrize(
    ("setting", "reason"), [("faults.error=1.0", "error"), ("deadline_s=1e-9", "deadline")]
)
def test_a_run_without_any_answer_keeps_its_first_values(
    setting: str, reason: str, world: World, tmp_path: Path
) -> None:
    result = world.run(tmp_path, setting, "server=yogi")
    for line in lines(result.folder, "rounds.jsonl"):
        assert line["lost"] == {reason: 3} and line["replies"] == line["bytes_up"] == 0
        assert line["loss"] is None
    untrained, *later = lines(result.folder, "evaluations.jsonl")
    assert all({**e, "round": 0} == untrained for e in later)


def test_unequal_clients(world: World, tmp_path: Path) -> None:
    """Owners as the file names them: one or no example, a class missing, all in one cohort."""
    owners = ["partition=natural", "partition.column=site", "cohort=5", "data.test_fraction=0.05"]
    result = run_twice(world, tmp_path, owners)
    partition = read(result.folder, "partition.json")
    assert min(partition["sizes"]) == 1 and len(partition["sizes"]) in (5, 6)
    assert max(partition["sizes"]) > SITES["large"]
    assert any(0 in counts for counts in partition["counts"])
    counts = read(result.folder, "environment.json")["data"]["counts"]
    assert (counts["empty"], counts["truncated"]) == (1, 1)


def test_clients_without_an_example(world: World, tmp_path: Path) -> None:
    sparse = ["partition=dirichlet", "partition.clients=40", "partition.alpha=0.05", "cohort=20"]
    result = run_twice(world, tmp_path, sparse)
    assert 0 in read(result.folder, "partition.json")["sizes"]


@pytest.mark.parametrize(
    "registry", {s.registry.slot: s.registry for s in SLOTS.values()}.values(), ids=lambda r: r.slot
)
def test_every_entry_says_what_it_is(registry: Any) -> None:
    for entry in registry:
        summary = entry.summary()
        assert summary and summary[-1] in "." and len(summary) <= 100, entry
        assert summary != (entry.__mro__[1].__doc__ or "").split("\n")[0]  # not inherited


def test_every_strategy_says_what_it_is_and_where_it_comes_from() -> None:
    for name, strategy in STRATEGIES.items():
        assert strategy.name == name and strategy.summary.endswith(".")
        assert "arXiv" in strategy.source
        assert set(strategy.fixed) <= set(SLOTS)


def test_the_tiny_texts_are_what_the_tests_think(world: World) -> None:
    rows = [json.loads(line) for line in world.texts.read_text().splitlines()]
    assert len(rows) == sum(SITES.values()) and {r["label"] for r in rows} == set(CLASSES)
    assert np.min([len(r["text"]) for r in rows]) == 0


def read(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / name).read_text(encoding="utf-8")))
