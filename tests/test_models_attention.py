"""Attention in float32 inside a model of bfloat16: what it computes, who decides, who remembers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from federation import Interrupted, StopAfter, World
from forefed.models import attention
from forefed.models.attention import NAME, attend_in, attention_of, faster
from forefed.run import run
from tiny import tiny_model

IDS = torch.tensor([[2, 5, 7, 9], [2, 6, 3, 0]])
SEEN = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def gradient(model: Any) -> torch.Tensor:
    """Of the sum of squared logits, in the first block's query matrix."""
    weight = next(p for n, p in model.named_parameters() if "query.weight" in n or "q_proj" in n)
    weight.requires_grad_(True)
    with torch.enable_grad():
        loss = model(input_ids=IDS, attention_mask=SEEN).logits.float().square().sum()
        (found,) = torch.autograd.grad(loss, weight)
    return found.float()


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_only_attention_is_widened_and_its_gradient_stays(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family, dtype=torch.bfloat16)
    assert attend_in(model, "weights") == "weights"
    before = gradient(model)
    kinds: set[torch.dtype] = set()
    real = F.scaled_dot_product_attention

    def watched(query: Any, *more: Any, **named: Any) -> Any:
        kinds.add(query.dtype)
        return real(query, *more, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    assert attend_in(model, "float32") == attention_of(model) == "float32"
    after = gradient(model)
    assert kinds == {torch.float32} and next(model.parameters()).dtype == torch.bfloat16
    assert 0 < float((after - before).norm() / before.norm()) < 0.05
    assert NAME not in str(model.config.to_dict())  # which an export writes


def test_models_of_float32_and_their_own_attention_are_left_alone() -> None:
    assert attend_in(tiny_model("bert", dtype=torch.float32), "float32") == "weights"
    model = tiny_model("bert", dtype=torch.bfloat16)
    model.set_attn_implementation("eager")
    assert attend_in(model, "float32") == "weights"
    assert faster(torch.bfloat16, "cpu", 2, 8) in ("weights", "float32")
    assert faster(torch.bfloat16, "cuda", 2, 8) == "weights"


def test_a_run_goes_on_with_the_attention_that_it_began_with(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ["strategy=fedavg", "adapter=lora", "model.dtype=bfloat16", "rounds=2", "cohort=2"]
    digests = {}
    for began, later in (("float32", "weights"), ("weights", "float32")):
        monkeypatch.setattr(attention, "faster", lambda *_, now=began: now)
        digests[began] = world.run(tmp_path, *sets, f"name={began}").summary["digest"]
        config = world.config(tmp_path, *sets, f"name=stopped-{began}")
        with pytest.raises(Interrupted):
            run(config, watcher=StopAfter(1))
        monkeypatch.setattr(attention, "faster", lambda *_, now=later: now)
        assert run(config, resume=True).summary["digest"] == digests[began]
        about = json.loads((config.folder / "environment.json").read_text())["model"]
        assert about["attention"] == began and about["dtype"] == "bfloat16"
    assert len(set(digests.values())) == 2
