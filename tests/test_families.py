"""Law 1 on every family: dual slopes are <gradient, direction>, on the model's own code."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from families_page import batch_of, compatibility
from forefed.core import trees
from forefed.core.types import Order
from forefed.directions import Fresh
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.forward import Forward
from forefed.gradients.structured import Structured
from forefed.models.adapters import Lora, TinyLora
from tiny import ALL_FAMILIES, ALL_KINDS, moved, tiny_task
from tiny_configs import SLIDING_WINDOW, Size

EVERY = pytest.mark.parametrize(("family", "causal"), ALL_KINDS)
ADAPTERS = [Lora(r=2), TinyLora(r=2, u=3)]  # "attention-qv" and "qv-and-outputs"
SLOPES = Forward(tangents=3, micro_batch=None)


def slopes(engine, task, params, batch):
    """The engine's estimate, and the slopes that backprop's gradient has along its directions."""
    directions = Fresh(k=3).of(Order(1, 1, 1, tuple(params), params))
    exact = Backprop(micro_batch=None)(task.loss, params, batch)
    found = engine(task.loss, params, batch, directions, task.head)
    body = {n: g for n, g in exact.grad.items() if n not in task.head}
    return found, directions.project(body), exact


def far(a, b):
    return float((a - b).norm() / b.norm())


@EVERY
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.kind)
def test_slopes_are_gradient_times_direction(family, causal, adapter):
    task = tiny_task(family, adapter, causal)
    params, batch = moved(task.params), batch_of(family, causal)
    found, expected, exact = slopes(SLOPES, task, params, batch)
    assert far(found.slopes_K, expected) < 1e-9
    assert found.loss == pytest.approx(exact.loss, rel=1e-12)
    head = trees.pick(exact.grad, task.head)
    assert found.grad.keys() == head.keys()
    for name, x in head.items():
        assert far(found.grad[name], x) < 1e-9, name
    ragged = SLOPES.model_copy(update={"tangents": 2, "micro_batch": 3})
    assert far(slopes(ragged, task, params, batch)[0].slopes_K, expected) < 1e-9


@EVERY
def test_slopes_are_those_of_torch_in_float32(family, causal):
    task = tiny_task(family, Lora(r=2), causal, dtype=torch.float32)
    params, batch = moved(task.params, scale=0.1), batch_of(family, causal)
    dual, expected, _ = slopes(SLOPES, task, params, batch)
    reference = slopes(SLOPES.model_copy(update={"ad": "torch"}), task, params, batch)[0]
    assert far(dual.slopes_K, reference.slopes_K) < 1e-4
    assert far(dual.slopes_K, expected) < 1e-4
    assert dual.loss == pytest.approx(reference.loss, rel=1e-5)
    for name, x in reference.grad.items():
        assert far(dual.grad[name], x) < 1e-4, name


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_late_units_alone(family):
    """Everything before the last block's units is plain, and the slopes are the same."""
    task = tiny_task(family, TinyLora(r=2, u=3))
    params, batch = moved(task.params), batch_of(family, False)
    last = max(u.depth for u in task.units if not u.is_head)
    some = [n for u in task.units if u.depth == last for n in u.params]

    def loss(given, batch):
        return task.loss({**params, **given}, batch)

    loss.weight = task.loss.weight
    given = trees.pick(params, some)
    directions = Fresh(k=3).of(Order(1, 1, 1, tuple(some), given))
    found = SLOPES(loss, given, batch, directions)
    expected = directions.project(Backprop()(loss, given, batch).grad)
    assert far(found.slopes_K, expected) < 1e-9


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_recomputed_blocks_give_the_same_gradient(family):
    task = tiny_task(family, Lora(r=2))
    params, batch = moved(task.params), batch_of(family, False)
    exact = Backprop()(task.loss, params, batch).grad
    for engine in (Checkpointed(micro_batch=3), Structured(micro_batch=3)):
        found = engine(engine.loss_of(task), params, batch).grad
        assert trees.norm(trees.subtract(found, exact)) < 1e-12 * trees.norm(exact)


QV_AND_OUTPUTS = {
    "bert": "attention.self.query attention.self.value attention.output.dense output.dense",
    "distilbert": "attention.q_lin attention.v_lin attention.out_lin ffn.lin2",
    "albert": "attention.query attention.value attention.dense ffn_output",
    "deberta-v2": "attention.self.query_proj attention.self.value_proj attention.output.dense"
    " output.dense",
    "modernbert": "attn.Wqkv attn.Wo mlp.Wo",
    "gpt2": "attn.c_attn attn.c_proj mlp.c_proj",
    "opt": "self_attn.v_proj self_attn.q_proj self_attn.out_proj fc2",
    "llama": "self_attn.q_proj self_attn.v_proj self_attn.o_proj mlp.down_proj",
    "phi": "self_attn.q_proj self_attn.v_proj self_attn.dense mlp.fc2",
}
QV_AND_OUTPUTS["roberta"] = QV_AND_OUTPUTS["bert"]
for name in ("qwen2", "qwen3", "gemma", "mistral"):
    QV_AND_OUTPUTS[name] = QV_AND_OUTPUTS["llama"]
BLOCKS = {"albert": ["albert_layer_groups.0.albert_layers.0"], "gpt2": ["h.0", "h.1"]} | {
    name: ["layer.0", "layer.1"] for name in ("bert", "roberta", "distilbert", "deberta-v2")
}


@pytest.mark.parametrize("family", QV_AND_OUTPUTS)
def test_units_are_the_familys_modules_in_depth_order(family):
    blocks = BLOCKS.get(family, ["layers.0", "layers.1"])
    modules = QV_AND_OUTPUTS[family].split()
    units = tiny_task(family, TinyLora(u=3)).units
    expected = [(f"{b}.{m}", i) for i, b in enumerate(blocks) for m in modules]
    assert [(u.name, u.depth) for u in units] == [*expected, ("head", len(blocks))]


def test_units_of_an_encoder_decoder():
    units = tiny_task("t5", TinyLora(u=3)).units
    own = [f"SelfAttention.{m}" for m in "qvo"]
    crossed = [f"EncDecAttention.{m}" for m in "qvo"]
    expected = []
    for i in range(2):
        modules = [f"layer.0.{m}" for m in own] + ["layer.1.DenseReluDense.wo"]
        expected += [(f"encoder.block.{i}.{m}", i) for m in modules]
    for i in range(2):
        modules = [f"layer.0.{m}" for m in own] + [f"layer.1.{m}" for m in crossed]
        modules.append("layer.2.DenseReluDense.wo")
        expected += [(f"decoder.block.{i}.{m}", 2 + i) for m in modules]
    assert [(u.name, u.depth) for u in units] == [*expected, ("head", 4)]


def test_the_page_names_todays_families_and_operators():
    page = (Path(__file__).parents[1] / "docs" / "FAMILIES.md").read_text(encoding="utf-8")
    made_with = re.search(r"^torch (\S+), transformers (\S+),", page, re.MULTILINE)
    installed = (version("torch").split("+")[0], version("transformers"))
    if made_with.groups() != installed:
        pytest.skip(f"the page is of torch and transformers {made_with.groups()}, not {installed}")
    assert compatibility() in page, "run `python tests/families_page.py > docs/FAMILIES.md`"


@pytest.mark.parametrize("family", ["mistral", "modernbert"])
def test_the_window_is_shorter_than_the_text(family):
    """Otherwise a sliding window is tested in name only."""
    loss = []
    for window in (SLIDING_WINDOW, 32):
        task = tiny_task(family, Lora(), size=Size(window=window))
        loss.append(float(task.loss(task.params, batch_of(family, False))))
    assert abs(loss[0] - loss[1]) > 1e-3
