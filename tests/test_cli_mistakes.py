"""The command line: one clear message for every mistake, and nothing overwritten."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

import forefed
from commands import Command, mistake, options
from federation import World, snapshot, text_rows, write_lines
from forefed.config.compat import EXCLUSIONS, check, conflicts
from forefed.core.errors import UserError
from forefed.run import configure
from forefed.run.checkpoint import FILE

SETTINGS: dict[str, tuple[list[str], list[str]]] = {
    "misspelt column": (["data.task.text=txet"], ["data.task.text", "txet", "'text'"]),
    "missing column": (["data.task.label=colour"], ["data.task.label", "colour", "label, site"]),
    "missing owner column": (
        ["partition=natural", "partition.column=sight"],
        ["partition.column", "'site'"],
    ),
    "no owner column": (["partition=natural"], ["partition.column"]),
    "label outside the list": (['data.task.labels=["animal", "tree"]'], ["metal"]),
    "missing file": (["data.source.path=nowhere.csv"], ["data.source.path", "nowhere.csv"]),
    "alpha 0": (["partition=dirichlet", "partition.alpha=0"], ["partition.alpha", "greater"]),
    "alpha -1": (["partition=dirichlet", "partition.alpha=-1"], ["partition.alpha", "greater"]),
    "cohort too large": (["cohort=7"], ["cohort = 7", "6"]),
    "cohort above the owners": (
        ["partition=natural", "partition.column=site", "cohort=8"],
        ["cohort = 8", "larger than the population"],
    ),
    "more liars than clients": (["start={kind='closed_form', f=7}"], ["start.f = 7", "6"]),
    "half of the owners may lie": (
        ["partition=natural", "partition.column=site", "guard={kind='held_out', f=3}"],
        ["guard.f = 3", "below"],
    ),
    "more aggregators than clients": (
        ["strategy=fedavg", "channel={kind='partial_sums', aggregators=7}"],
        ["channel.aggregators = 7", "6"],
    ),
    "more clients than texts": (["partition.clients=500"], ["partition.clients = 500"]),
    "too few texts": (["data.limit=2"], ["partition.clients"]),
    "targets match nothing": (
        ['adapter.targets=["q_projj"]'],
        ["adapter.targets", "q_projj", "attention.self.query"],
    ),
    "unknown group of targets": (
        ["adapter.targets=attention"],
        ["adapter.targets", "attention-qv"],
    ),
    "layer outside": (["adapter.layers=[9]"], ["adapter.layers", "9"]),
    "model not there": (
        ["model.name=nobody/nothing"],
        ["nobody/nothing", "hub:nobody/nothing", "minilm"],
    ),
    "model folder not there": (["model.name=./nowhere"], ["model.name", "./nowhere"]),
    "unknown key": (["roundz=3"], ["roundz", "'rounds'"]),
    "unknown key in a section": (["client.epoch=3"], ["client.epoch", "'epochs'"]),
    "unknown key in a nested table": (
        ["client.optimiser.rl=3"],
        ["client.optimiser.rl", "'lr'"],
    ),
    "wrong type": (["rounds=many"], ["rounds", "integer", "many"]),
    "wrong type in a section": (["client.batch_size=some"], ["client.batch_size"]),
    "out of range": (["rounds=-1"], ["rounds", "greater"]),
    "unknown kind": (["engine=backpropp"], ["engine", "backpropp", "'backprop'"]),
    "unknown strategy": (["strategy=fedavgg"], ["strategy", "'fedavg'"]),
    "against the strategy": (
        ["strategy=fedfgd", "engine=backprop"],
        ["engine.kind = 'backprop'", "fedfgd"],
    ),
    "name with a slash": (["name=a/b"], ["name"]),
    "no value": (["rounds"], ["rounds", "key=value"]),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_mistaken_settings(
    what: str, forefed_command: Command, world: World, tmp_path: Path
) -> None:
    sets, words = SETTINGS[what]
    said = forefed_command("run", *options(world.sets(tmp_path, *sets)))
    mistake(said, *words)
    assert not list(tmp_path.rglob("config.json"))  # it is no run, so its name stays free


def bad_texts() -> dict[str, tuple[str, bytes, list[str]]]:
    rows = text_rows()
    one_class = [{**row, "label": "tree"} for row in rows]
    headless = "a line without a header\nanother\n"
    return {
        "empty": ("texts.jsonl", b"", ["texts.jsonl", "empty"]),
        "only a header": ("texts.csv", b"text,label\n", ["texts.csv", "no rows"]),
        "one class": ("texts.jsonl", dumps(one_class), ["tree", "two classes"]),
        "not UTF-8": (
            "texts.csv",
            b"text,label\nw5,tree\nw\xe9,metal\n",
            ["texts.csv, line 3", "UTF-8", "0xe9"],
        ),
        "not JSON": ("texts.jsonl", dumps(rows[:2]) + b"{oh\n", ["texts.jsonl, line 3"]),
        "no header": ("texts.csv", headless.encode(), ["data.task"]),
        "missing label": (
            "texts.jsonl",
            dumps([*rows, {"text": "w5", "site": "x"}]),
            [f"row {len(rows) + 1}", "label"],
        ),
        "unknown suffix": ("texts.docx", b"w5", ["texts.docx", "suffix"]),
    }


def dumps(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("what", bad_texts())
def test_faulty_files(what: str, forefed_command: Command, world: World, tmp_path: Path) -> None:
    name, content, words = bad_texts()[what]
    file = tmp_path / name
    file.write_bytes(content)
    said = forefed_command("run", *options(world.sets(tmp_path, f"data.source.path='{file}'")))
    mistake(said, *words)
    assert file.read_bytes() == content and not list(tmp_path.rglob("config.json"))


ESTIMATED = ["directions.k=4"]
NEWTON = [
    *(
        "strategy=spry",
        "codec=dense",
        "client.max_steps=1",
        "client.optimiser={kind='sgd', lr=1.0}",
    ),
    *("engine.curvature=true", 'modifiers=["gauss_newton"]'),
]
BROUGHT = ("strategy=fedavg", "client=trainer")
CONTRADICTIONS: dict[str, list[str]] = {
    "client.keep_optimiser": ["codec=scalars", "client.keep_optimiser=true"],
    "modifiers: 'clip' works on delta": ["codec=scalars", 'transforms=["clip"]'],
    "modifiers: the same one twice": ['modifiers=["clip", "clip"]'],
    "client.sampler.kind = 'poisson'": ["client.sampler=poisson"],
    "select.kind = 'poisson'": ["select=poisson", "oversampling=0.5"],
    "sharing.kind = 'personal_head': private": ["sharing=personal_head", "codec=scalars"],
    "sharing.kind = 'personal_head': start": ["sharing=personal_head", "start=closed_form"],
    "guard.kind = 'held_out': a log": ["guard=held_out", "codec=scalars"],
    "guard.kind = 'held_out': clients": ["guard=held_out", "sharing=personal_head"],
    "guard.kind = 'held_out' needs": ["guard=held_out", "data.client_test_fraction=0"],
    "adapter.kind = 'head': a language": [
        *("strategy=fedavg", "adapter=head", "data.task=causal_lm")
    ],
    "start.kind = 'closed_form': spans": ["start=closed_form", "data.task=causal_lm"],
    "start: with download.kind": ["strategy=fedkseed", "start=closed_form"],
    "start.then = 'frozen'": ["strategy=fedavg", "start=closed_form", "adapter=head"],
    "topology.kind = 'gossip' has no server": ["strategy=spry", "topology=gossip", "codec=dense"],
    "topology.gamma": ["strategy=fedavg", "topology=gossip", "codec=sparse"],
    "modifiers: 'error_feedback' carries": [
        "strategy=fedavg",
        "topology={kind='gossip', gamma=0.1}",
        "codec=sparse",
        'modifiers=["error_feedback"]',
    ],
    "aggregator.pivot = 'own'": [
        "strategy=fedavg",
        'aggregator={kind="nna", pivot="own"}',
    ],
    "sharing.kind = 'personal_head': with": ["sharing=personal_head", "adapter=head"],
    "sharing.kind = 'personal_head': a language": ["sharing=personal_head", "data.task=causal_lm"],
    "directions.head_k": ["strategy=spry", "directions.head_k=4"],
    "engine.kind = 'exact_head'": ["engine=exact_head"],
    "directions.kind = 'basis' over": ["adapter=head", "engine.head=perturbed", "directions=basis"],
    "memory: budgets": ["strategy=spry", "memory=2GB"],
    "memory: the shares": ["engine=auto", 'memory=[{budget="1GB", share=0.4}]'],
    "engine.sub_batches": ["engine.sub_batches=2", "directions=basis"],
    "modifiers: 'proximal' pulls": ["client.proximal=0.1", "client.max_steps=1"],
    "cohort_min": ["cohort_min=50"],
    "data.test_on": ["data.test_on=validation", 'partition={kind="sites", names=["a"]}'],
    "faults": ["faults.error=0.6", "faults.crash=0.6"],
    "directions: an exact": ["strategy=fedavg", "directions.shared=true"],
    "directions.shared with": ["codec=scalars", "engine.shared=true", "client.optimiser=adamw"],
    "directions.kind = 'candidates' compares": [
        *(*ESTIMATED, "engine.candidates=4", "engine.law=gauss16")
    ],
    "directions.kind = 'candidates': the bias": [
        *(*ESTIMATED, "directions={kind='candidates', count=4}", "memo=last_update")
    ],
    "modifiers: 'last_update' is broadcast": ["memo=last_update"],
    "modifiers: 'curvature' shapes": ["memo=curvature", "codec=scalars", "directions=basis"],
    "modifiers: 'curvature' changes": [
        *(*ESTIMATED, "memo=curvature", "codec=scalars", "engine.pool=8")
    ],
    "download.kind = 'scalars'": ["download=scalars"],
    "download.kind = 'pool'": ["download=pool"],
    "aggregator.kind = 'median' asks": ["codec=sparse", "aggregator=median"],
    "modifiers: 'error_feedback' keeps": ["codec=dense", 'modifiers=["error_feedback"]'],
    "modifiers: 'clip' would change": ["codec=sparse", 'modifiers=["dgc", "clip"]'],
    "aggregator.kind = 'mud_hog' keeps": [
        "strategy=fedavg",
        "aggregator=mud_hog",
        "trigger=variance",
    ],
    "aggregator.kind = 'mud_hog' compares": [
        "codec=scalars",
        "directions.shared=true",
        "client.optimiser=sgd",
        "aggregator=mud_hog",
    ],
    "attack.kind = 'sign_flip' is simulated": [
        "strategy=fedavg",
        "attack=sign_flip",
        'partition={kind="sites", names=["a"]}',
    ],
    "attack.kind = 'sign_flip' replaces": [
        "strategy=fedavg",
        "channel=secure_sum",
        "attack=sign_flip",
    ],
    "attack.kind = 'mpaf' makes": ["codec=scalars", "attack=mpaf"],
    "attack.kind = 'min_max' compares": ["codec=scalars", "attack=min_max"],
    "attack.compromised: what": ["strategy=fedavg", "attack=min_max", "attack.compromised=1"],
    "attack.compromised draws": [
        "strategy=fedavg",
        "attack=min_max",
        "attack.compromised=1",
        "attack.knowledge=partial",
        "data.task=causal_lm",
    ],
    "attack.knowledge = 'none": [
        "codec=scalars",
        "directions.shared=true",
        "client.optimiser=sgd",
        "attack=min_max",
        "attack.knowledge=none",
    ],
    "attack.kind = 'label_flip' changes": [
        "strategy=fedavg",
        "attack=label_flip",
        "data.task=causal_lm",
    ],
    "cohort = 3 is below": ["strategy=fedavg", "channel=secure_sum", "cohort=3"],
    "aggregator.kind = 'median' reads": [
        "strategy=fedavg",
        "channel=secure_sum",
        "aggregator=median",
    ],
    "codec.kind = 'quantised': channel": [
        "strategy=fedavg",
        "channel=secure_sum",
        "codec=quantised",
    ],
    "channel.kind = 'secure_sum': slopes": [
        "strategy=fedavg",
        "channel=secure_sum",
        "codec=scalars",
        "client.max_steps=1",
    ],
    "channel.kind = 'secure_sum': all": [
        "strategy=fedavg",
        "channel=secure_sum",
        "codec=scalars",
        "directions.shared=true",
        "client.optimiser=sgd",
        "engine=forward",
    ],
    "download.kind = 'pool' replays": [
        "strategy=fedkseed",
        "channel=secure_sum",
        "client.max_steps=1",
        "directions.shared=true",
    ],
    "topology.kind = 'gossip' has": ["strategy=fedavg", "channel=secure_sum", "topology=gossip"],
    "server.schedule: only": ['server.schedule=["linear", "cosine"]'],
    "modifiers: 'scaffold' takes": ["strategy=fedavg", 'modifiers=["scaffold"]'],
    "modifiers: 'scaffold' counts": [
        "strategy=fedavg",
        "client.optimiser=sgd",
        "client.max_steps=2",
        "client.sampler={kind='poisson', rate=0.1}",
        'modifiers=[{kind="dp_example", noise_multiplier=0.5}, "scaffold"]',
    ],
    "modifiers: 'momentum' would change what 'scaffold'": [
        "strategy=fedavg",
        "client.optimiser=sgd",
        'modifiers=["scaffold", "momentum"]',
    ],
    "modifiers: 'logit_adjustment' is": [
        "strategy=fedavg",
        "data.task=regression",
        'modifiers=["logit_adjustment"]',
    ],
    "modifiers: 'logit_adjustment' makes": [
        "strategy=fedavg",
        "client.max_steps=2",
        "client.sampler={kind='poisson', rate=0.1}",
        'modifiers=["logit_adjustment", {kind="dp_example", noise_multiplier=0.5}]',
    ],
    "oversampling: under": ["strategy=fedavg", "channel=secure_sum", "oversampling=0.5"],
    "memory: groups with": [
        "strategy=fedavg",
        "channel=secure_sum",
        "engine=auto",
        'memory=[{budget="1GB", share=0.4},{budget="2GB", share=0.6}]',
    ],
    "aggregator.kind = 'fedex' is": ["strategy=spry", "adapter=tinylora", "aggregator=fedex"],
    "aggregator.kind = 'flora' adds": ["strategy=fedavg", "aggregator=flora"],
    "adapter.fold: aggregator": ["strategy=fedavg", "adapter.fold=true"],
    "aggregator.kind = 'fedex' needs every": ["strategy=fedex", "codec=scalars"],
    "aggregator.kind = 'fedex' needs both": ["strategy=fedex", "sharing=fedsa_lora"],
    "aggregator.kind = 'fedex' gives": ["strategy=fedex", "server=adam"],
    "aggregator.kind = 'flexlora' gives": ["strategy=flexlora", 'modifiers=["feddyn"]'],
    "aggregator.kind = 'flora' makes": ["strategy=flora", "client.keep_optimiser=true"],
    "aggregator.kind = 'fedsvd' averages": ["strategy=fedavg", "aggregator=fedsvd"],
    "sharing.kind = 'ranks': aggregator": ["strategy=fedavg", "sharing=ranks"],
    "sharing.ranks = 'auto' goes": ["strategy=hetlora", "sharing.ranks=auto"],
    "sharing.kind = 'ranks': attack": ["strategy=hetlora", "attack=sign_flip"],
    "sharing.kind = 'ffa_lora': adapter": ["strategy=spry", "adapter=tinylora", "sharing=ffa_lora"],
    "sharing.kind = 'ffa_lora': download": [
        *("strategy=fedkseed", "adapter=lora", "sharing=ffa_lora")
    ],
    "sharing.after": ["strategy=fedavg", "sharing=fine_tune"],
    "sharing.kind = 'local_labels'": [
        *("strategy=fedavg", "sharing=local_labels", "data.task=causal_lm")
    ],
    "modifiers: 'feddyn' keeps": ["strategy=spry", 'modifiers=["feddyn"]', "client.max_steps=2"],
    "modifiers: 'feddyn' corrects": ["strategy=feddyn", "sharing=personal_head"],
    "modifiers: 'feddyn' gives": ["strategy=feddyn", "server=adam"],
    "sharing.kind = 'flow': adapter": ["strategy=fedavg", "sharing=flow"],
    "client.kind = 'flow': sharing": ["strategy=fedavg", "client=flow"],
    "sharing.kind = 'hyperfl': adapter": ["strategy=fedavg", "sharing=hyperfl"],
    "sharing.kind = 'hyperfl': a language": ["strategy=hyperfl", "data.task=causal_lm"],
    "client.kind = 'hyperfl': sharing": ["strategy=fedavg", "client=hyperfl"],
    "adapter.kind = 'lora_flow': sharing": ["strategy=fedavg", "adapter=lora_flow"],
    "model.adapter: with adapter.kind": ["strategy=flow", "model.adapter=there"],
    "client.keep_optimiser: client": ["strategy=flow", "client.keep_optimiser=true"],
    "modifiers: 'proximal' acts on every": ["strategy=flow", 'modifiers=["proximal"]'],
    "topology.buffer": ["strategy=fedbuff", "topology.buffer=20"],
    "topology.kind = 'buffered' applies": ["strategy=fedbuff", "codec=scalars"],
    "client.kind = 'best_of_three': with sharing.kind": [
        *("strategy=fedavg", "client=best_of_three")
    ],
    "sharing.kind = 'best_of_three': client.kind": ["strategy=fedavg", "sharing=best_of_three"],
    "sharing.ranks = 'auto': what a step takes": [
        *("strategy=hetlora", "sharing.ranks=auto", "client.batch_size=all"),
        'partition={kind="sites", names=["a", "b"]}',
        *("cohort=2", "model.name=tiny"),
    ],
    "topology.kind = 'buffered' hears": ["strategy=fedbuff", "channel=secure_sum"],
    "topology.slow is of": [
        *("strategy=fedbuff", "topology.slow=0.5", 'partition={kind="sites", names=["a"]}')
    ],
    "cohort_min = 5 is more than": ["strategy=fedbuff", "cohort_min=5"],
    "topology.kind = 'buffered' decides": ["strategy=fedbuff", "oversampling=0.5"],
    "guard.kind = 'held_out': with topology": ["strategy=fedbuff", "guard=held_out"],
    "client.sampler.kind = 'curriculum'": [
        "strategy=fedavg",
        "client.sampler=curriculum",
        'modifiers=[{kind="dp_client", noise_multiplier=0.5}]',
    ],
    "client.epochs: with": [*BROUGHT, "client.epochs=3"],
    "engine.kind = 'forward': with client.kind": [*BROUGHT, "engine=forward"],
    "codec.kind = 'scalars' sends slopes, which": [*BROUGHT, "codec=scalars"],
    "modifiers: 'logit_adjustment' has a say": [*BROUGHT, 'modifiers=["logit_adjustment"]'],
    "sharing.kind = 'local_labels' reads": [*BROUGHT, "sharing=local_labels"],
    "start.kind = 'closed_form' asks": [*BROUGHT, "start=closed_form"],
    "aggregator.past adds": [
        "strategy=decomfl",
        'aggregator={kind="dnc", past=true}',
    ],
    "channel.neighbours = 4 and": [
        "strategy=fedavg",
        'channel={kind="secure_sum", neighbours=4, min_group=6}',
        "cohort=12",
    ],
    "topology.kind = 'dadao' is": ["strategy=dadao", "client.batch_size=8"],
    "topology.ridge: a loss": ["strategy=dadao", "topology.ridge=0", "topology.convexity=0"],
    "engine.kind = 'block_local': numbers": [
        "strategy=fedavg",
        "engine=block_local",
        "adapter=tinylora",
    ],
    "engine.kind = 'block_local' sees": [
        "strategy=fedavg",
        "engine=block_local",
        "client.sampler=poisson",
        "client.max_steps=4",
        'modifiers=[{kind="dp_example", noise_multiplier=1}]',
    ],
    "engine.kind = 'surrogate' goes through losses of earlier": [
        "strategy=fzoos",
        "client.batch_size=8",
    ],
    "engine.kind = 'surrogate' keeps": [
        "strategy=fedavg",
        "engine=surrogate",
        "client.batch_size='all'",
        "sharing=personal_head",
    ],
    "engine.kind = 'surrogate' goes through losses of one": [
        "strategy=fzoos",
        "adapter={kind='lora', dropout=0.1}",
    ],
    "guard.f: who lies": [
        "strategy=fedavg",
        "channel=secure_sum",
        'guard={kind="held_out", f=1}',
    ],
    "modifiers: 'fzoos' corrects": ["strategy=fedavg", 'modifiers=["fzoos"]'],
    "modifiers: what 'fzoos' sends": ["strategy=fzoos", "attack=sign_flip"],
    "modifiers: 'fzoos' wants": ["strategy=fzoos", "topology=buffered"],
    "engine.curvature: nobody reads": ["strategy=spry", "engine.curvature=true"],
    "engine.curvature is over unit": [*NEWTON, "directions=fresh"],
    "modifiers: 'gauss_newton' sends what": [*NEWTON, "engine.curvature=false"],
    "modifiers: 'gauss_newton' is about": [*NEWTON, "client.max_steps=2"],
    "modifiers: 'gauss_newton' knows": [*NEWTON, "sharing=personal_head"],
    "modifiers: 'gauss_newton' with": [
        *NEWTON,
        'modifiers=[{kind="gauss_newton", blocks="all"}]',
    ],
    "model.pooling: a script's": [
        *BROUGHT,
        'partition={kind="sites", names=["a"]}',
        "model.pooling=mean",
    ],
}


@pytest.mark.parametrize("about", CONTRADICTIONS)
def test_contradictory_settings(about: str, forefed_command: Command, tmp_path: Path) -> None:
    sets = [*CONTRADICTIONS[about], f"out='{tmp_path}'"]
    for command in ("check", "run"):
        mistake(forefed_command(command, *options(sets)), about)
    assert not list(tmp_path.rglob("config.json"))


def test_every_exclusion_has_a_case() -> None:
    broken = set()
    for about, sets in CONTRADICTIONS.items():
        hits = conflicts(configure(sets=sets))
        assert len(hits) == 1 and hits[0].startswith(about), (about, hits)
        broken.add(hits[0])
    assert len(broken) == len(CONTRADICTIONS) == len(EXCLUSIONS) + written_beside_choices()


def written_beside_choices() -> int:
    """Reasons in the ``conflicts`` of all choices, as their files have them. (What peers cannot do
    is asked by themselves, and stands in no run's.)"""
    methods = [
        node
        for file in Path(forefed.__file__).parent.rglob("*.py")
        if file.name != "peer.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("conflicts")
    ]
    return sum(isinstance(x, ast.Yield) for method in methods for x in ast.walk(method))


def test_all_contradictions_are_told_at_once() -> None:
    both = [*CONTRADICTIONS["client.keep_optimiser"], *CONTRADICTIONS["faults"]]
    with pytest.raises(UserError) as error:
        check(configure(sets=both))
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"rounds = = 3\n", ["mine.toml", "TOML", "line 1"]),
        (b'name = "\xff"\n', ["mine.toml"]),
        (None, ["mine.toml", "no such"]),
        (b"[client]\nepoch = 3\n", ["client.epoch", "'epochs'"]),
        (b"client = 3\n", ["client"]),
        (b'strategy = ["fedavg"]\n', ["strategy"]),
        (b"[[engine]]\nkind = 'forward'\n", ["engine"]),
        (b'transforms = "clip"\n', ["transforms"]),
    ],
)
def test_faulty_toml(
    content: bytes | None, words: list[str], forefed_command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)
    for command in ("check", "run"):
        mistake(forefed_command(command, file, "--set", f"out='{tmp_path}'"), *words)


def test_a_damaged_checkpoint(
    forefed_command: Command, finished: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished["unfinished"], tmp_path / "unfinished")
    path = folder / FILE
    path.write_bytes(path.read_bytes()[:-9])
    before = snapshot(folder)
    place = ["--set", f"out='{tmp_path}'"]
    mistake(forefed_command("run", folder, "--resume", *place), "checkpoint.safetensors", "damaged")
    mistake(forefed_command("predict", folder, "w5"), "checkpoint.safetensors", "damaged")
    assert snapshot(folder) == before


def test_a_damaged_configuration(forefed_command: Command, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"rounds": ')
    mistake(forefed_command("run", tmp_path), "config.json", "damaged")


def test_export_overwrites_nothing(
    forefed_command: Command, finished: dict[str, Path], tmp_path: Path
) -> None:
    write_lines(tmp_path / "precious.jsonl", [{"a": 1}])
    before = snapshot(tmp_path)
    said = forefed_command("export", finished["classification"], tmp_path)
    mistake(said, str(tmp_path), "not empty")
    file = tmp_path / "precious.jsonl"
    mistake(forefed_command("export", finished["classification"], file), "precious.jsonl")
    assert snapshot(tmp_path) == before


def test_unfinished_runs(
    forefed_command: Command, finished: dict[str, Path], tmp_path: Path
) -> None:
    said = forefed_command("export", finished["unfinished"], tmp_path / "new")
    mistake(said, "not finished", "--resume")
    assert not (tmp_path / "new").exists()
    early = shutil.copytree(finished["unfinished"], tmp_path / "early")
    (early / FILE).unlink()
    mistake(forefed_command("predict", early, "w5"), "nothing is trained yet")


@pytest.mark.parametrize("command", ["predict", "export", "report"])
def test_folders_without_a_run(command: str, forefed_command: Command, tmp_path: Path) -> None:
    more = {"predict": ["w5"], "export": [tmp_path / "new"], "report": []}[command]
    mistake(forefed_command(command, tmp_path / "nowhere", *more), "nowhere")
    assert not list(tmp_path.iterdir())


def test_unknown_list(forefed_command: Command) -> None:
    mistake(forefed_command("list", "engine"), "'engines'")


@pytest.mark.parametrize("arguments", [["rum"], ["run", "--no-such"], ["predict"], ["export"]])
def test_misuse_of_the_program(arguments: list[str], forefed_command: Command) -> None:
    said = forefed_command(*arguments)
    assert said.status == 2 and said.err and "Traceback" not in said.err
