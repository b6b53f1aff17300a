"""Backprop with recomputation of each block (Chen et al., arXiv 1604.06174).

PEFT's and Hugging Face's own switches are not used: they leave hooks behind that make
``torch.func.jvp`` raise and later backward passes run through every layer, and they know nothing of
tensors that ``functional_call`` swapped in: by the time of the backward pass, which runs the blocks
again, those are gone. Here each block's second run swaps in the tensors of its first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from forefed.models.functional import Call, Functional, replaced


@contextmanager
def recomputing(functional: Functional, call: Call, blocks: Sequence[nn.Module]) -> Iterator[None]:
    """While open, blocks keep only their inputs and run again in the backward pass."""
    with replaced({b: checkpointed(functional, call, b.forward) for b in blocks}):
        yield


def checkpointed(
    functional: Functional, call: Call, forward: Callable[..., Any]
) -> Callable[..., Any]:
    """``forward`` that keeps only its inputs and runs again, with the call's tensors."""

    def first_or_second_run(*args: Any, **kwargs: Any) -> Any:
        return functional.run(call, forward, *args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(
            first_or_second_run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )

    return run
