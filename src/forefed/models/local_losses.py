"""A model cut into parts, each with a loss of its own: no backward pass through the whole.

Part j runs on what the part before hands over, as a constant; then the model's own end (norm,
pooling, head) makes logits of what the part hands over, as if the blocks behind it were not there.
Between the two one block more may run, the first of the next part, by a copy of its adapter.

Source: MAN (Su et al., ECCV 2024, arXiv 2407.05638), which has an auxiliary network of its own a
part; here that is the model's end, by copies of its numbers, as it is trained and as large as the
vocabulary. gradients/block_local.py says the rest.

Legend: B examples, S positions, H width; blocks 0 to n - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from forefed.core.errors import UserError
from forefed.core.types import Batch, Params
from forefed.models.functional import replaced

if TYPE_CHECKING:
    from forefed.models.task import ModelLoss

PLACE = "engine.kind = 'block_local'"


def local_losses(
    loss: ModelLoss, params: Params, batch: Batch, parts: int, copies: Params
) -> Iterator[Tensor]:
    """The mean loss of every part (``core.types.Locally``).

    Args:
        copies: of all parameters; those of the block behind a part, and of the model's end.

    Raises:
        UserError: a model that cannot be cut so.
    """
    blocks, model = loss.blocks, loss.forward.model
    if parts > len(blocks):
        raise UserError(
            f"{PLACE}: parts = {parts}, and this model has {len(blocks)} blocks of its own; lower "
            "engine.parts"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(f"{PLACE}: the model has two stacks of blocks; take engine = 'backprop'")
    names = {module: f"{name}." for name, module in model.named_modules()}
    own = [[n for n in params if n.startswith(names[block])] for block in blocks]
    outside = params.keys() - {n for some in own for n in some}
    whole = {n: x.detach() for n, x in copies.items()}
    hidden: Tensor | None = None
    ends = [len(blocks) * j // parts for j in range(parts + 1)]
    for start, stop in pairwise(ends):
        last = stop == len(blocks)
        mine = {n for some in own[start:stop] for n in some} | (outside if last else set())
        there = {n: params[n] if n in mine else whole[n] for n in params}
        reached: list[Tensor] = []
        runs = _runs(blocks, start, stop, hidden, reached)
        call = loss.forward.call_of(there, batch)
        with replaced(runs):
            total = loss.forward.functional.run(call, loss.of_call, batch)
        yield total / max(loss.weight(batch), 1)
        del total
        (hidden,) = reached


def _runs(
    blocks: tuple[nn.Module, ...],
    start: int,
    stop: int,
    hidden: Tensor | None,
    reached: list[Tensor],
) -> dict[nn.Module, Callable[..., Any]]:
    """What every block does while a part is computed, but for those that run as ever."""

    def ends(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = run(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise UserError(f"{PLACE}: the model's blocks hand over more than hidden states")
        reached.append(output.detach())
        return output

    found: dict[nn.Module, Callable[..., Any]] = {}
    for i, block in enumerate(blocks):
        if i < start:
            found[block] = partial(_handed, hidden)
        elif i == stop - 1:
            found[block] = partial(ends, block.forward)
        elif i > stop:
            found[block] = partial(_handed, None)
    return found


def _handed(hidden_BSH: Tensor | None, *args: Any, **kwargs: Any) -> Any:
    """Hidden states in the place of a block: these, or those that came."""
    if hidden_BSH is not None:
        return hidden_BSH
    return args[0] if args else kwargs["hidden_states"]
