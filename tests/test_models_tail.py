"""A language model's loss in chunks of tokens: the same loss, without the batch's logits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import Batch, Params
from forefed.gradients.engine import value_and_grad
from forefed.gradients.forward import by_dual, by_jvp
from forefed.gradients.memory import measure_peak
from forefed.models.adapters import Lora
from forefed.models.attach import draw_missing
from forefed.models.tail import CHUNK_BYTES, FEWEST_TOKENS, Tail, find_tail
from forefed.models.task import ModelLoss, Task, task_from_model
from tiny import moved, random_like, tiny_examples, tiny_task
from tiny_configs import PAD, widen

LORA = Lora(r=2, alpha=3.0)
FAMILIES = ("gpt2", "llama", "opt", "phi", "gemma2")


@cache
def task_of(family: str) -> Task:
    if family != "gemma2":
        return tiny_task(family, LORA, causal=True)
    return task_from_model(gemma2(), LORA, Key(0), label_names=None, base_name="tiny/gemma2")


def gemma2(soft_cap: float = 3.0) -> Any:
    """Its logits are soft-capped after the output matrix."""
    import transformers

    config = transformers.Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=24,
        max_position_embeddings=32,
        sliding_window=4,
        final_logit_softcapping=soft_cap,
        attn_logit_softcapping=None,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(config)
    draw_missing(model, {n for n, _ in model.named_parameters()}, 0.3, Key(1))
    model = model.eval().double()
    widen(model)
    return model


def setup(family: str) -> tuple[Task, Params, Batch]:
    task = task_of(family)
    batch = tiny_examples(5, causal=True, types=False).batch(range(5), dropout=Key(7))
    return task, moved(task.params), batch


def by_chunks(loss: ModelLoss, tokens: int) -> ModelLoss:
    assert loss.tail is not None
    return replace(loss, tail=replace(loss.tail, tokens=tokens))


def whole(loss: ModelLoss) -> ModelLoss:
    """From the logits of the whole batch."""
    return replace(loss, tail=None)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_change_nothing(family: str) -> None:
    """Loss, gradient, and slopes by both kinds of forward mode."""
    task, params, batch = setup(family)
    assert task.loss.chunked and task.loss_recomputed.chunked
    expected, grad = value_and_grad(whole(task.loss), params, {}, batch)
    along = {n: torch.stack([random_like(params, Key(k))[n] for k in range(2)]) for n in params}
    slopes = [trees.dot(grad, {n: x[k] for n, x in along.items()}) for k in range(2)]
    for loss in (by_chunks(task.loss, 3), by_chunks(task.loss, 1000), task.loss_recomputed):
        value, found = value_and_grad(loss, params, {}, batch)
        assert value == pytest.approx(expected, rel=1e-12)
        for name in params:
            torch.testing.assert_close(found[name], grad[name], rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        chunked = by_chunks(task.loss, 3)
        for by in (by_dual, by_jvp):
            slope = by(chunked, params, {}, batch, along)
            assert slope.loss == pytest.approx(expected, rel=1e-12)
            assert slope.slopes_K.tolist() == pytest.approx(slopes, rel=1e-9)


def test_recomputed_chunks_equal_plain_ones() -> None:
    task, params, batch = setup("llama")
    plain = value_and_grad(by_chunks(task.loss, 4), params, {}, batch)
    again = value_and_grad(by_chunks(task.loss_recomputed, 4), params, {}, batch)
    assert plain[0] == again[0]
    for name in params:
        torch.testing.assert_close(plain[1][name], again[1][name], rtol=1e-10, atol=1e-12)


def test_evaluation_never_holds_the_logits_of_a_batch() -> None:
    task, params, batch = setup("gpt2")
    examples = tiny_examples(5, causal=True, types=False)
    sums = task.evaluate(params, examples, range(5), 5)
    assert sums["loss_sum"] == pytest.approx(float(whole(task.loss).sum(params, batch)), rel=1e-12)
    widest = 0

    def spy(_: object, __: object, logits: torch.Tensor) -> None:
        nonlocal widest
        widest = max(widest, logits.numel() // logits.shape[-1])

    handle = task.model.get_base_model().get_output_embeddings().register_forward_hook(spy)
    try:
        small = replace(task, loss=by_chunks(task.loss, 4))
        assert small.evaluate(params, examples, range(5), 5) == pytest.approx(sums, rel=1e-12)
    finally:
        handle.remove()
    assert widest == 4


def test_only_predicted_tokens_cost() -> None:
    """Positions without a label never meet the output matrix; no label at all is a loss of 0."""
    task, params, batch = setup("llama")
    labels = torch.full_like(batch.labels, -100)
    labels[1, 2] = batch.inputs["input_ids"][1, 2]
    one = replace(batch, labels=labels)
    seen: list[int] = []
    head = task.model.get_base_model().get_output_embeddings()
    handle = head.register_forward_hook(lambda *x: seen.append(x[2].shape[-2]))
    try:
        found = float(task.loss(params, one))
    finally:
        handle.remove()
    assert seen == [1]
    logits = task.logits(params, one)
    assert found == pytest.approx(float(cross_entropy(logits[1, 1:2], labels[1, 2:3])), rel=1e-12)
    nothing = replace(batch, labels=torch.full_like(batch.labels, -100))
    assert float(task.loss(params, nothing)) == 0.0


def test_tokens_at_once() -> None:
    tail = Tail(None, None, None, vocabulary=32_000)
    assert tail.tokens_at_once(torch.zeros(2, 3)) == CHUNK_BYTES // (2 * 4 * 32_000)
    assert Tail(None, None, None, 10**9).tokens_at_once(torch.zeros(2, 3)) == FEWEST_TOKENS


def test_a_model_with_another_tail_keeps_its_whole_loss() -> None:
    """Where the model does something that the tail does not see, it is not used."""
    model = gemma2()
    assert find_tail(model) is not None
    assert find_tail(model.base_model) is None  # no output matrix
    own = model.forward

    def reads_its_inputs(input_ids: Any = None, **kwargs: Any) -> Any:
        output = own(input_ids=input_ids, **kwargs)
        output.logits = output.logits + (0.0 if input_ids is None else 1.0)
        return output

    model.forward = reads_its_inputs
    assert find_tail(model) is None


@pytest.mark.parametrize("recomputed", [False, True])
def test_memory(recomputed: bool) -> None:
    """A vocabulary of 50,000: a recomputed or forward step needs a fraction of the logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50_000,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    task = task_from_model(model, LORA, Key(0), label_names=None, base_name="tiny/wide")
    batch = tiny_examples(causal=True, types=False, lengths=[65] * 8).batch(range(8))
    logits = 8 * 64 * 50_000 * 4
    params = moved(task.params)
    if recomputed:
        _, peak = measure_peak(lambda: value_and_grad(task.loss_recomputed, params, {}, batch))
    else:
        along = {n: x[None] for n, x in random_like(params, Key(1)).items()}
        with torch.no_grad():
            _, peak = measure_peak(lambda: by_dual(task.loss, params, {}, batch, along))
    assert peak < min(logits, 4 * CHUNK_BYTES)
