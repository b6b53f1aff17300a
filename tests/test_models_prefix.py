"""The frozen prefix: looked up instead of computed, with the same loss and derivatives."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from federation import Interrupted, StopAfter, World, lines
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.sizes import format_bytes, parse_bytes
from forefed.core.types import Batch, Order, Params
from forefed.data.examples import ClientData
from forefed.gradients.backprop import Backprop
from forefed.gradients.engine import value_and_grad
from forefed.gradients.forward import Forward, by_dual, by_jvp
from forefed.local import LocalTraining, TaskView, Trainer
from forefed.local.training import AssignedLoss
from forefed.models.adapters import HeadOnly, Lora, TinyLora
from forefed.models.prefix import CachedLoss, FrozenPrefix, weights_before
from forefed.models.prefix_cache import PrefixCache
from forefed.models.task import Task
from forefed.run import run
from forefed.wire import Dense
from tiny import moved, random_like, tiny_examples, tiny_task, with_dropout

LORA = Lora(r=2, alpha=3.0)
KINDS = [
    *((family, False) for family in ("bert", "roberta", "distilbert", "deberta-v2", "modernbert")),
    *((family, True) for family in ("gpt2", "opt", "llama")),
    ("llama", False),
]
LIMIT = 10**9


@cache
def task_of(family: str = "bert", causal: bool = False, layers: str = "all") -> Task:
    return tiny_task(family, LORA.model_copy(update={"layers": layers}), causal, n_layers=3)


def last_block(task: Task) -> tuple[str, ...]:
    """The names of a client that trains the last block, and the head if there is one."""
    return tuple(n for u in task.units if u.depth >= 2 for n in u.params)


def batch_of(causal: bool, rows: Any = range(5)) -> Batch:
    return tiny_examples(7, causal).batch(rows, dropout=Key(7))


def cached(task: Task, cache: PrefixCache, base: Any = None) -> CachedLoss:
    loss = FrozenPrefix(task, cache).loss(base or task.loss, last_block(task), recurring=True)
    assert isinstance(loss, CachedLoss) and loss.depth == 2
    return loss


@pytest.mark.parametrize(("family", "causal"), KINDS)
def test_the_cache_changes_nothing(family: str, causal: bool, tmp_path: Path) -> None:
    """Loss, gradient and slopes on ragged batches, cold and warm, in memory and on disk."""
    task = task_of(family, causal)
    params = moved(task.params)
    mine = trees.pick(params, last_block(task))
    rest = {n: x for n, x in params.items() if n not in mine}
    along = {n: x[None] for n, x in random_like(mine, Key(1)).items()}
    for folder in (None, tmp_path):
        cache = PrefixCache(LIMIT, folder)
        for rows in ((0, 1, 2), (2, 6, 1), (1, 2)):  # padded to other widths than before
            batch = batch_of(causal, rows)
            expected, grad = value_and_grad(task.loss, mine, rest, batch)
            for base in (task.loss, task.loss_recomputed):
                value, found = value_and_grad(cached(task, cache, base), mine, rest, batch)
                assert value == pytest.approx(expected, rel=1e-11)
                for name in mine:
                    torch.testing.assert_close(found[name], grad[name], rtol=1e-9, atol=1e-12)
            with torch.no_grad():
                loss = cached(task, cache)
                slopes = by_dual(loss, mine, rest, batch, along).slopes_K
                again = by_jvp(loss, mine, rest, batch, along).slopes_K
            slope = trees.dot(grad, {n: x[0] for n, x in along.items()})
            assert slopes.tolist() == pytest.approx([slope], rel=1e-9, abs=1e-12)
            assert again.tolist() == pytest.approx([slope], rel=1e-9, abs=1e-12)
        assert cache.computed == 4 and cache.reused > cache.computed


def test_the_prefix_runs_once_per_example() -> None:
    task = task_of()
    runs = [0, 0, 0]
    blocks = task.loss_recomputed.blocks
    handles = [b.attention.register_forward_hook(_counter(runs, i)) for i, b in enumerate(blocks)]
    try:
        loss = cached(task, PrefixCache(LIMIT))
        runs[:] = [0, 0, 0]
        for _ in range(3):
            loss(task.params, batch_of(False, range(4)))
    finally:
        for handle in handles:
            handle.remove()
    assert runs == [4, 4, 3]
    assert all("forward" not in vars(block) for block in blocks)


def _counter(runs: list[int], i: int) -> Any:
    def count(*_: Any) -> None:
        runs[i] += 1

    return count


def test_an_example_has_the_same_bits_in_any_company() -> None:
    """So a resumed run, whose cache is cold, goes on bit for bit."""
    task = task_of()
    prefix = FrozenPrefix(task, PrefixCache(LIMIT))
    together = prefix.hidden(task.params, batch_of(False, range(5)), 2)
    other = FrozenPrefix(task, PrefixCache(0))
    for b in (3, 1, 4):
        alone = other.hidden(task.params, batch_of(False, [b]), 2)[0]
        assert torch.equal(alone, together[b, : len(alone)])
        assert not together[b, len(alone) :].any()


def test_a_changed_parameter_empties_the_cache() -> None:
    """One before d does; one at d or behind does not, nor do equal values in other tensors."""
    task = task_of()
    params = moved(task.params)
    batch = batch_of(False, range(3))
    cache = PrefixCache(LIMIT)
    loss = cached(task, cache)
    loss(params, batch)
    first = next(u for u in task.units if u.depth == 0).params[0]
    last = next(u for u in task.units if u.depth == 2).params[0]
    kept = {n: x + (n == last) for n, x in params.items()}
    loss(kept, batch)
    assert (cache.computed, cache.reused) == (3, 3)
    changed = {**kept, first: kept[first] + 1e-3}
    found = float(loss(changed, batch))
    assert (cache.computed, cache.reused) == (6, 3)
    assert found == pytest.approx(float(task.loss(changed, batch)), rel=1e-11)
    assert found != float(loss(kept, batch))


def test_depths_are_kept_apart() -> None:
    """Two clients with other first blocks; the next round's parameters end both entries."""
    task, cache = task_of(), PrefixCache(LIMIT)
    prefix, batch = FrozenPrefix(task, cache), batch_of(False, range(2))
    one, two = (prefix.hidden(task.params, batch, depth) for depth in (1, 2))
    assert not torch.allclose(one, two)
    assert torch.equal(prefix.hidden(task.params, batch, 1), one)
    assert (cache.computed, cache.reused) == (4, 2)
    full = cache.stored_bytes
    prefix.hidden(moved(task.params), batch, 1)
    assert cache.stored_bytes == full / 2


@pytest.mark.parametrize("disk", [False, True])
def test_the_limit(disk: bool, tmp_path: Path) -> None:
    """Nothing more is stored, the run goes on, and the cache says so; a disk is left clean."""
    task = task_of()
    row = 16 * 8  # bytes per token
    batch = batch_of(False, range(5))
    lengths = batch.inputs["attention_mask"].sum(1).tolist()
    limit = row * int(sum(lengths[:2])) + (500 if disk else 1)  # files have a header
    cache = PrefixCache(limit, tmp_path if disk else None)
    loss = cached(task, cache)
    for _ in range(2):
        assert float(loss(task.params, batch)) == pytest.approx(
            float(task.loss(task.params, batch)), rel=1e-11
        )
    assert "limit" in cache.stopped and 0 < cache.stored_bytes <= limit
    assert cache.reused == 2 and len(list(tmp_path.glob("prefix-*/*"))) == (2 if disk else 0)
    del loss, cache
    assert not list(tmp_path.iterdir())


def kept(task: Task, folder: Path, limit: int = LIMIT) -> CachedLoss:
    cache = PrefixCache(limit, folder, partial(weights_before, task))
    loss = FrozenPrefix(task, cache).loss(task.loss, last_block(task), recurring=False)
    assert isinstance(loss, CachedLoss) and loss.depth == 2
    return loss


def test_a_later_run_finds_what_is_kept_for_its_weights(tmp_path: Path) -> None:
    """Whatever the adapter behind it; a damaged file is computed again; other weights see none."""
    task, batch = task_of(layers="last:1"), batch_of(False, range(5))
    first = kept(task, tmp_path)
    value = float(first(task.params, batch))
    stored = first.prefix.cache.stored_bytes
    del first
    other = tiny_task("bert", TinyLora(r=2, u=3, layers="last:1"), n_layers=3)
    for again, computed in ((task, 0), (other, 0), (task, 1)):
        loss = kept(again, tmp_path)
        found = float(loss(again.params, batch))
        expected = float(again.loss(again.params, batch))
        assert found == (value if again is task else pytest.approx(expected, rel=1e-11))
        cache = loss.prefix.cache
        assert (cache.computed, cache.reused) == (computed, 5 - computed)
        assert cache.stored_bytes >= stored
        del loss, cache
        (shelf,) = tmp_path.iterdir()
        assert len(list(shelf.iterdir())) == 5
        if again is other:
            min(shelf.iterdir()).write_bytes(b"half of")
    late = LORA.model_copy(update={"layers": "last:1"})
    changed = tiny_task("bert", late, n_layers=3, key=Key(9))
    assert weights_before(changed, 2) != weights_before(task, 2)
    assert weights_before(task_of(), 2) is None  # trained before, so never kept


def test_what_bfloat16_weights_make_is_kept_too(tmp_path: Path) -> None:
    late = TinyLora(r=2, u=3, layers="last:1")
    task, batch = tiny_task("bert", late, n_layers=3, dtype=torch.bfloat16), batch_of(False)
    values = []
    for reused in (0, 5):
        loss = kept(task, tmp_path)
        values.append(float(loss(task.params, batch)))
        assert loss.prefix.cache.reused == reused
    assert values[0] == values[1]


def test_evaluation_leaves_out_what_nobody_trains() -> None:
    task, examples = task_of(layers="last:1"), tiny_examples(7, False)
    params, cache = moved(task.params), PrefixCache(LIMIT)
    prefix = FrozenPrefix(task, cache)
    plain = task.evaluate(params, examples, range(7), 3)
    for _ in range(2):
        found = task.evaluate(params, examples, range(7), 3, prefix.evaluation)
        assert found.keys() == plain.keys()
        for name, sums in plain.items():
            assert found[name] == pytest.approx(sums, rel=1e-11), name
    assert (cache.computed, cache.reused) == (7, 7)
    everything = task_of()  # trained from the first block on: nothing to leave out
    prefix = FrozenPrefix(everything, cache)
    everything.evaluate(moved(everything.params), examples, range(2), 2, prefix.evaluation)
    assert cache.computed == 7


def test_a_full_disk_ends_keeping_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    task, cache = task_of(), PrefixCache(LIMIT, tmp_path)
    loss, batch = cached(task, cache), batch_of(False, range(2))
    assert float(loss(task.params, batch)) == pytest.approx(float(task.loss(task.params, batch)))
    assert "No space left" in cache.stopped


def test_when_it_pays() -> None:
    """Once per example only: the cache pays where nobody trains anything before."""
    task = task_of()
    names = last_block(task)
    prefix = FrozenPrefix(task, PrefixCache(LIMIT))
    assert prefix.loss(task.loss, names, recurring=False) is task.loss
    frozen = task_of(layers="last:1")
    prefix = FrozenPrefix(frozen, PrefixCache(LIMIT))
    found = prefix.loss(frozen.loss, last_block(frozen), recurring=False)
    assert isinstance(found, CachedLoss) and found.depth == 2
    head = tiny_task("bert", HeadOnly(), n_layers=3)
    found = FrozenPrefix(head, PrefixCache(LIMIT)).loss(head.loss, tuple(head.params), False)
    assert isinstance(found, CachedLoss) and found.depth == 3
    batch, params = batch_of(False), moved(head.params)
    assert float(found(params, batch)) == pytest.approx(float(head.loss(params, batch)), rel=1e-11)


def refusal(family: str, adapter: Lora, depth: int) -> str | None:
    task = tiny_task(family, adapter)
    assert depth > 0 or task.units[0].depth == 0
    return FrozenPrefix(task, PrefixCache(LIMIT)).refusal(depth)


def test_refusals() -> None:
    assert refusal("bert", LORA, 1) is None
    assert "nothing lies before" in str(refusal("bert", LORA, 0))
    assert "dropout before block 1 is random" in str(refusal("bert", with_dropout(LORA), 1))  # type: ignore[arg-type]
    assert "shared layers" in str(refusal("albert", LORA, 1))
    assert "more than hidden states" in str(refusal("t5", LORA, 1))
    late = with_dropout(LORA.model_copy(update={"layers": "last:1"}))
    assert refusal("bert", late, 1) is None  # type: ignore[arg-type]


def test_a_refused_prefix_leaves_the_loss_as_it_is() -> None:
    task = tiny_task("albert", LORA)
    prefix = FrozenPrefix(task, PrefixCache(LIMIT))
    assert prefix.loss(task.loss, task.head, recurring=True) is task.loss  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", [Forward(), Backprop()])
def test_a_client_trains_the_same_with_it(engine: Any) -> None:
    task = task_of("llama")
    examples = tiny_examples(7, types=False)
    data = ClientData(examples, train=torch.arange(7).numpy(), test=torch.arange(0).numpy())
    order = Order(run=1, round=1, client=0, assigned=last_block(task), params=moved(task.params))
    settings = LocalTraining(epochs=2, batch_size=3)
    plain = TaskView(task.loss, task.loss_recomputed, task.head)
    cache = PrefixCache(LIMIT)
    view = TaskView(task.loss, task.loss_recomputed, task.head, FrozenPrefix(task, cache))
    expected, _ = Trainer(settings, engine, Dense(), plain)(order, data, {})
    found, _ = Trainer(settings, engine, Dense(), view)(order, data, {})
    assert expected.grad is not None and found.grad is not None
    for name, x in expected.grad.items():
        torch.testing.assert_close(found.grad[name], x, rtol=1e-6, atol=1e-9)
    assert cache.computed == 7 and cache.reused >= 7


def test_a_run_says_once_that_the_limit_is_reached_and_resumes_bit_for_bit(
    world: World, tmp_path: Path
) -> None:
    """Warm, cold, full or off: a run's bits do not depend on what was kept."""

    class Listener(StopAfter):
        def __init__(self, rounds: int):
            super().__init__(rounds)
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    sets = ["adapter.layers=last:1", "client.epochs=2", "rounds=3", "cohort=3"]
    small = ["client.prefix_cache=disk", "client.prefix_cache_limit='4 kB'"]
    listener = Listener(99)
    whole = run(world.config(tmp_path, *sets, *small, "name=whole"), watcher=listener)
    assert listener.notes == [
        "the prefix cache keeps no more examples: the limit of 4.00 kB is reached"
    ]
    assert 0 < lines(whole.folder, "rounds.jsonl")[-1]["memory"]["prefix_cache"] <= 4000
    assert not list((tmp_path / ".cache").glob("prefix-*"))
    parts = world.config(tmp_path, *sets, "name=parts")
    with pytest.raises(Interrupted):
        run(parts, watcher=StopAfter(1))
    resumed = run(parts, resume=True)
    assert resumed.summary["digest"] == whole.summary["digest"]


def test_the_setting() -> None:
    assert LocalTraining().prefix_cache_limit == 500_000_000
    assert LocalTraining(prefix_cache_limit="1.5 GiB").prefix_cache_limit == 3 * 2**29
    with pytest.raises(UserError, match=r"client\.prefix_cache_limit: 'lots' is no size"):
        LocalTraining(prefix_cache_limit="lots")


@pytest.mark.parametrize(
    ("text", "size"),
    [(7, 7), ("7", 7), ("150MB", 150e6), ("2 GB", 2e9), ("1.5 GiB", 1.5 * 2**30), ("4G", 4e9)],
)
def test_sizes(text: int | str, size: float) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", 0, -5, "1 XB", "1.2.3MB", "3iB", True])
def test_what_is_no_size(text: int | str) -> None:
    with pytest.raises(UserError, match=r"memory: .* is no size"):
        parse_bytes(text, "memory")


def test_sizes_for_people() -> None:
    sizes = (0, 947, 999.6, 12_100_000, 1_430_000_000, 123_400_000)
    shown = ["0 B", "947 B", "1.00 kB", "12.1 MB", "1.43 GB", "123 MB"]
    assert [format_bytes(n) for n in sizes] == shown


def test_assigned_loss_around_it() -> None:
    """As the trainer stacks them; weights pass through."""
    task = task_of("gpt2", True)
    params: Params = moved(task.params)
    loss = cached(task, PrefixCache(LIMIT))
    batch = batch_of(True)
    mine = trees.pick(params, last_block(task))
    assert loss.weight(batch) == task.loss.weight(batch)
    found = float(AssignedLoss(loss, params)(mine, batch))
    assert found == pytest.approx(float(task.loss(params, batch)), rel=1e-11)
