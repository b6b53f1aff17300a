"""A module with adapters as a pure function of its trainable tensors.

``torch.func.functional_call`` swaps the tensors in for the time of a call. Everything that a call
depends on beyond the inputs is one ``Call``, so that a recomputation during a later backward pass
can repeat it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from forefed.core.keys import Key
from forefed.core.types import Params

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """The trainable tensors of one forward pass, and where its dropout masks come from."""

    params: Params
    dropout: Key | None = None
    first_row: int = 0


class CurrentCall:
    """The call that is running now, or None. Shared by the keyed dropout modules of one model."""

    call: Call | None = None


class KeyedDropout(nn.Module):
    """Dropout whose mask is a function of a key: off without one, whatever ``training`` says.

    Row b of the mask depends on the row's position in the whole batch, not on the micro-batch in
    which it happens to be computed.
    """

    def __init__(self, p: float, name: str, current: CurrentCall):
        super().__init__()
        self.p = p
        self.name = name
        self.current = current

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [B, ...] with the elements that the mask keeps divided by 1 - p, the others 0."""
        call = self.current.call
        if call is None or call.dropout is None:
            return x
        per_row = math.prod(x.shape[1:])
        uniform = call.dropout.fold(self.name).uniform(x.shape, call.first_row * per_row)
        kept = (uniform >= self.p).to(device=x.device, dtype=x.dtype)
        return x * (kept / (1 - self.p))


class Functional:
    """Runs functions of a model with other tensors in place of its trainable ones.

    While one call runs the module holds the call's tensors, so one ``Functional`` serves one thread
    at a time; after the call nothing of it is left.
    """

    def __init__(self, model: nn.Module, current: CurrentCall):
        self._inside = _Inside(model)
        self._current = current

    def run(self, call: Call, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """``function(*args, **kwargs)`` while the model's parameters are those of ``call``."""
        swapped = {f"model.{name}": x for name, x in call.params.items()}
        before = self._current.call
        self._current.call = call
        try:
            # tie_weights=False: TinyLoRA shares whole dictionaries of vectors between modules, not
            # tensors under two names, and searching for ties would cost every call.
            result: T = torch.func.functional_call(
                self._inside, swapped, (function, *args), kwargs, tie_weights=False
            )
            return result
        finally:
            self._current.call = before


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """While open, these modules run the given functions instead of their own ``forward``.

    May be nested; nothing is left on a module afterwards.
    """
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            vars(module).pop("forward", None)  # the class's own method shows again
            if own is not None:
                module.forward = own


@contextmanager
def outside_transforms() -> Iterator[None]:
    """While open, tensors are plain ones even inside ``torch.func.jvp`` or ``vmap``.

    There every new tensor belongs to the transformed call, and writing into an older one is
    refused; what is a constant of that call can be kept, or written into a buffer, here.
    """
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    with temporarily_clear_interpreter_stack():
        yield


class _Inside(nn.Module):
    """Lets ``functional_call`` run any function of the model, not just its forward."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)
