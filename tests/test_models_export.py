"""A saved adapter gives the run's logits in plain PEFT, and is replaced whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.models.adapters import Adapter, HeadOnly, Lora, TinyLora
from forefed.models.export import load_adapter, save_adapter
from tiny import KINDS, moved, tiny_examples, tiny_model, tiny_task

ADAPTERS = [
    Lora(r=2, alpha=3.0, dropout=0.1),
    Lora(targets="all-linear", layers="last:1"),
    TinyLora(u=3),
    HeadOnly(),
]
CASES = [
    pytest.param(f, c, a, id=f"{f}-{'lm' if c else 'cls'}-{a.kind}{i}")
    for f, c in KINDS
    for i, a in enumerate(ADAPTERS)
    if not (c and isinstance(a, HeadOnly))
]


@pytest.mark.parametrize(("family", "causal", "adapter"), CASES)
def test_round_trip_through_peft(
    family: str, causal: bool, adapter: Adapter, tmp_path: Path
) -> None:
    from peft import PeftModel

    task = tiny_task(family, adapter, causal)
    params = moved(task.params)
    save_adapter(task, params, tmp_path / "adapter", "# card\n")
    batch = tiny_examples(4, causal, types=family == "bert").batch(range(4))
    with torch.random.fork_rng():
        loaded = PeftModel.from_pretrained(tiny_model(family, causal), tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs = loaded(**batch.inputs).logits
        assert torch.equal(task.logits(params, batch), theirs)
        assert not torch.allclose(task.logits(task.params, batch), theirs)
    again = load_adapter(task, tmp_path / "adapter")
    assert list(again) == list(params)
    assert all(torch.equal(again[n], params[n]) for n in params)


def test_files(tmp_path: Path) -> None:
    task = tiny_task("bert", TinyLora(u=3))
    folder = tmp_path / "runs" / "adapter"
    save_adapter(task, task.params, folder, "# card 1\n")
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "config.json"]
    assert sorted(p.name for p in folder.iterdir()) == names
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny/bert"
    assert config["inference_mode"] is True and config["save_projection"] is True
    assert config["target_modules"] == sorted(config["target_modules"])
    assert "/" not in json.dumps(config).replace("tiny/bert", "")
    first = {n: (folder / n).read_bytes() for n in names}
    save_adapter(tiny_task("bert", TinyLora(u=3)), task.params, folder, "# card 2\n")
    second = {n: (folder / n).read_bytes() for n in names}
    assert [n for n in names if first[n] != second[n]] == ["README.md"]
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"]


def test_a_failed_export_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task("bert", Lora())
    folder = tmp_path / "adapter"
    save_adapter(task, task.params, folder, "old")
    with pytest.raises(TypeError):
        save_adapter(task, task.params, folder, None)  # type: ignore[arg-type]
    assert (folder / "README.md").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_no_other_folder_is_overwritten(tmp_path: Path) -> None:
    task = tiny_task("bert", Lora())
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is no adapter"):
        save_adapter(task, task.params, tmp_path, "")
    assert (tmp_path / "thesis.txt").exists()


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    task = tiny_task("bert", TinyLora(u=3))
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors"):
        load_adapter(task, folder)
    save_adapter(task, task.params, folder, "")
    with pytest.raises(UserError, match="another model or adapter"):
        load_adapter(tiny_task("bert", Lora()), folder)
    with pytest.raises(UserError, match=r"has shape \(3,\), this task needs \(4,\)"):
        load_adapter(tiny_task("bert", TinyLora(u=4)), folder)
    with pytest.raises(UserError, match="another base model"):
        load_adapter(tiny_task("bert", TinyLora(u=3), key=Key(1)), folder)
    (folder / "adapter_model.safetensors").write_bytes(b"\x10")
    with pytest.raises(UserError, match="is damaged"):
        load_adapter(task, folder)
