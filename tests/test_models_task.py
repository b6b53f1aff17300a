"""A Task's loss is a pure function with right derivatives, for every family, head and adapter."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import Batch, Params
from forefed.models.adapters import Adapter, HeadOnly, Lora, TinyLora
from forefed.models.functional import Call
from forefed.models.task import ModelLoss, Task
from tiny import (
    KINDS,
    moved,
    random_like,
    tiny_examples,
    tiny_task,
    with_dropout,
    without_dropout,
)

LORA = Lora(r=2, alpha=3.0, targets="qv-and-outputs")
TINY = TinyLora(r=2, u=3)
CASES = [
    pytest.param(family, causal, adapter, id=f"{family}-{'lm' if causal else 'cls'}-{adapter.kind}")
    for family, causal in KINDS
    for adapter in (LORA, TINY)
]
every_case = pytest.mark.parametrize(("family", "causal", "adapter"), CASES)


cached_task = cache(tiny_task)  # a Task is never changed, so tests share them


def setup(family: str, causal: bool, adapter: Adapter) -> tuple[Task, Params, Batch]:
    """A task away from its start, and a ragged batch with a dropout key."""
    task = cached_task(family, adapter, causal)
    examples = tiny_examples(5, causal)
    return task, moved(task.params), examples.batch(range(5), dropout=Key(77))


def gradient(loss: ModelLoss, params: Params, batch: Batch) -> Params:
    leaves = {n: x.clone().requires_grad_() for n, x in params.items()}
    grads = torch.autograd.grad(loss(leaves, batch), list(leaves.values()))
    return dict(zip(leaves, grads, strict=True))


def largest(a: Params, b: Params) -> float:
    return max(float((a[n] - b[n]).abs().max()) for n in a)


@every_case
def test_loss_equals_the_modules_own(family: str, causal: bool, adapter: Adapter) -> None:
    task, params, batch = setup(family, causal, adapter)
    ours = float(task.loss(params, batch))
    model = tiny_task(family, adapter, causal).model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in params:
                parameter.copy_(params[name])
        inputs = dict(batch.inputs)
        if family != "bert":
            del inputs["token_type_ids"]
        if causal:  # Hugging Face's own loss
            theirs = float(model(**inputs, labels=batch.labels).loss)
        else:
            theirs = float(cross_entropy(model(**inputs).logits, batch.labels))
    # Hugging Face computes a language model's loss in float32
    assert ours == pytest.approx(theirs, rel=1e-6 if causal else 1e-12)


@every_case
def test_derivatives_agree(family: str, causal: bool, adapter: Adapter) -> None:
    """Reverse mode, forward mode (one tangent, and three by vmap), and a central difference."""
    task, params, batch = setup(family, causal, adapter)
    grad = gradient(task.loss, params, batch)
    assert all(float(g.abs().max()) > 1e-8 for g in grad.values())
    directions = [random_like(params, Key(i)) for i in range(3)]
    expected = torch.tensor([trees.dot(grad, v) for v in directions], dtype=torch.float64)

    def of(p: Params) -> torch.Tensor:
        return task.loss(p, batch)

    def slope(v: Params) -> torch.Tensor:
        return torch.func.jvp(of, (params,), (v,))[1]

    stacked = {n: torch.stack([v[n] for v in directions]) for n in params}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(slope(directions[0]), expected[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.vmap(slope)(stacked), expected, rtol=1e-9, atol=1e-12)
        eps = 1e-5
        up, down = (trees.step(params, directions[0], sign * eps) for sign in (-1, 1))
        difference = (of(up) - of(down)) / (2 * eps)
    torch.testing.assert_close(difference, expected[0], rtol=1e-5, atol=1e-8)


@every_case
def test_recomputation_equals_plain_backprop(family: str, causal: bool, adapter: Adapter) -> None:
    """Also with dropout; and nothing is left behind on the blocks or in the model."""
    task, params, batch = setup(family, causal, with_dropout(adapter))
    before = {n: x.clone() for n, x in task.model.state_dict().items()}
    plain = gradient(task.loss, params, batch)
    again = gradient(task.loss_recomputed, params, batch)
    assert largest(plain, again) < 1e-12
    assert float(task.loss(params, batch)) == float(task.loss_recomputed(params, batch))
    blocks = task.loss_recomputed.blocks
    assert len(blocks) == 2
    for block in blocks:
        assert "forward" not in vars(block)
    for module in task.model.modules():
        assert not module._forward_hooks
    for n, x in task.model.state_dict().items():
        assert torch.equal(x, before[n])
    assert task.logits.functional._current.call is None


def test_recomputation_stores_less() -> None:
    task, params, batch = setup("bert", False, LORA)

    def stored(loss: ModelLoss) -> int:
        sizes: dict[int, int] = {}

        def count(x: torch.Tensor) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            loss({n: x.clone().requires_grad_() for n, x in params.items()}, batch)
        return sum(sizes.values())

    assert stored(task.loss_recomputed) < 0.5 * stored(task.loss)


def test_recomputed_loss_without_gradient_is_the_plain_one() -> None:
    task, params, batch = setup("bert", False, LORA)
    with torch.no_grad():
        assert float(task.loss_recomputed(params, batch)) == float(task.loss(params, batch))


@every_case
def test_padding_changes_nothing(family: str, causal: bool, adapter: Adapter) -> None:
    task = cached_task(family, adapter, causal)
    params, examples = moved(task.params), tiny_examples(5, causal)
    together = examples.batch(range(5))
    logits = task.logits(params, together)
    for i in range(5):
        alone = task.logits(params, examples.batch([i]))
        there = logits[i, : alone.shape[1]] if causal else logits[i]
        torch.testing.assert_close(there, alone[0], rtol=1e-9, atol=1e-9)
    mean = sum(
        float(task.loss(params, examples.batch([i]))) * task.loss.weight(examples.batch([i]))
        for i in range(5)
    ) / task.loss.weight(together)
    assert float(task.loss(params, together)) == pytest.approx(mean, rel=1e-10)


@pytest.mark.parametrize("adapter", [LORA, TINY], ids=lambda a: a.kind)
def test_dropout_masks_are_a_function_of_the_key(adapter: Adapter) -> None:
    task, params, batch = setup("bert", False, with_dropout(adapter))
    whole = task.logits(params, batch)
    parts = [task.logits(params, batch.rows(a, b)) for a, b in ((0, 1), (1, 4), (4, 5))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    torch.rand(3)  # whatever the global generator does
    assert torch.equal(task.logits(params, batch), whole)
    other = Batch(batch.inputs, batch.labels, dropout=Key(78))
    assert not torch.allclose(task.logits(params, other), whole)
    off = without_dropout(batch)
    plain = tiny_task("bert", adapter)
    assert torch.equal(task.logits(params, off), plain.logits(params, batch))


def test_dropout_keeps_the_mean_and_the_rate() -> None:
    task, _, _ = setup("bert", False, with_dropout(LORA))
    masks = [m for m in task.model.modules() if type(m).__name__ == "KeyedDropout"]
    assert len(masks) == 8 and len({m.name for m in masks}) == 8
    x = torch.ones(40, 50, 10, dtype=torch.float64)
    y = task.logits.functional.run(Call(task.params, Key(3)), masks[0], x)
    assert float((y == 0).double().mean()) == pytest.approx(0.4, abs=0.02)
    assert float(y.max()) == pytest.approx(1 / 0.6)
    assert torch.equal(masks[0](x), x)  # outside of a call
    z = task.logits.functional.run(Call(task.params, Key(3)), masks[1], x)
    assert float(((y == 0) & (z == 0)).double().mean()) == pytest.approx(0.16, abs=0.02)


def test_slope_with_dropout_is_of_the_same_masks() -> None:
    task, params, batch = setup("bert", False, with_dropout(LORA))
    v = random_like(params, Key(4))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        slope = torch.func.jvp(lambda p: task.loss(p, batch), (params,), (v,))[1]
    expected = trees.dot(gradient(task.loss, params, batch), v)
    assert float(slope) == pytest.approx(expected, rel=1e-9)


def loss_slope_and_stored(
    task: Task, params: Params, batch: Batch, v: Params, vmapped: bool
) -> tuple[torch.Tensor, torch.Tensor, Params, int]:
    """One jvp over the body with the head as leaves, and how many tensors autograd stored."""
    body = {n: x for n, x in params.items() if n not in task.head}
    head = {n: params[n].clone().requires_grad_() for n in task.head}
    stored: list[int] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        stored.append(x.numel())
        return x

    def along(tangent: Params) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.func.jvp(lambda p: task.loss({**head, **p}, batch), (body,), (tangent,))

    v = {n: v[n] for n in body}
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.autograd.graph.saved_tensors_hooks(note, lambda x: x),
    ):
        if vmapped:
            two = {n: torch.stack([x, 2 * x]) for n, x in v.items()}
            loss, slopes = torch.vmap(along, out_dims=(None, 0))(two)
            slope = slopes[1] / 2
        else:
            loss, slope = along(v)
    return loss, slope.detach(), head, len(stored)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("vmapped", [False, True])
def test_head_gradient_from_the_pass_that_gives_slopes(family: str, vmapped: bool) -> None:
    """The head is a differentiable constant of the jvp; the body leaves nothing stored."""
    task, params, batch = setup(family, False, LORA)
    v = random_like(params, Key(4))
    loss, slope, head, stored = loss_slope_and_stored(task, params, batch, v, vmapped)
    grads = dict(zip(head, torch.autograd.grad(loss, list(head.values())), strict=True))
    expected = gradient(task.loss, params, batch)
    assert largest(grads, expected) < 1e-12
    body = {n: g for n, g in expected.items() if n not in task.head}
    assert float(slope) == pytest.approx(trees.dot(body, v), rel=1e-9)
    deeper = tiny_task(family, LORA, n_layers=4)
    v = random_like(deeper.params, Key(4))
    assert loss_slope_and_stored(deeper, deeper.params, batch, v, vmapped)[3] == stored


@pytest.mark.parametrize(("family", "causal"), KINDS)
def test_evaluate_sums_over_examples(family: str, causal: bool) -> None:
    task = cached_task(family, TINY, causal)
    params, examples = moved(task.params), tiny_examples(7, causal)
    chosen = np.array([6, 0, 3, 5])
    sums = task.evaluate(params, examples, chosen, batch_size=3)
    batch = examples.batch(chosen)
    weight = task.loss.weight(batch)
    assert sums["loss_sum"] == pytest.approx(float(task.loss(params, batch)) * weight, rel=1e-10)
    assert (sums["weight"], sums["n"]) == (weight, 4)
    if causal:
        assert sums["bytes"] == 3 * examples.lengths()[chosen].sum()
    else:
        assert np.trace(sums["confusion"]) == int(
            (task.logits(params, batch).argmax(1) == batch.labels).sum()
        )


def test_a_language_model_predicts_the_marked_tokens_only() -> None:
    """By hand: labels -100 at the first two positions leave positions 2.. to be predicted."""
    task = tiny_task("opt", TINY, causal=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    labels = torch.tensor([[-100, -100, 7, 8]])
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels)
    log_p = task.logits(task.params, batch)[0].log_softmax(-1)
    by_hand = -(log_p[1, 7] + log_p[2, 8]) / 2
    assert task.loss.weight(batch) == 2
    torch.testing.assert_close(task.loss(task.params, batch), by_hand)
    nothing = Batch(batch.inputs, torch.full_like(ids, -100))
    assert float(task.loss(task.params, nothing)) == 0.0


def test_every_parameter_must_be_given() -> None:
    task, params, batch = setup("bert", False, LORA)
    params.popitem()
    with pytest.raises(AssertionError):
        task.loss(params, batch)


@pytest.mark.parametrize("adapter", [LORA, TINY, HeadOnly()], ids=lambda a: a.kind)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_bfloat16_body_with_float32_adapters(family: str, adapter: Adapter) -> None:
    task = tiny_task(family, adapter, dtype=torch.bfloat16)
    assert {x.dtype for x in task.params.values()} == {torch.float32}
    examples = tiny_examples(4)
    logits = task.logits(task.params, examples.batch(range(4)))
    assert logits.dtype == torch.float32
    grad = gradient(task.loss, moved(task.params), examples.batch(range(4)))
    assert {x.dtype for x in grad.values()} == {torch.float32}
    exact = tiny_task(family, adapter, dtype=torch.float32)
    reference = exact.logits(exact.params, examples.batch(range(4)))
    torch.testing.assert_close(logits, reference, rtol=0.1, atol=0.15)
