"""Exports in the hands of others: the card's own code, run in a process without Forefed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import Command, mistake
from federation import World, text_rows, write_lines
from forefed.models.begin import BY_LOAD
from forefed.models.outside import load
from forefed.use.export import export_adapter
from forefed.use.predict import predict

TEXTS = ["w5 w6 w7", "w20 w21 w5 w30 w31 w32", "w40", "w9 w9 w22 w3"]
PAIRS = [("w5 w6", "w7"), ("w20", "w21 w5 w30"), ("w8", "w8"), ("w4 w4 w4", "w33")]
ASKED = {"pairs": PAIRS, "asker": [(a, f"{b} {a} w9 w12 w44") for a, b in PAIRS]}
"""By family, where it is not ``TEXTS``."""
ADAPTERS = {
    "lora": ["adapter=lora", "adapter.r=2"],
    "tinylora": ["adapter=tinylora", "adapter.r=3", "adapter.u=4"],
    "ia3": ["adapter=ia3"],
    "bitfit": ["adapter=bitfit"],
    "head": ["adapter=head"],
}
FORMS = {
    "lora": ("peft", "lora", "model"),
    "tinylora": ("peft", "lora", "model"),
    "ia3": ("peft", "model"),
    "bitfit": ("peft",),
    "head": ("peft", "model"),
}
CASES = [(family, a, form) for family in ("bert", "llama") for a in FORMS for form in FORMS[a]]
CASES += [("pooled", a, "peft") for a in FORMS] + [("pooled", "tinylora", "lora")]
CASES += [(family, "lora", "peft") for family in ("pairs", "asker", "rater", "tagger")]
CASES += [("bert", "bitfit", "model"), ("writer", "tinylora", "lora"), ("writer", "lora", "model")]

ELSEWHERE = """
import contextlib, io, json, re, sys, warnings
warnings.simplefilter("ignore")
asked, found = json.load(sys.stdin), {"refused": []}
from peft import AutoPeftModelForSequenceClassification as Auto, PeftModel
from transformers import AutoModelForSequenceClassification as Plain
for folder, base in asked["refused"]:
    for load in (
        lambda: PeftModel.from_pretrained(Plain.from_pretrained(base, num_labels=3), folder),
        lambda: Plain.from_pretrained(base, num_labels=3).load_adapter(folder),
        lambda: Auto.from_pretrained(folder),
    ):
        try:
            load()
            found["refused"].append("loaded")
        except Exception as error:
            found["refused"].append(str(error))
assert "forefed" not in sys.modules
for case in asked["cases"]:
    code = open(case["folder"] + "/README.md").read().split("```python\\n")[1].split("```")[0]
    code = re.sub(r"(?m)^folder = .*$", "folder = " + repr(case["folder"]), code)
    code = re.sub(r"(?m)^base = .*$", "base = " + repr(case["base"]), code)
    code = re.sub(r"(?m)^texts = .*$", "texts = " + repr(case["texts"]), code)
    space, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        exec(code, space)
    assert case["loader"] or "forefed" not in sys.modules
    answer = {"printed": printed.getvalue().splitlines()}
    if "chances" in space:
        answer["together"] = space["chances"].tolist()
        answer["alone"] = []
        for text in case["texts"]:
            inputs = space["tokenizer"]([text], return_tensors="pt")
            with space["torch"].no_grad():
                answer["alone"] += space["model"](**inputs).logits.softmax(-1).tolist()
    found[case["name"]] = answer
print(json.dumps(found))
"""


def texts_of(family: str) -> Sequence[Any]:
    return ASKED.get(family, TEXTS)


def flat(texts: Sequence[Any]) -> list[str]:
    return [t for text in texts for t in ([text] if isinstance(text, str) else text)]


@dataclass(frozen=True)
class Export:
    folder: Path
    predicted: list[Any]
    answer: dict[str, Any]


def ending_llama(root: Path, world: World) -> Path:
    """The tiny Llama with a tokeniser that puts an end token behind every text, and pads with none
    of its own."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    folder = root / "ending-llama"
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_bytes((world.llama / file).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    words = AutoTokenizer.from_pretrained(world.llama)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    words.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Run folders by family and adapter; each has learned something."""
    root = tmp_path_factory.mktemp("exports")
    llama = ending_llama(root, world)
    families = {
        "bert": ["model.pooling=pooler"],
        "pooled": ["model.pooling=mean"],
        "llama": [f"model.name='{llama}'"],
        "writer": [f"model.name='{llama}'", "data.task=causal_lm"],
    }
    words = [row["text"] for row in text_rows()]
    scored = [{"text": t, "score": len(t) / 7} for t in words]
    tagged = [{"text": t, "tags": ["a"] * (i % 2) + ["b"] * (i % 3)} for i, t in enumerate(words)]
    tables = {"score": scored, "tags": tagged}
    files = {name: write_lines(root / f"{name}.jsonl", rows) for name, rows in tables.items()}
    plain = "model.pooling=pooler"
    families |= {
        "pairs": [plain, f"data.source.path='{world.pairs}'", "data.task=pairs"],
        "asker": [*world.qa, "data.max_length=24"],
        "rater": [plain, f"data.source.path='{files['score']}'", "data.task=regression"],
        "tagger": [plain, f"data.source.path='{files['tags']}'", "data.task=multilabel"],
    }
    families["rater"] += ["data.task.label=score"]
    found = {}
    for family, adapter, _ in CASES:
        if (family, adapter) not in found:
            sets = [*families[family], *ADAPTERS[adapter], f"name={family}-{adapter}", "rounds=1"]
            step = [
                "strategy=fedavg",
                "client.optimiser.lr=0.05",
                "cohort=1",
                "partition.clients=2",
            ]
            if (family, adapter) == ("pooled", "head"):
                sets.append("model.layers=last")  # its shape is that of the class's own head
            found[family, adapter] = world.run(root, *step, *sets).folder
    return found


@pytest.fixture(scope="module")
def answers(runs: dict[tuple[str, str], Path]) -> dict[str, Any]:
    """What one process makes of all exports; it imports Forefed after all those that do without.
    First, under "refused", what plain PEFT says of heads on another pooling."""
    asked = []
    for family, adapter, form in CASES:
        run = runs[family, adapter]
        folder = exported(runs, (family, adapter, form))
        export_adapter(run, folder, form)
        base = json.loads((run / "config.json").read_text())["model"]["name"]
        name = f"{family} {adapter} {form}"
        case = {"name": name, "folder": str(folder), "base": base, "texts": texts_of(family)}
        asked.append({**case, "loader": family == "pooled"})
    refused = [exported(runs, ("pooled", "lora", "peft")), runs["pooled", "head"] / "adapter"]
    refused.append(exported(runs, ("pooled", "tinylora", "lora")))
    base = json.loads((runs["pooled", "lora"] / "config.json").read_text())["model"]["name"]
    cases = sorted(asked, key=lambda case: bool(case["loader"]))
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=json.dumps({"cases": cases, "refused": [(str(f), base) for f in refused]}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def exported(runs: dict[tuple[str, str], Path], case: tuple[str, str, str]) -> Path:
    return runs[case[:2]].parent / f"export-{'-'.join(case)}"


@pytest.fixture(scope="module")
def exports(
    runs: dict[tuple[str, str], Path], answers: dict[str, Any]
) -> dict[tuple[str, str, str], Export]:
    predicted = {key: list(predict(folder, flat(texts_of(key[0])))) for key, folder in runs.items()}
    return {
        case: Export(
            exported(runs, case),
            predicted[case[:2]],
            answers[" ".join(case)],
        )
        for case in CASES
    }


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_cards_code_gives_the_runs_predictions(
    case: tuple[str, str, str], exports: dict[tuple[str, str, str], Export]
) -> None:
    found = exports[case]
    printed = found.answer["printed"]
    if case[0] in ("writer", "asker"):
        assert printed == [f"{p.text} -> {p.predicted}" for p in found.predicted]
        return
    if case[0] in ("rater", "tagger"):
        bare = [re.sub(r" \([.0-9]+\)", "", p.predicted) for p in found.predicted]
        assert printed == [
            f"{said} {p.text}" for said, p in zip(bare, found.predicted, strict=True)
        ]
        return
    expected = [list(p.chances) for p in found.predicted]
    for way in ("together", "alone"):
        for ours, theirs in zip(expected, found.answer[way], strict=True):
            assert theirs == pytest.approx(ours, abs=1e-5)
    assert [line.split()[0] for line in printed] == [p.predicted for p in found.predicted]
    assert len({tuple(round(x, 5) for x in row) for row in expected}) > 1  # texts matter


def test_tinylora_as_lora_is_small(
    runs: dict[tuple[str, str], Path], exports: dict[tuple[str, str, str], Export]
) -> None:
    sizes = {
        form: (exports["llama", "tinylora", form].folder / "adapter_model.safetensors").stat()
        for form in ("peft", "lora")
    }
    assert sizes["lora"].st_size < sizes["peft"].st_size
    config = exports["llama", "tinylora", "lora"].folder / "adapter_config.json"
    about = json.loads(config.read_text())
    assert (about["peft_type"], about["r"], about["lora_alpha"]) == ("LORA", 3, 3)


def test_what_is_no_lora_is_refused(
    runs: dict[tuple[str, str], Path], forefed_command: Command, tmp_path: Path
) -> None:
    for adapter in ("ia3", "bitfit", "head"):
        run = runs["bert", adapter]
        said = forefed_command("export", run, tmp_path / "new", "--as", "lora")
        mistake(said, f"adapter.kind = '{adapter}'", "is no LoRA", "--as model")
    said = forefed_command("export", runs["llama", "bitfit"], tmp_path / "new", "--as", "model")
    mistake(said, "q_proj' has no bias in this architecture", "PEFT's own form")
    pooled = forefed_command("export", runs["pooled", "lora"], tmp_path / "new", "--as", "model")
    mistake(pooled, "another pooling", "forefed.load")
    gguf = forefed_command("export", run, tmp_path / "new", "--as", "gguf")
    mistake(gguf, "a head has no place in a GGUF file")
    assert not list(tmp_path.iterdir())


def test_what_plain_peft_cannot_load_says_so(
    runs: dict[tuple[str, str], Path], forefed_command: Command, tmp_path: Path
) -> None:
    """A head on another pooling, on the terminal and in the card; and nothing of it elsewhere."""
    pooled = forefed_command("export", runs["pooled", "lora"], tmp_path / "pooled")
    assert (
        "note: plain PEFT cannot load it (and refuses it)" in pooled.err
        and "forefed.load" in pooled.err
    )
    card = (tmp_path / "pooled" / "README.md").read_text()
    assert "**Mind**: plain PEFT cannot load it" in card and "library_name: forefed" in card
    other = forefed_command("export", runs["bert", "lora"], tmp_path / "bert")
    card = (tmp_path / "bert" / "README.md").read_text()
    assert not other.err and "Mind" not in card and "library_name: peft" in card


def test_plain_peft_refuses_a_head_on_another_pooling(
    exports: dict[tuple[str, str, str], Export],
    runs: dict[tuple[str, str], Path],
    answers: dict[str, Any],
) -> None:
    """Also where its shape is the class's own, so that only this keeps it from being read wrongly:
    an export, another form of it, and the run's own folder. One from before is still loaded."""
    base = json.loads((runs["pooled", "lora"] / "config.json").read_text())["model"]["name"]
    tinylora = exports["pooled", "tinylora", "lora"].folder
    said = answers["refused"]
    assert len(said) == 9 and all("to be loaded by forefed.load" in each for each in said), said

    config = tinylora / "adapter_config.json"
    before = json.loads(config.read_text())
    kind = before["peft_type"].removesuffix(BY_LOAD)
    assert kind == "LORA"
    config.write_text(json.dumps({**before, "peft_type": kind}))
    try:
        old = load(tinylora, base)
    finally:
        config.write_text(json.dumps(before))
    new = load(tinylora, base)
    inputs = new.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = [x.model(**inputs).logits for x in (old, new)]
    assert torch.equal(*logits)


def test_a_run_that_ended_badly_is_exported_by_force_only(
    runs: dict[tuple[str, str], Path], forefed_command: Command, tmp_path: Path
) -> None:
    run = runs["bert", "lora"]
    path = run / "summary.json"
    summary = path.read_text()
    try:
        worse = {**json.loads(summary), "status": "diverged", "reason": "losses are not finite"}
        path.write_text(json.dumps(worse))
        said = forefed_command("export", run, tmp_path / "new")
        mistake(said, "ended as 'diverged': losses are not finite", "--force")
        path.unlink()
        mistake(forefed_command("export", run, tmp_path / "new"), "is not finished", "--force")
        assert not list(tmp_path.iterdir())
        assert forefed_command("export", run, tmp_path / "forced", "--force").status == 0
        card = (tmp_path / "forced" / "README.md").read_text()
        assert "**The run did not end**: this is round 1 of 1" in card
    finally:
        path.write_text(summary)


def test_the_padding_token_is_in_the_export(exports: dict[tuple[str, str, str], Export]) -> None:
    for case in CASES:
        if case[0] == "llama":
            folder = exports[case].folder
            words = json.loads((folder / "tokenizer_config.json").read_text())
            model = json.loads((folder / "config.json").read_text())
            assert words["pad_token"] == "</s>" and model["pad_token_id"] == 2
            assert model["id2label"] == {"0": "animal", "1": "metal", "2": "tree"}
