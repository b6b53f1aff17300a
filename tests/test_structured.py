"""The lean second run of a block: the same gradient, whatever it leaves out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import Params
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.memory import measure_peak
from forefed.gradients.structured import Structured
from forefed.models.adapters import Adapter, BitFit, Ia3, Lora, LoraSb, TinyLora
from forefed.models.functional import Call, CurrentCall, Functional
from forefed.models.rowwise import RowwiseAttention
from forefed.models.structured import Structured as Blocks
from forefed.models.task import Task
from tiny import moved, tiny_examples, tiny_task
from tiny_configs import Size

ADAPTERS = (
    Lora(r=2, targets="all-linear", rslora=True),
    Lora(r=2, targets="all-linear", dropout=0.3),
    LoraSb(r=2),
    TinyLora(r=2, u=3),
    Ia3(),
    BitFit(),
)


def far(a: Params, b: Params) -> float:
    return float(trees.norm(trees.subtract(a, b)) / trees.norm(b))


def gradients(task: Task, dropout: Key | None = None) -> tuple[Params, Params]:
    params = moved(task.params)
    batch = tiny_examples(causal=task.causal, types=False).batch(range(7), dropout=dropout)
    exact = Backprop()(task.loss, params, batch).grad
    for _ in range(2):  # the first one looks at the blocks
        found = Structured(micro_batch=3)(task.loss_structured, params, batch).grad
    return found, exact


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize(
    "adapter", ADAPTERS, ids=lambda a: "-".join([a.kind, *sorted(a.model_fields_set)])
)
def test_every_adapter_has_backprops_gradient(family: str, adapter: Adapter) -> None:
    if family == "gpt2" and isinstance(adapter, BitFit):
        pytest.skip("PEFT has no biases for transposed layers")
    found, exact = gradients(tiny_task(family, adapter, causal=family != "bert"), Key(3))
    assert far(found, exact) < 1e-12


def test_in_float32() -> None:
    found, exact = gradients(tiny_task("llama", ADAPTERS[0], True, torch.float32))
    assert far(found, exact) < 1e-6


def test_what_is_left_out_is_found() -> None:
    """Llama's feed-forward ends in a sum, whose derivative reads nothing; BERT's in a LayerNorm."""
    lean = {}
    for family in ("llama", "bert"):
        task = tiny_task(family, ADAPTERS[0], causal=family == "llama")
        gradients(task)
        blocks = task.loss_structured.structured
        assert blocks is not None
        (seen,) = blocks.found.values()
        lean[family] = seen.lean
    assert lean["llama"] is not None and lean["bert"] is not None
    assert lean["llama"].alone == ("input_layernorm", "post_attention_layernorm", "mlp")
    assert lean["llama"].unread == {"mlp", "mlp.down_proj"}
    assert lean["bert"].unread == frozenset()


class Gate(nn.Module):
    """ReLU's derivative reads the product before it, and turns NaN into 0 without a word."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + F.relu(self.last(F.gelu(self.inner(hidden * self.scale))))


def test_a_result_that_is_read_is_computed() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = Gate().requires_grad_(False)
        x = torch.randn(2, 6, 4)
    holder = nn.ModuleDict({"block": block})
    functional = Functional(holder, CurrentCall())
    blocks = Blocks(holder, functional)
    scale = torch.full((4,), 0.7, requires_grad=True)
    call = Call({"block.scale": scale})
    plain = functional.run(call, block, x).square().sum()
    with blocks.open(call, (block,)):
        again = functional.run(call, block, x).square().sum()
    (expected,), (found,) = torch.autograd.grad(plain, scale), torch.autograd.grad(again, scale)
    torch.testing.assert_close(found, expected)
    (seen,) = blocks.found.values()
    assert seen.last == {"last"} and seen.lean is not None and seen.lean.unread == frozenset()


MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"is_causal": True},
    "bool": {"attn_mask": torch.ones(7, 7, dtype=torch.bool).tril(-1)[None, None]},
    "float": {"attn_mask": torch.linspace(-1, 1, 49, dtype=torch.float64).view(7, 7)},
    "scaled": {"is_causal": True, "scale": 0.3},
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("heads", [4, 2, 1])
def test_attention_by_rows(kind: str, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's, with grouped heads, a few rows at a time."""
    monkeypatch.setattr("forefed.models.rowwise.SCORES", 2 * 4 * 7 * 3)
    shapes = ((2, 7, 4, 8), (2, 7, heads, 8), (2, 7, heads, 6))
    inputs = [
        Key(i).normal(s).double().transpose(1, 2).requires_grad_() for i, s in enumerate(shapes)
    ]
    along = Key(9).normal((2, 4, 7, 6)).double()
    results = []
    for mode in (None, RowwiseAttention()):
        if mode is not None:
            mode.__enter__()
        try:
            out = F.scaled_dot_product_attention(*inputs, **MASKS[kind], enable_gqa=True)
        finally:
            if mode is not None:
                mode.__exit__(None, None, None)
        results.append((out, *torch.autograd.grad(out, inputs, along)))
    assert type(results[1][0].grad_fn).__name__ == "_RowsBackward"
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_it_takes_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forefed.models.rowwise.SCORES", 2**14)
    monkeypatch.setattr("forefed.models.lean.TOKENS", 32)
    size = Size(hidden=64, feed_forward=256, layers=3, positions=512)
    task = tiny_task("llama", ADAPTERS[0], True, torch.float32, size=size)
    batch = tiny_examples(causal=True, types=False, lengths=[400]).batch([0])
    params = moved(task.params, scale=0.01)
    peaks = {}
    for engine in (Backprop(), Checkpointed(), Structured()):
        loss = engine.loss_of(task)
        engine(loss, params, batch)
        peaks[engine.kind] = measure_peak(lambda e=engine, f=loss: e(f, params, batch))[1]
    assert peaks["structured"] < 0.6 * peaks["checkpointed"] < 0.6 * peaks["backprop"]


def test_an_input_goes_after_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first block's gradient is computed, no later block's input is left."""
    import weakref

    from forefed.models import structured

    task = tiny_task("llama", ADAPTERS[0], True, n_layers=4)
    inputs: list[Any] = []
    left: list[int] = []
    first, again = structured._Again.first, structured._Again.gradients

    def spy_first(self: Any, x: Tensor) -> Any:
        inputs.append(weakref.ref(x))
        return first(self, x)

    def spy_again(self: Any, *args: Any) -> Any:
        left.append(sum(ref() is not None for ref in inputs))
        return again(self, *args)

    monkeypatch.setattr(structured._Again, "first", spy_first)
    monkeypatch.setattr(structured._Again, "gradients", spy_again)
    gradients(task)
    assert left[:4] == [4, 3, 2, 1]


def test_losses_agree() -> None:
    task = tiny_task("llama", ADAPTERS[0], True)
    params = moved(task.params)
    batch = tiny_examples(causal=True, types=False).batch(range(3))
    with torch.no_grad():
        plain, lean = task.loss(params, batch), task.loss_structured(params, batch)
    assert float(plain) == float(lean)
    by_words = replace(task.loss, tail=replace(task.loss.tail, words=7))
    assert float(by_words(params, batch)) == pytest.approx(float(plain), rel=1e-12)
