"""Optimisers, for the clients' local steps and for the server alike.

Sources: Reddi et al., "Adaptive federated optimization" (arXiv 2003.00295) for the server rules;
Loshchilov and Hutter (arXiv 1711.05101) for AdamW. A client feeds gradients, the server feeds
old - new of the round: both are descent directions, so one signature serves both:

    step(state, params, grad) -> (state, params)

Only the parameters named in ``grad`` move; the moments and the step count of all others keep their
bits, so a parameter that nobody trained this round is untouched. Arithmetic is float32 in separate
multiplications and additions (no fused operator, whose rounding depends on the vector unit), so a
client and the server that replays it end with the same bits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor

from forefed.core.settings import Choice, Registry, Slot
from forefed.core.types import Params, ServerState
from forefed.schedules import SCHEDULES, Constant, Schedule, factor_of
from forefed.schedules import conflicts as of_schedule

Rate = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimiser(Choice):
    """Base: a learning rate for the adapters and, when given, another for the head."""

    lr: Rate
    head_lr: Rate | None = None
    """Learning rate of the classification head; None: the same as ``lr``."""
    schedule: Annotated[
        tuple[SerializeAsAny[Schedule], ...],
        Slot(SCHEDULES, "how do its rates move over the rounds?", many=True),
    ] = ()
    """Pieces that follow one another; none: rates stay as they are."""

    state_names: ClassVar[tuple[str, ...]] = ()
    by_element: ClassVar[bool] = False
    """Is every element's step a function of its own numbers alone, in operations that round
    alike wherever an element stands (+ - * / and roots)? Then parameters may move as one vector."""

    @property
    def linear(self) -> bool:
        """Is a step a fixed multiple of the gradient, so that steps along a mean are the mean of
        steps?"""
        return False

    @property
    def steady(self) -> bool:
        """Are its rates the same in all rounds?"""
        return all(isinstance(piece, Constant) and piece.value == 1 for piece in self.schedule)

    @property
    def plain(self) -> bool:
        """Is every step old - direction, for all parameters and in all rounds?"""
        return self.linear and self.steady and self.lr == 1 and self.head_lr in (None, 1)

    def at(self, round: int, rounds: int) -> Self:
        """The optimiser of a round (counted from 1) of a run of so many."""
        factor = factor_of(self.schedule, round, rounds)
        return self if factor == 1 else self.scaled(factor)

    def scaled(self, factor: float) -> Self:
        """The same optimiser with both learning rates times ``factor``."""
        head_lr = None if self.head_lr is None else self.head_lr * factor
        return self.model_copy(update={"lr": self.lr * factor, "head_lr": head_lr})

    def step(
        self,
        state: ServerState,
        params: Params,
        grad: Params,
        head: frozenset[str] = frozenset(),
    ) -> tuple[ServerState, Params]:
        """One step on the parameters named in ``grad``.

        Args:
            state: moments by "moment/parameter"; empty at the start. Not changed.
            params: the current tensors. Not changed.
            grad: descent directions (gradient, or old - new), a subset of ``params``.
            head: the parameters that use ``head_lr``.
        """
        new_state, new_params = dict(state), dict(params)
        for name, g in grad.items():
            rate = self.lr if self.head_lr is None or name not in head else self.head_lr
            moments = {
                key: state[f"{key}/{name}"] if f"{key}/{name}" in state else torch.zeros_like(g)
                for key in self.state_names
            }
            steps = state.get(f"t/{name}", _NO_STEPS) + 1
            moments, moved = self.update(rate, params[name], g, moments, int(steps))
            new_params[name] = moved
            new_state.update({f"{key}/{name}": moment for key, moment in moments.items()})
            if moments:
                new_state[f"t/{name}"] = steps
        return new_state, new_params

    def conflicts(self, config: Any) -> Iterator[str]:
        place = "server" if self is config.server else "client.optimiser"
        yield from of_schedule(self.schedule, f"{place}.schedule")

    @abstractmethod
    def update(
        self, rate: float, w: Tensor, g: Tensor, moments: dict[str, Tensor], t: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Moments and value of one parameter after its ``t``-th step (t counts from 1)."""


_NO_STEPS = torch.zeros((), dtype=torch.int64)


class Sgd(Optimiser):
    """Gradient descent; with momentum 0 and rate 1 on the server: plain averaging."""

    kind: Literal["sgd"] = "sgd"
    lr: Rate = 1.0
    momentum: Beta = 0.0
    weight_decay: Rate = 0.0

    state_names: ClassVar[tuple[str, ...]] = ("m",)
    by_element: ClassVar[bool] = True

    @property
    def linear(self) -> bool:
        return not (self.momentum or self.weight_decay)

    def update(
        self, rate: float, w: Tensor, g: Tensor, moments: dict[str, Tensor], t: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        if self.weight_decay:
            g = g + self.weight_decay * w
        if not self.momentum:
            return {}, w - rate * g
        m = self.momentum * moments["m"] + g
        return {"m": m}, w - rate * m


def moved_moments(
    by: AdamW | DiffGrad, g: Tensor, moments: dict[str, Tensor], t: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Adam's m and v after step t, and both without the bias of their beginning at 0."""
    m = by.beta1 * moments["m"] + (1 - by.beta1) * g
    v = by.beta2 * moments["v"] + (1 - by.beta2) * (g * g)
    return m, v, m / (1 - by.beta1**t), v / (1 - by.beta2**t)


class AdamW(Optimiser):
    """Adam with bias correction and decoupled weight decay: the usual client optimiser."""

    kind: Literal["adamw"] = "adamw"
    lr: Rate = 1e-3
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Rate = 0.01

    source: ClassVar[str] = "Loshchilov and Hutter, arXiv 1711.05101"
    state_names: ClassVar[tuple[str, ...]] = ("m", "v")
    by_element: ClassVar[bool] = True

    def update(
        self, rate: float, w: Tensor, g: Tensor, moments: dict[str, Tensor], t: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        m, v, m_hat, v_hat = moved_moments(self, g, moments, t)
        decayed = w - (rate * self.weight_decay) * w if self.weight_decay else w
        return {"m": m, "v": v}, decayed - rate * (m_hat / (v_hat.sqrt() + self.eps))


class DiffGrad(Optimiser):
    """Adam whose step is held back where the gradient hardly changes: times 0.5 to 1.

    xi = sigmoid(|g_before - g|). Elements far below 1 change by far less than 1, and there it is
    Adam at half its rate (language models).
    """

    kind: Literal["diffgrad"] = "diffgrad"
    lr: Rate = 1e-3
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-8

    source: ClassVar[str] = "Dubey et al., arXiv 1909.11015"
    state_names: ClassVar[tuple[str, ...]] = ("m", "v", "before")

    def update(
        self, rate: float, w: Tensor, g: Tensor, moments: dict[str, Tensor], t: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        m, v, m_hat, v_hat = moved_moments(self, g, moments, t)
        friction = torch.sigmoid((moments["before"] - g).abs())
        moved = w - rate * (friction * m_hat / (v_hat.sqrt() + self.eps))
        return {"m": m, "v": v, "before": g.clone()}, moved


class _ServerAdaptive(Optimiser):
    """m <- b1 m + (1 - b1) g; w <- w - lr m / (sqrt(v) + tau); no bias correction, m = v = 0."""

    lr: Rate = 1e-2
    beta1: Beta = 0.9
    tau: Annotated[float, Field(gt=0)] = 1e-3
    """Adaptivity: steps of elements far below tau shrink in proportion."""

    source: ClassVar[str] = "Reddi et al., arXiv 2003.00295"
    state_names: ClassVar[tuple[str, ...]] = ("m", "v")
    by_element: ClassVar[bool] = True

    def update(
        self, rate: float, w: Tensor, g: Tensor, moments: dict[str, Tensor], t: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        m = self.beta1 * moments["m"] + (1 - self.beta1) * g
        v = self.second_moment(moments["v"], g * g)
        return {"m": m, "v": v}, w - rate * (m / (v.sqrt() + self.tau))

    @abstractmethod
    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor: ...


class Adam(_ServerAdaptive):
    """FedAdam's server rule (no bias correction)."""

    kind: Literal["adam"] = "adam"
    beta2: Beta = 0.99

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * squared


class Yogi(_ServerAdaptive):
    """FedYogi's server rule: the second moment moves by a bounded, signed step."""

    kind: Literal["yogi"] = "yogi"
    beta2: Beta = 0.99

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        return v - (1 - self.beta2) * squared * torch.sign(v - squared)


class Adagrad(_ServerAdaptive):
    """FedAdagrad's server rule: the second moment only grows, so steps shrink as 1 / sqrt(t)."""

    kind: Literal["adagrad"] = "adagrad"
    beta1: Beta = 0.0

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        return v + squared


OPTIMISERS: Registry[Optimiser] = Registry("optimiser", [Sgd, AdamW, DiffGrad, Adam, Yogi, Adagrad])
