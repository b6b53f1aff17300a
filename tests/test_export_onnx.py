"""Graphs of trained classifiers in the hands of others: the card's own code, run by ONNX Runtime in
a process that has neither Forefed nor torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from commands import Command, mistake
from federation import World, text_rows, write_lines
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
folder, texts = json.load(sys.stdin)
code = open(folder + "/README.md").read().split("```python\\n")[1].split("```")[0]
code = re.sub(r"(?m)^folder = .*$", "folder = " + repr(folder), code)
code = re.sub(r"(?m)^texts = .*$", "texts = " + repr(texts), code)
space, printed = {}, io.StringIO()
with contextlib.redirect_stdout(printed):
    exec(code, space)
assert not {"forefed", "torch", "transformers"} & sys.modules.keys()
print(json.dumps([printed.getvalue().splitlines(), space["logits"].tolist()]))
"""


def elsewhere(folder: Path) -> tuple[list[str], np.ndarray]:
    """What the card's code prints, and the logits."""
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=json.dumps([str(folder), TEXTS]),
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


def test_what_no_graph_is_made_of(
    world: World, tmp_path: Path, forefed_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.run(tmp_path, *world.lm, "rounds=0").folder
    said = forefed_command("export", run, tmp_path / "new", "--as", "onnx")
    mistake(said, "made of classes, labels and numbers", "data.task.kind = 'causal_lm'")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = forefed_command("export", run, tmp_path / "new", "--as", "onnx")
    mistake(said, "pip install 'forefed[onnx]'")
    assert not (tmp_path / "new").exists()
