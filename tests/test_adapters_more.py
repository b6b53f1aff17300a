"""IA3 and BitFit: what they compute, the laws of every adapter, PEFT files, quantised bases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from federation import World
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import ClientContext, Order
from forefed.data.examples import ClientData
from forefed.directions import Fresh
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining, TaskView, Trainer, replay
from forefed.models.adapters import Adapter, BitFit, Ia3
from forefed.models.export import load_adapter, save_adapter
from forefed.models.quantised import QuantisedLinear
from forefed.models.task import Task, task_from_model
from forefed.wire import Scalars
from tiny import ALL_KINDS, KINDS, moved, tiny_examples, tiny_model, tiny_task
from toy import trained

CASES = [
    pytest.param(f, c, a, id=f"{f}-{'lm' if c else 'cls'}-{a.kind}")
    for f, c in ALL_KINDS
    for a in (Ia3(), BitFit())
    if not (f == "gpt2" and a.kind == "bitfit")
]
BOTH = pytest.mark.parametrize("adapter", [Ia3(), BitFit()], ids=lambda a: a.kind)


def batch_of(family: str, causal: bool, n: int = 4) -> object:
    examples = tiny_examples(n, causal, types=family == "bert", ends=family == "t5")
    return examples.batch(range(n))


@pytest.mark.parametrize(("family", "causal", "adapter"), CASES)
def test_slopes_and_gradients_of_every_family(family: str, causal: bool, adapter: Adapter) -> None:
    """Law 1, without an operator that the dual numbers do not know."""
    task = tiny_task(family, adapter, causal)
    params, batch = moved(task.params), batch_of(family, causal)
    exact = Backprop()(task.loss, params, batch)
    again = Checkpointed(micro_batch=3)(task.loss_recomputed, params, batch)
    assert trees.norm(trees.subtract(again.grad, exact.grad)) < 1e-12 * trees.norm(exact.grad)
    engine = Forward(tangents=2)
    directions = Fresh(k=3).of(Order(1, 1, 1, tuple(params), params))
    found = engine(task.loss, params, batch, directions, task.head)
    body = {n: g for n, g in exact.grad.items() if n not in task.head}
    expected = directions.project(body)
    assert float((found.slopes_K - expected).norm() / expected.norm()) < 1e-9
    assert found.fallbacks == {}


@pytest.mark.parametrize(("family", "causal", "adapter"), CASES)
def test_first_values_change_nothing(family: str, causal: bool, adapter: Adapter) -> None:
    task = tiny_task(family, adapter, causal)
    base, batch = tiny_model(family, causal), batch_of(family, causal)
    with torch.no_grad():
        plain = base(**task.logits.inputs(batch)).logits
        torch.testing.assert_close(task.logits(task.params, batch), plain, rtol=0, atol=1e-12)


def test_units_are_single_tensors() -> None:
    per_block = ["attention.self.key", "attention.self.value", "output.dense"]
    units = tiny_task("bert", Ia3()).units
    names = [f"layer.{i}.{m}" for i in range(2) for m in per_block]
    assert [u.name for u in units] == [*names, "head"]
    assert [u.size for u in units[:3]] == [16, 16, 24]  # the output's factors sit at its input
    units = tiny_task("bert", BitFit()).units
    assert len(units) == 2 * 6 + 1 and {len(u.params) for u in units[:-1]} == {1}
    assert [u.size for u in units[:6]] == [16, 16, 16, 16, 24, 16]
    some = tiny_task("bert", BitFit(targets=["query"], layers="last:1")).units
    assert [u.name for u in some] == ["layer.1.attention.self.query", "head"]


def test_bitfit_moves_the_bias_itself() -> None:
    """The gradient of the trained change is that of the bias, by a plain backward pass."""
    task, base = tiny_task("bert", BitFit()), tiny_model("bert")
    batch = batch_of("bert", False)
    grad = Backprop()(task.loss, task.params, batch).grad
    logits = base(**task.logits.inputs(batch)).logits
    torch.nn.functional.cross_entropy(logits, batch.labels).backward()
    for name, g in grad.items():
        if name not in task.head:
            module = name.removeprefix("base_model.model.").split(".beft_bias.")[0]
            theirs = base.get_submodule(module).bias.grad
            torch.testing.assert_close(g.flatten(), theirs, rtol=1e-10, atol=1e-14)


def test_ia3_by_hand() -> None:
    """Factors f on a key projection are f W x + f b; on a feed-forward output W (f x) + b."""
    task, base = tiny_task("bert", Ia3(layers="first:1")), tiny_model("bert")
    params = moved(task.params)
    batch = batch_of("bert", False)
    block = base.bert.encoder.layer[0]
    key, _, out = (params[n].flatten() for u in task.units[:3] for n in u.params)
    value = params[task.units[1].params[0]].flatten()
    for layer, factors in ((block.attention.self.key, key), (block.attention.self.value, value)):
        layer.weight.data *= factors[:, None]
        layer.bias.data *= factors
    block.output.dense.weight.data *= out
    start = {**params, **{n: task.params[n] for n in task.head}}
    with torch.no_grad():
        theirs = base(**task.logits.inputs(batch)).logits
        torch.testing.assert_close(task.logits(start, batch), theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "causal"), [*(k for k in KINDS if k[0] != "gpt2"), ("gpt2", True)]
)
@pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias")
@BOTH
def test_files_are_plain_peft(family: str, causal: bool, adapter: Adapter, tmp_path: Path) -> None:
    if (family, adapter.kind) == ("gpt2", "bitfit"):
        return
    round_trip(tiny_task(family, adapter, causal), tmp_path, tiny_model(family, causal))


@BOTH
def test_files_of_many_modules_are_plain_peft(adapter: Adapter, tmp_path: Path) -> None:
    """From 20 targets on PEFT writes shorter names."""
    task = tiny_task("bert", adapter, n_layers=8)
    round_trip(task, tmp_path, tiny_model("bert", n_layers=8))


def test_ia3_without_a_feed_forward_output(tmp_path: Path) -> None:
    task = tiny_task("bert", Ia3(targets=["query"]))
    assert {u.size for u in task.units[:-1]} == {16}
    round_trip(task, tmp_path, tiny_model("bert"))


def round_trip(task: Task, folder: Path, base: object) -> None:
    from peft import PeftModel

    params = moved(task.params)
    save_adapter(task, params, folder / "adapter", "# card\n")
    batch = batch_of(task.base_name.split("/")[1], task.causal)
    with torch.random.fork_rng(), torch.no_grad():
        loaded = PeftModel.from_pretrained(base, folder / "adapter").eval()  # type: ignore[arg-type]
        assert torch.equal(task.logits(params, batch), loaded(**task.logits.inputs(batch)).logits)
    again = load_adapter(task, folder / "adapter")
    assert trees.digest(again) == trees.digest(params)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@BOTH
def test_on_a_quantised_base(adapter: Adapter, scheme: str) -> None:
    """Against the same model with the dequantised matrices as plain weights."""
    model = tiny_model("bert", dtype=torch.float32)
    task = task_from_model(
        model, adapter, Key(0), label_names="abc", base_name="tiny", quantise=scheme
    )
    plain = tiny_task("bert", adapter, dtype=torch.float32)
    layers = {n: m for n, m in task.model.named_modules() if isinstance(m, QuantisedLinear)}
    assert len(layers) == 2 * 6 + 1
    for name, layer in layers.items():
        plain.model.get_submodule(
            name.removesuffix(".table")
        ).weight.data = layer.weight_OI().clone()
    params, batch = moved(task.params, scale=0.1), batch_of("bert", False)
    expected = Backprop()(plain.loss, params, batch)
    found = Backprop()(task.loss, params, batch)
    assert trees.norm(trees.subtract(found.grad, expected.grad)) < 1e-5 * trees.norm(expected.grad)
    engine = Forward()
    directions = Fresh(k=3).of(Order(1, 1, 1, tuple(params), params))
    slopes = engine(task.loss, params, batch, directions, task.head).slopes_K
    body = {n: g for n, g in expected.grad.items() if n not in task.head}
    torch.testing.assert_close(slopes, directions.project(body).double(), rtol=1e-4, atol=1e-5)


@BOTH
def test_replay_of_slopes_bit_for_bit(adapter: Adapter) -> None:
    task = tiny_task("bert", adapter, dtype=torch.float32)
    codec = Scalars()
    view = TaskView(task.loss, task.loss_recomputed, task.head)
    train = Trainer(
        LocalTraining(batch_size=3), Forward(), codec, view, directions=Fresh(k=2, head_k=8)
    )
    order = Order(3, 1, 2, tuple(task.params), moved(task.params))
    data = ClientData(tiny_examples(), np.arange(7), np.arange(0))
    sent, own = trained(train, order, data)
    received = replay(
        train, order, codec.decode(codec.encode(sent, ClientContext(order=order)), order)
    )
    assert trees.norm(own) > 0 and trees.digest(received.grad) == trees.digest(own)


def test_transposed_layers_take_no_bias() -> None:
    with pytest.raises(UserError, match=r"'bitfit'.*c_attn.*choose 'ia3'"):
        tiny_task("gpt2", BitFit())


def test_these_adapters_have_no_dropout(world: World, tmp_path: Path) -> None:
    for kind in ("ia3", "bitfit"):
        with pytest.raises(UserError, match=r"adapter\.dropout: unknown setting"):
            world.config(tmp_path, f"adapter={kind}", "adapter.dropout=0.1")


@BOTH
def test_split_clients_send_their_own_units(adapter: Adapter, world: World, tmp_path: Path) -> None:
    """A run with exact gradients on a split, in bfloat16, that also can be used afterwards."""
    from forefed.use.predict import predict

    result = world.run(
        tmp_path, "strategy=fedyogi_split", f"adapter={adapter.kind}", "model.dtype=bfloat16"
    )
    answers = list(predict(result.folder, ["w5 w6", "w20"]))
    assert len(answers) == 2
