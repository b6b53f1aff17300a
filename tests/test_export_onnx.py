"""Graphs of trained models in the hands of others: the card's own code, run by ONNX Runtime in
a process that has neither Forefed nor torch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from commands import Command, mistake
from federation import World, text_rows, tokenizer, write_lines
from forefed.run.start_result import load_begun
from forefed.use.export import export_adapter
from forefed.use.predict import predict

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

TEXTS = [
    "w5 w6 w7",
    "w9 " * 20 + "w20 w21",
    "w40",
    "w20 w21 w5 w30 w31 w32 w9 w9 w9 w9 w9 w9 w9 w22",
]

ELSEWHERE = """
import contextlib, io, json, re, sys
folder, texts, of = json.load(sys.stdin)
code = open(folder + "/README.md").read().split("```python\\n")[1].split("```")[0]
code = re.sub(r"(?m)^folder = .*$", "folder = " + repr(folder), code)
code = re.sub(r"(?m)^texts = .*$", "texts = " + repr(texts), code)
space, printed = {}, io.StringIO()
with contextlib.redirect_stdout(printed):
    exec(code, space)
assert not {"forefed", "torch", "transformers"} & sys.modules.keys()
found = space[of]
print(json.dumps([printed.getvalue().splitlines(), getattr(found, "tolist", lambda: found)()]))
"""


def elsewhere(
    folder: Path, texts: Sequence[str] = TEXTS, of: str = "logits"
) -> tuple[list[str], np.ndarray]:
    """What the card's code prints, and what it calls ``of``."""
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=json.dumps([str(folder), [*texts], of]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed, logits = json.loads(done.stdout.splitlines()[-1])
    return printed, np.array(logits)


def test_pooled_head_words_and_long_texts(world: World, tmp_path: Path) -> None:
    """The default of an encoder: a solved head on the mean of three layers, beside words that are
    read beyond what the model reads."""
    sets = ["strategy=fedavg", "adapter={kind='lora', r=2}", "client.optimiser.lr=0.05"]
    solved = ["start={kind='closed_form', words=40, words_length=64}", "model.pooling=mean"]
    run = world.run(tmp_path, *sets, *solved, "rounds=1").folder
    begun = load_begun(run)
    assert begun is not None and begun.words is not None and begun.words.times != 0
    folder = tmp_path / "graph"
    assert export_adapter(run, folder, "onnx") == ""
    kept = {p.name for p in folder.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", "README.md"} <= kept
    assert not kept & {"forefed_head.json", "forefed_words.safetensors", "adapter_config.json"}
    card = (folder / "README.md").read_text()
    assert "library_name: onnx" in card and "Mind" not in card
    printed, logits = elsewhere(folder)
    predicted = list(predict(run, TEXTS))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(chances, [p.chances for p in predicted], atol=1e-5)
    assert [line.split()[0] for line in printed] == [p.predicted for p in predicted]
    # any number of rows and tokens; padding on the right has no part in it
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    for rows, width in ((1, 1), (3, 30)):
        one = np.ones((rows, width), dtype=np.int64)
        mask = one * (np.arange(width) < 3)
        asked = {"input_ids": 4 * one, "attention_mask": mask, "token_type_ids": 0 * one}
        asked = {x.name: asked[x.name] for x in session.get_inputs()}
        (many,) = session.run(None, asked)
        (few,) = session.run(None, {n: x[:1, :3] for n, x in asked.items()})
        np.testing.assert_allclose(many, np.repeat(few, rows, 0), atol=1e-5)


@pytest.mark.full  # an export of its own takes torch's exporter five seconds
def test_a_number_by_the_class_of_transformers(
    world: World, tmp_path: Path, forefed_command: Command
) -> None:
    rows = [{"text": r["text"], "score": len(r["text"]) / 7} for r in text_rows()]
    file = write_lines(tmp_path / "score.jsonl", rows)
    sets = ["strategy=fedavg", "adapter={kind='tinylora', r=2, u=4}", "data.task=regression"]
    where = [f"data.source.path='{file}'", "data.task.label=score", "rounds=1"]
    run = world.run(tmp_path, *sets, *where).folder
    said = forefed_command("export", run, tmp_path / "graph", "--as", "onnx")
    assert said.status == 0, said.err
    printed, _ = elsewhere(tmp_path / "graph")
    bare = [re.sub(r" \([.0-9]+\)", "", p.predicted) for p in predict(run, TEXTS)]
    numbers = [float(line.split()[0]) for line in printed]
    np.testing.assert_allclose(numbers, [float(x) for x in bare], rtol=2e-3)


def language_run(world: World, tmp_path: Path, task: str) -> tuple[Path, list[str]]:
    """A short run of a tiny Llama with a chat template, and texts to ask it."""
    words = tokenizer(types=False)
    words.chat_template = (
        "{% for m in messages %}{{ 'w5 ' if m.role == 'assistant' else 'w4 ' }}{{ m.content }} "
        "</s> {% endfor %}{% if add_generation_prompt %}w5 {% endif %}"
    )
    llama = shutil.copytree(world.llama, tmp_path / "llama")
    words.save_pretrained(llama)
    rows = [{"prompt": f"w{6 + i % 3} w9", "completion": f"w{20 + i % 3}"} for i in range(48)]
    table = write_lines(tmp_path / "rows.jsonl", rows)
    sets = [f"model.name='{llama}'", f"data.source.path='{table}'", f"data.task={task}"]
    sets += ["strategy=fedavg", "adapter.targets=all-linear", "client.optimiser.lr=0.02"]
    sets += ["partition.clients=2", "cohort=2", "rounds=1", "evaluate.every=9"]
    return world.run(tmp_path, *sets).folder, ["w6 w9", "w7 w9", "w8 w9"]


@pytest.mark.full  # torch's exporter takes five seconds
@pytest.mark.parametrize("template", ["auto", "none"])
def test_a_language_model_says_what_predict_says(
    world: World, tmp_path: Path, template: str
) -> None:
    task = f"{{kind='causal_lm', template='{template}', prompt='prompt', text='completion'}}"
    run, asked = language_run(world, tmp_path, task)
    export_adapter(run, tmp_path / "graph", "onnx")
    export_adapter(run, tmp_path / "whole", "model")
    printed, _ = elsewhere(tmp_path / "graph", asked, of="text")
    said = [p.predicted for p in predict(run, asked, tokens=100)]
    assert [line.partition(" -> ")[2] for line in printed] == said
    session = onnxruntime.InferenceSession(str(tmp_path / "graph" / "model.onnx"))
    ids = torch.arange(3, 13).view(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype="float32")
    with torch.no_grad():
        expected = whole(input_ids=ids, attention_mask=mask).logits
    fed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    (found,) = session.run(None, fed)
    np.testing.assert_allclose(found[mask > 0], expected[mask > 0], atol=1e-5)


@pytest.mark.full
def test_classes_as_words_have_predicts_chances(world: World, tmp_path: Path) -> None:
    task = "{kind='choice', text='prompt', label='completion', prompt='{text} w3'}"
    run, asked = language_run(world, tmp_path, task)
    export_adapter(run, tmp_path / "graph", "onnx")
    printed, chances = elsewhere(tmp_path / "graph", asked, of="chances")
    predicted = list(predict(run, asked))
    np.testing.assert_allclose(chances, predicted[-1].chances, atol=1e-5)
    assert [line.split()[0] for line in printed] == [p.predicted for p in predicted]


def test_what_no_graph_is_made_of(
    world: World, tmp_path: Path, forefed_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.run(tmp_path, *world.qa, "rounds=0").folder
    said = forefed_command("export", run, tmp_path / "new", "--as", "onnx")
    mistake(said, "numbers and language models", "data.task.kind = 'qa'")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = forefed_command("export", run, tmp_path / "new", "--as", "onnx")
    mistake(said, "pip install 'forefed[onnx]'")
    assert not (tmp_path / "new").exists()
