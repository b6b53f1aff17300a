"""Block-local losses: no gradient of one part from another's loss, copies, memory, reductions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Params
from forefed.gradients.backprop import Backprop
from forefed.gradients.block_local import BlockLocal
from forefed.gradients.memory import measure_peak
from forefed.models.adapters import Lora
from forefed.models.task import Task
from tiny import moved, tiny_examples, tiny_task

LORA = Lora(r=2)


def block_of(name: str) -> int | None:
    """The block of a parameter; None: outside."""
    parts = name.split(".")
    return next((int(p) for p in parts if p.isdigit()), None)


def of(task: Task, engine: Any, params: Params, rows: int = 6) -> Any:
    batch = tiny_examples(rows, task.causal).batch(range(rows))
    return engine(engine.loss_of(task), params, batch, None, task.head)


@pytest.mark.parametrize(("family", "causal"), [("bert", False), ("llama", True)])
def test_one_part_is_backprop(family: str, causal: bool) -> None:
    task = tiny_task(family, LORA, causal=causal)
    params = moved(task.params)
    ours, plain = (of(task, e, params) for e in (BlockLocal(parts=1), Backprop()))
    assert trees.digest(ours.grad) == trees.digest(plain.grad)
    assert ours.loss == plain.loss


def test_a_part_s_loss_moves_no_other_part() -> None:
    task = tiny_task("bert", LORA, n_layers=4)
    params = moved(task.params)
    batch = tiny_examples(6).batch(range(6))
    leaves = {n: x.clone().requires_grad_() for n, x in params.items()}
    locally = task.loss_recomputed.locally
    assert locally is not None
    for j, value in enumerate(locally(leaves, batch, 2, params)):
        found = torch.autograd.grad(value, [*leaves.values()], allow_unused=True)
        moved_by = {n for n, g in zip(leaves, found, strict=True) if g is not None and g.any()}
        inside = {n for n in params if block_of(n) in (2 * j, 2 * j + 1)}
        assert moved_by == (inside | set(task.head) if j else inside)
    # the last one is the model's loss
    assert float(value.detach()) == pytest.approx(float(task.loss(params, batch)), rel=1e-6)


def test_copies_follow_slowly_and_stand_for_what_is_behind() -> None:
    task = tiny_task("bert", LORA, n_layers=4)
    first, later = task.params, moved(task.params)
    engine = BlockLocal(parts=2, ema=0.9)
    kept = of(task, engine.recalling({}, Key(0)), first).kept
    after = of(task, engine.recalling(kept, Key(1)), later).kept
    for n, x in first.items():  # e_2 = 0.9 theta_1 + 0.1 theta_2, as e_0 = theta_1
        torch.testing.assert_close(after[n], 0.9 * x + 0.1 * later[n])
    # part 0 sees part 1 by its copies alone, and only its first block and the end
    fixed = engine.recalling(kept, Key(1))
    there = {n: x + 1 if block_of(n) in (2, 3) else x for n, x in later.items()}
    here, moved_on = (of(task, fixed, p).grad for p in (later, there))
    for n in later:
        if block_of(n) in (0, 1):
            assert torch.equal(here[n], moved_on[n])
    copies = {n: x + 1 if block_of(n) == 3 else x for n, x in kept.items()}
    unread = of(task, engine.recalling(copies, Key(1)), later).grad
    copies = {n: x + 1 if block_of(n) == 2 else x for n, x in kept.items()}
    read = of(task, engine.recalling(copies, Key(1)), later).grad
    low = [n for n in later if block_of(n) == 1]
    assert all(torch.equal(unread[n], here[n]) for n in low)
    assert any(not torch.equal(read[n], here[n]) for n in low)


def test_micro_batches_are_the_batch() -> None:
    task = tiny_task("bert", LORA, n_layers=4)
    params = moved(task.params)
    one, many = (of(task, BlockLocal(micro_batch=m), params) for m in (None, 2))
    for n, g in one.grad.items():
        torch.testing.assert_close(many.grad[n], g, rtol=1e-4, atol=1e-6)


def test_four_parts_keep_less_than_half_of_the_activations() -> None:
    task = tiny_task("bert", LORA, n_layers=12)
    whole, parts = (
        measure_peak(lambda e=e: of(task, e, task.params, 32))[1]
        for e in (Backprop(micro_batch=None), BlockLocal(parts=4, micro_batch=None))
    )
    assert parts <= 0.5 * whole


def test_what_cannot_be_cut_is_said() -> None:
    task = tiny_task("bert", LORA)
    with pytest.raises(UserError, match="parts = 3, and this model has 2 blocks"):
        of(task, BlockLocal(parts=3), task.params)
    batch = tiny_examples(6).batch(range(6))
    with pytest.raises(UserError, match="this loss has no parts"):
        BlockLocal()(task.loss, task.params, batch)
