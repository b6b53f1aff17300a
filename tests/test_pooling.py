"""Pooling: what `auto` reads from a checkpoint, and that a head on it is what the run says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import forefed
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.directions.sets import BasisDirections
from forefed.gradients.forward import Forward
from forefed.models.adapters import Adapter, BitFit, HeadOnly, Ia3, Lora, TinyLora
from forefed.models.export import save_adapter
from forefed.models.inspect import Facts
from forefed.models.load import load_task
from forefed.models.pooling import choose, pool
from forefed.models.prefix import FrozenPrefix
from forefed.models.prefix_cache import PrefixCache
from forefed.models.settings import ModelSettings
from forefed.models.task import Task
from test_models_load import saved
from tiny import moved, tiny_examples, tiny_model
from tiny_configs import tiny_config

H_BSH = torch.tensor([[[1.0], [2.0], [6.0]], [[3.0], [5.0], [9.0]]])
MASK_BS = torch.tensor([[1, 1, 1], [1, 1, 0]])


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", [3.0, 4.0]), ("cls", [1.0, 3.0]), ("last", [6.0, 5.0])]
)
def test_padding_has_no_part_in_a_pooling(pooling: Any, expected: list[float]) -> None:
    assert pool(H_BSH, MASK_BS, pooling)[:, 0].tolist() == expected
    assert torch.equal(pool(H_BSH, torch.ones(2, 3), pooling), pool(H_BSH, None, pooling))


def facts(architecture: str, said: dict[str, bool] | None = None, family: str = "bert") -> Facts:
    class Of(Facts):
        pooling = said

    raw = {"architectures": [architecture]}
    return Of("m", Path(), tiny_config(family), raw, {})


def test_auto_takes_what_the_checkpoint_says() -> None:
    def auto(*args: Any) -> str:
        return choose(ModelSettings(name="m"), facts(*args))

    mean = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    assert auto("BertModel", mean) == "mean"
    assert auto("BertModel", {"pooling_mode_cls_token": True, "include_prompt": True}) == "cls"
    assert auto("LlamaModel", {"pooling_mode_lasttoken": True}, "llama") == "last"
    assert auto("BertForMaskedLM") == "mean"
    assert auto("BertForSequenceClassification", mean) == "pooler"
    assert auto("LlamaForCausalLM", None, "llama") == "last"
    assert auto("LlamaForSequenceClassification", None, "llama") == "pooler"
    assert auto("ModernBertForMaskedLM", None, "modernbert") == "pooler"
    with pytest.raises(
        UserError, match=r"not known here \(max_tokens\); set model\.pooling to one"
    ):
        auto("BertModel", {"pooling_mode_max_tokens": True})


def task_of(
    folder: Path,
    family: str,
    pooling: str,
    adapter: Adapter = Lora(),  # noqa: B008 (frozen)
    layers: str = "last",
    **said: bool,
) -> Task:
    model = tiny_model(family, dtype=torch.float32)
    settings = saved(folder, getattr(model, model.base_model_prefix))
    if said:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    reads = {"pooling": pooling, "layers": layers}
    chosen = ModelSettings(name=settings.name, dtype="float32", **reads)  # type: ignore[arg-type]
    return load_task(chosen, adapter, Key(1), ["a", "b", "c"])[0]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert", "llama", "opt"])
def test_the_head_is_one_linear_map_of_the_pooled_tokens(
    family: str, pooling: str, tmp_path: Path
) -> None:
    if family in ("llama", "opt") and pooling == "cls":
        with pytest.raises(UserError, match="first token of a decoder sees nothing"):
            task_of(tmp_path, family, pooling)
        return
    task = task_of(tmp_path, family, pooling)
    params = moved(task.params)
    batch = tiny_examples(5, types=family == "bert").batch(range(5))
    weight, bias = (
        next(params[n] for n in task.head if n.endswith(end)) for end in ("weight", "bias")
    )
    assert len(task.head) == 2 and weight.shape == (3, 16)

    def hidden() -> torch.Tensor:
        base = task.model.get_base_model()
        return getattr(base, base.base_model_prefix)(**task.logits.inputs(batch))[0]

    with torch.no_grad():
        call = task.logits.call_of(params, batch)
        found = task.logits(params, batch)
        pooled = pool(
            task.logits.functional.run(call, hidden), batch.inputs["attention_mask"], pooling
        )
    torch.testing.assert_close(found, pooled @ weight.T + bias)


def test_auto_reads_the_folder_and_drops_a_pooler_that_nobody_reads(tmp_path: Path) -> None:
    task = task_of(tmp_path / "a", "bert", "auto", pooling_mode_cls_token=True)
    base = task.model.get_base_model()
    assert base.pooling == "cls" and base.bert.pooler is None
    assert task_of(tmp_path / "b", "bert", "auto").model.get_base_model().pooling == "mean"
    assert task_of(tmp_path / "c", "gpt2", "auto").model.get_base_model().pooling == "last"


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "modernbert"])
def test_spread_layers_are_what_enters_the_first_and_the_middle_block(
    family: str, tmp_path: Path
) -> None:
    task = task_of(tmp_path, family, "mean", layers="spread")
    batch = tiny_examples(5, types=family == "bert").batch(range(5))
    weight = next(task.params[n] for n in task.head if n.endswith("weight"))
    base = task.model.get_base_model()
    with torch.no_grad():
        body = getattr(base, base.base_model_prefix)
        states = body(**task.logits.inputs(batch), output_hidden_states=True).hidden_states
        mask = batch.inputs["attention_mask"]
        pooled = torch.cat([pool(states[i], mask, "mean") for i in (0, 1, 2)], 1)
        found = task.logits(task.params, batch)
    assert weight.shape == (3, 48)
    torch.testing.assert_close(found, pooled @ weight.T)


def test_a_kept_prefix_does_not_change_what_early_layers_say(tmp_path: Path) -> None:
    task = task_of(tmp_path, "bert", "mean", HeadOnly(), layers="spread")
    prefix = FrozenPrefix(task, PrefixCache(10**6))
    assert prefix.refusal(2) is not None and prefix.usable(2) == 1
    batch = tiny_examples(4).batch(range(4))
    with torch.no_grad():
        expected = task.logits(task.params, batch)
        with prefix.evaluation(task.params, batch):
            found = task.logits(task.params, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_forward_mode_knows_every_operator_of_a_pooling(tmp_path: Path) -> None:
    task = task_of(tmp_path, "bert", "last", layers="spread")
    params, batch = moved(task.params), tiny_examples(4).batch(range(4))
    engine = Forward()
    estimate = engine(task.loss, params, batch, BasisDirections(), task.head)
    assert estimate.fallbacks == {}
    expected = cross_entropy(task.logits(params, batch), batch.labels)
    assert estimate.loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("adapter", [Lora(r=2), TinyLora(u=3), BitFit(), Ia3(), HeadOnly()])
def test_an_export_gives_the_same_logits_through_load(adapter: Adapter, tmp_path: Path) -> None:
    task = task_of(tmp_path / "base", "bert", "mean", adapter, "spread")
    params, batch = moved(task.params), tiny_examples(4).batch(range(4))
    save_adapter(task, params, tmp_path / "adapter", "# card\n")
    loaded = forefed.load(tmp_path / "adapter", base=str(tmp_path / "base"))
    assert loaded.labels == ("a", "b", "c") and loaded.model.config.id2label[1] == "b"
    with torch.no_grad():
        theirs = loaded.model(**batch.inputs).logits
    torch.testing.assert_close(theirs, task.logits(params, batch), rtol=1e-5, atol=1e-5)


def test_load_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no forefed_head"):
        forefed.load(tmp_path)
    task = task_of(tmp_path / "base", "bert", "pooler")
    save_adapter(task, task.params, tmp_path / "plain", "")
    with pytest.raises(UserError, match=r"is loaded by peft\.PeftModel\.from_pretrained alone"):
        forefed.load(tmp_path / "plain")
