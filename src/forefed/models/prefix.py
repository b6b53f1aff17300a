"""The frozen prefix: what enters a client's first trained block, computed once per example.

A client that trains late units repeats one computation for every example in every local epoch:
embeddings and the blocks before its first trained one, at depth d. Here their result is kept, and
in later steps these blocks are left out: each hands over the kept hidden states instead of running.
Embeddings, masks and positions are computed as ever, so an unmodified Hugging Face model serves.

The cache never changes a result: an example's hidden states are computed from this example alone,
without padding, so they are the same bits whoever is in the batch, whether the cache is warm, cold,
full or on disk. Against a run without a cache the difference is rounding. Entries belong to the
trained tensors used before d; when one of those changes, they are forgotten.

Axes: B examples, S positions, L tokens of one example, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from forefed.core import trees
from forefed.core.lora import factors_of
from forefed.core.types import (
    Batch,
    Each,
    InTwo,
    Locally,
    LossFn,
    Params,
    Unit,
    each_of,
    in_two_of,
    locally_of,
)
from forefed.models.attention import attention_of
from forefed.models.functional import KeyedDropout, outside_transforms, replaced
from forefed.models.prefix_cache import PrefixCache
from forefed.models.task import Task


@dataclass(frozen=True)
class FrozenPrefix:
    """The losses of one task with their frozen prefix left out, and the cache behind them."""

    task: Task
    cache: PrefixCache
    refusals: dict[int, str | None] = field(default_factory=dict)
    """By depth, as far as asked for (a memory, not a setting)."""

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        return self.task.loss_recomputed.blocks

    @cached_property
    def before(self) -> tuple[tuple[str, ...], ...]:
        """By depth: the trained tensors (anybody's) that take part before that block."""
        return tuple(
            tuple(n for u in self.task.units if u.depth < depth for n in self.decisive(u))
            for depth in range(len(self.blocks) + 1)
        )

    def decisive(self, unit: Unit) -> tuple[str, ...]:
        """What of a unit changes in a run: what is trained, and the dense part beside factors."""
        beside = [at.folded for at in factors_of(unit.params)]
        return (*unit.params, *(n for n in beside if n in self.task.params))

    def loss(self, base: LossFn, assigned: Sequence[str], recurring: bool) -> LossFn:
        """``base`` with the cached prefix, or ``base`` where that is refused or does not pay.

        Args:
            base: a loss of this task.
            assigned: the names of what is trained; everything else is constant.
            recurring: whether examples are seen again before the server's next parameters. If not,
                the cache pays only where nothing at all is trained before, by anybody.
        """
        depth = self.usable(self.depth(assigned))
        pays = recurring or not self.before[depth]
        return CachedLoss(base, self, depth) if pays and not self.refusal(depth) else base

    def evaluation(self, params: Params, batch: Batch) -> AbstractContextManager[None]:
        """Open while the whole model is tested on a batch: leaves out what nobody trains."""
        depth = self.usable(self.depth(self.task.params.keys()))
        if self.refusal(depth):
            return nullcontext()
        return self.left_out(depth, self.hidden(params, batch, depth))

    def depth(self, assigned: Collection[str]) -> int:
        """The first block with an assigned unit; the number of blocks for the head alone."""
        chosen = set(assigned)
        return min((u.depth for u in self.task.units if chosen & set(u.params)), default=0)

    def usable(self, depth: int) -> int:
        """The deepest prefix up to this depth that is not refused (this depth, if all are): a head
        that reads what enters an earlier block needs that block's true input."""
        return next((d for d in range(depth, 0, -1) if not self.refusal(d)), depth)

    def refusal(self, depth: int) -> str | None:
        """Why there is no cached prefix of ``depth`` blocks; None where there is one."""
        if depth not in self.refusals:
            self.refusals[depth] = self._refusal(depth)
        return self.refusals[depth]

    def _refusal(self, depth: int) -> str | None:
        if not self.blocks:
            return "no repeated blocks were found in this model"
        if depth <= 0:
            return "nothing lies before the first trained unit"
        later = {m for block in self.blocks[depth:] for m in block.modules()}
        for module in self.task.model.modules():
            if isinstance(module, KeyedDropout) and module.p > 0 and module not in later:
                return f"the adapter's dropout before block {depth} is random (adapter.dropout)"
        if self.calls != list(range(len(self.blocks))):
            return "the model runs a block several times (shared layers)"
        if self.handed_over is None:
            return "the model's blocks hand over more than hidden states"
        if not self._agrees(depth):
            return "the model's result depends on more than the hidden states of its blocks"
        return None

    @cached_property
    def few_tokens(self) -> Batch:
        """What the model is tried on."""
        words = self.task.model.get_input_embeddings().num_embeddings
        ids_BS = torch.arange(3, 8)[None] % words
        end = self.task.model.config.eos_token_id
        if isinstance(end, int):  # T5 and BART read their class there
            ids_BS[0, -1] = end
        inputs = {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}
        return Batch(inputs, torch.zeros(1))

    @cached_property
    def _outputs(self) -> list[tuple[int, Any]]:
        """The number and the output of every block that runs, in order."""
        seen: list[tuple[int, Any]] = []

        def spy(i: int, run: Any, *args: Any, **kwargs: Any) -> Any:
            output = run(*args, **kwargs)
            seen.append((i, output))
            return output

        spies = {b: partial(spy, i, b.forward) for i, b in enumerate(self.blocks)}
        with torch.no_grad(), replaced(spies):
            self.task.logits(self.task.params, self.few_tokens)
        return seen

    @cached_property
    def calls(self) -> list[int]:
        return [i for i, _ in self._outputs]

    @cached_property
    def handed_over(self) -> Callable[[Tensor], Any] | None:
        """Puts hidden states in the form in which a block returns them; None: there is more."""
        output = self._outputs[0][1]
        if isinstance(output, Tensor):
            return lambda hidden: hidden
        if isinstance(output, tuple) and all(x is None for x in output[1:]):  # DeBERTa
            return lambda hidden: (hidden, *output[1:])
        return None

    def _agrees(self, depth: int) -> bool:
        """Does the model, on a few tokens, do without its first blocks?"""
        params, batch = self.task.params, self.few_tokens
        with torch.no_grad():
            expected = self.task.logits(params, batch)
            with self.left_out(depth, self.hidden_of(params, batch, depth)):
                found = self.task.logits(params, batch)
        largest = float(expected.abs().max())
        return torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * largest)

    def hidden(self, params: Params, batch: Batch, depth: int) -> Tensor:
        """What enters block ``depth``, [B, S, H], zero at padded positions."""
        plain = {**self.task.params, **trees.pick(params, self.before[depth])}
        with outside_transforms():
            return self._hidden(plain, batch, depth)

    def _hidden(self, params: Params, batch: Batch, depth: int) -> Tensor:
        self.cache.valid_for(params, self.before, depth)
        rows = []
        for b in range(batch.size):
            row = _unpadded(batch, b)
            example = _digest(row)
            hidden_LH = self.cache.get(depth, example)
            if hidden_LH is None:
                hidden_LH = self.hidden_of(params, row, depth)[0]
                self.cache.put(depth, example, hidden_LH)
            rows.append(hidden_LH.to(self.task.device))
        hidden_BSH = rows[0].new_zeros(batch.size, batch.length, rows[0].shape[1])
        for b, hidden_LH in enumerate(rows):
            hidden_BSH[b, : len(hidden_LH)] = hidden_LH
        return hidden_BSH

    def hidden_of(self, params: Params, batch: Batch, depth: int) -> Tensor:
        """The same by running the model as far as the block before ``depth``."""
        last = self.blocks[depth - 1]
        run = last.forward

        def stop(*args: Any, **kwargs: Any) -> Any:
            output = run(*args, **kwargs)
            raise _Reached(output if isinstance(output, Tensor) else output[0])

        with torch.no_grad(), replaced({last: stop}):
            try:
                self.task.logits(params, batch)
            except _Reached as reached:
                return reached.hidden
        raise AssertionError("the model ran past its blocks")

    @contextmanager
    def left_out(self, depth: int, hidden_BSH: Tensor) -> Iterator[None]:
        """While open, the blocks before ``depth`` hand over these hidden states."""
        assert self.handed_over is not None
        output = self.handed_over(hidden_BSH)
        with replaced({block: lambda *_, **__: output for block in self.blocks[:depth]}):
            yield


def weights_before(task: Task, depth: int) -> str | None:
    """A name for all that decides the hidden states before ``depth``: the model's configuration and
    a digest of its frozen tensors outside of later blocks and the head. None if they are trained.
    """
    if any(unit.depth < depth for unit in task.units):
        return None
    later = {m for block in task.loss_recomputed.blocks[depth:] for m in block.modules()}
    heads = tuple(name.split(".modules_to_save.")[0] for name in task.head)
    config = task.model.config
    sha = blake2b(config.to_json_string(use_diff=False).encode(), digest_size=16)
    sha.update(f"{depth} {task.device.type}".encode())
    if attention_of(task.model) != "weights":
        sha.update(f" attention in {attention_of(task.model)}".encode())
    for name, module in task.model.named_modules():
        if module not in later and not (heads and name.startswith(heads)):
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            sha.update(f"{name} {trees.digest(dict(own))}".encode() if own else b"")
    return f"kept-{depth}-{sha.hexdigest()}"


@dataclass(frozen=True)
class CachedLoss:
    """A loss whose first ``depth`` blocks are looked up (a ``core.types.LossFn``)."""

    base: LossFn
    prefix: FrozenPrefix
    depth: int

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        hidden_BSH = self.prefix.hidden(params, batch, self.depth)
        with self.prefix.left_out(self.depth, hidden_BSH):
            return self.base(params, batch)

    def weight(self, batch: Batch) -> int:
        return self.base.weight(batch)

    @property
    def locally(self) -> Locally | None:
        """Parts of the model run as they are."""
        return locally_of(self.base)

    @property
    def each(self) -> Each | None:
        inner = each_of(self.base)

        def each(params: Params, batch: Batch) -> Tensor:
            assert inner is not None
            hidden_BSH = self.prefix.hidden(params, batch, self.depth)
            with self.prefix.left_out(self.depth, hidden_BSH):
                return inner(params, batch)

        return None if inner is None else each

    @property
    def in_two(self) -> InTwo | None:
        inner = in_two_of(self.base)

        def logits(params: Params, batch: Batch) -> Tensor:
            assert inner is not None
            hidden_BSH = self.prefix.hidden(params, batch, self.depth)
            with self.prefix.left_out(self.depth, hidden_BSH):
                return inner.logits(params, batch)

        return None if inner is None else InTwo(logits, inner.losses)


class _Reached(Exception):
    def __init__(self, hidden: Tensor):
        self.hidden = hidden


def _unpadded(batch: Batch, b: int) -> Batch:
    """Row ``b`` alone, up to its last token."""
    row = batch.rows(b, b + 1)
    mask = row.inputs.get("attention_mask")
    length = batch.length if mask is None else int(mask[0].nonzero()[-1]) + 1
    return replace(row, inputs={name: x[:, :length] for name, x in row.inputs.items()})


def _digest(row: Batch) -> bytes:
    """An example is what the model reads of it."""
    digest = blake2b(digest_size=16)
    for name in sorted(row.inputs):
        digest.update(name.encode() + row.inputs[name].contiguous().numpy().tobytes())
    return digest.digest()
