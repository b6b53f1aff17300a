"""Sets of directions of one local step, and the estimate that slopes along them stand for.

Sources: SPRY (arXiv 2405.15551) section 3; BAFFLE (arXiv 2301.12195) for the scalar message.
A direction v has E[v v^T] = I, so mean_k <g, v_k> v_k is an unbiased estimate of g, with error
E||estimate - g||^2 = (d - 1)/K ||g||^2 for signs and (d + 1)/K ||g||^2 for Gaussian values over d
elements. Of unit vectors it is g itself.

Legend: K directions, D elements of all parameters together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from forefed.core import trees
from forefed.core.keys import Distribution, Key, directions_together
from forefed.core.types import Params

ELEMENTS_AT_ONCE = 1 << 17  # of one parameter's directions; large ones are drawn one by one
SMALL = 1 << 12  # of one parameter's directions: below, it is the calls that cost


@dataclass(frozen=True)
class RandomDirections:
    """``k`` random directions of one local step, a function of (run, round, stream, step, name).

    ``tag`` "C": ``stream`` is the client's id, each client has directions of its own; "G": a group
    of clients shares them. Values are identical on every device (core.keys).
    """

    exact: ClassVar[bool] = False

    run: int
    round: int
    stream: int
    k: int
    law: Distribution = "rademacher"
    tag: str = "C"
    step: int = 0
    scale: Params = field(default_factory=dict, compare=False)
    """Elementwise factors by name, where the directions are shaped: E[v v^T] = scale^2 then, and
    the estimate is the gradient times scale^2 (HiSo: H^-1/2, so H^-1 gradient)."""

    def at(self, step: int) -> Self:
        """The directions of another local step."""
        return replace(self, step=step)

    def count(self, like: Params) -> int:
        return self.k

    def tangents(self, like: Params, ks: range) -> Params:
        """Directions ``ks`` over ``like``: name -> [len(ks), *shape], of their dtype."""
        return {name: self._values(name, x, ks) for name, x in like.items()}

    def combine(self, like: Params, slopes_K: Tensor) -> Params | None:
        """mean_k slopes[k] v_k over the finite slopes, summed in float64 in the order of k.

        None when no slope is finite: the step is skipped.
        """
        finite = [k for k in range(self.k) if torch.isfinite(slopes_K[k])]
        if not finite:
            return None
        slopes = slopes_K.double()
        estimate: Params = {}
        small = self._small(like, len(finite))
        if small:
            sizes = [like[n].numel() for n in small]
            step, numbers = self.places(finite)
            keys = [self._key(n) for n in small]
            sum_D = torch.zeros(sum(sizes), dtype=torch.float64)
            for k, v in zip(
                finite, directions_together(keys, sizes, self.law, step, numbers), strict=True
            ):
                sum_D = sum_D + slopes[k] * v.double()
            mean_D = (sum_D / len(finite)).split(sizes)
            estimate = {
                n: part.to(like[n].dtype).reshape(like[n].shape)
                for n, part in zip(small, mean_D, strict=True)
            }
        for name, x in like.items():
            if name in estimate:
                continue
            total = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
            at_once = max(1, ELEMENTS_AT_ONCE // max(1, x.numel()))
            for start in range(0, len(finite), at_once):
                ks = finite[start : start + at_once]
                for k, v in zip(ks, self._values(name, x, ks), strict=True):
                    total = total + slopes[k] * v.double()
            estimate[name] = (total / len(finite)).to(x.dtype)
        return trees.pick(estimate, like)

    def combine_steps(self, like: Params, slopes_TK: Tensor) -> Tensor | None:
        """``combine`` of steps 0 to T - 1, to the same bits: [T, D], the parameters one after the
        other. The cipher runs once for all steps.

        None where that is ``combine``'s to do: other kinds of directions, shaped ones, slopes that
        are not finite, and parameters that are large, empty, elsewhere, of several dtypes or of
        one that loses float32's digits.
        """
        sizes = [x.numel() for x in like.values()]
        each = self.k * sum(sizes)
        plain = type(self) is RandomDirections and not self.scale
        fits = all(sizes) and 0 < each <= ELEMENTS_AT_ONCE
        kinds = {(x.device.type, x.dtype) for x in like.values()}
        known = len(kinds) == 1 and kinds <= {("cpu", torch.float32), ("cpu", torch.float64)}
        if not (plain and fits and known and bool(torch.isfinite(slopes_TK).all())):
            return None
        slopes, keys = slopes_TK.double(), [self._key(n) for n in like]
        found = torch.empty(len(slopes), sum(sizes), dtype=next(iter(like.values())).dtype)
        at_once = ELEMENTS_AT_ONCE // each
        for start in range(0, len(slopes), at_once):
            some = slopes[start : start + at_once]
            steps = [t for t in range(start, start + len(some)) for _ in range(self.k)]
            numbers = [*range(self.k)] * len(some)
            drawn = directions_together(keys, sizes, self.law, steps, numbers)
            v_TKD = drawn.double().reshape(len(some), self.k, -1)
            sum_TD = torch.zeros(len(some), sum(sizes), dtype=torch.float64)
            for k in range(self.k):
                sum_TD += some[:, k, None] * v_TKD[:, k]
            found[start : start + at_once] = sum_TD / self.k
        return found

    def _small(self, like: Params, count: int) -> list[str]:
        """Parameters whose directions are drawn together, to the same bits: those that are small,
        on the CPU, unshaped, and lose nothing as float32."""
        if type(self).drawn is not RandomDirections.drawn:
            return []
        return [
            n
            for n, x in like.items()
            if 0 < x.numel() * count <= SMALL
            and n not in self.scale
            and x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.float64)
        ]

    def _key(self, name: str) -> Key:
        return Key.direction(self.tag, self.run, self.round, self.stream, name)

    def project(self, grad: Params, ks: range | None = None) -> Tensor:
        """<grad, v_k> for every k, or for ``ks``: [K] float64."""
        ks = range(self.k) if ks is None else ks
        slopes_K = torch.zeros(len(ks), dtype=torch.float64)
        for name, g in grad.items():
            at_once = max(1, ELEMENTS_AT_ONCE // max(1, g.numel()))
            for start in range(0, len(ks), at_once):
                some = ks[start : start + at_once]
                for i, v in enumerate(self._values(name, g, some), start):
                    slopes_K[i] += torch.dot(g.flatten().double(), v.flatten().double()).cpu()
        return slopes_K

    def _values(self, name: str, like: Tensor, ks: Sequence[int]) -> Tensor:
        """Directions ``ks`` of one parameter: [len(ks), *shape], of its dtype and device."""
        step, numbers = self.places(ks)
        return self.drawn(name, like, step, numbers)

    def drawn(self, name: str, like: Tensor, step: int, numbers: Sequence[int]) -> Tensor:
        """Directions by their places in the parameter's stream."""
        values = self._key(name).directions(self.law, like.shape, step, numbers).to(like)
        return values * self.scale[name].to(like) if name in self.scale else values

    def places(self, ks: Sequence[int]) -> tuple[int, Sequence[int]]:
        """Where in the streams directions ``ks`` stand: the step and their numbers in it."""
        return self.step, ks

    def noise(self, elements: int, parts: int = 1) -> float:
        """v of an estimate of ``elements`` elements (``noise_along``)."""
        return noise_along(self.k // parts, elements, self.law)


@dataclass(frozen=True)
class BasisDirections:
    """K = D unit vectors over D elements: nothing is random, and every step has the same."""

    exact: ClassVar[bool] = True

    def at(self, step: int) -> BasisDirections:
        return self

    def count(self, like: Params) -> int:
        return trees.size(like)

    def tangents(self, like: Params, ks: range) -> Params:
        """Unit vectors ``ks`` of the flattened parameters: name -> [len(ks), *shape]."""
        tangents: Params = {}
        start = 0
        for name, x in like.items():
            rows = torch.zeros(len(ks), x.numel(), dtype=x.dtype, device=x.device)
            for row, k in enumerate(ks):
                if start <= k < start + x.numel():
                    rows[row, k - start] = 1
            tangents[name] = rows.reshape(len(ks), *x.shape)
            start += x.numel()
        return tangents

    def combine(self, like: Params, slopes_K: Tensor) -> Params | None:
        """The slopes as a gradient; None when any is not finite (a part of a gradient is none)."""
        if not bool(torch.isfinite(slopes_K).all()):
            return None
        return {n: x.to(like[n]) for n, x in trees.unflatten(slopes_K, like).items()}

    def project(self, grad: Params, ks: range | None = None) -> Tensor:
        """The gradient's own elements, [D] float64."""
        slopes_K = trees.flatten(grad).double().cpu()
        return slopes_K if ks is None else slopes_K[ks.start : ks.stop]

    def noise(self, elements: int, parts: int = 1) -> float:
        return 0.0


def noise_along(k: int, elements: int, law: Distribution) -> float:
    """v = E|estimate - gradient|^2 / |gradient|^2: (d - 1) / K for K random signs over d elements,
    (d + 1) / K for Gaussian values. A test measures it."""
    if not elements:
        return 0.0
    return (elements + (1 if law == "gauss16" else -1)) / k


def fields_of(directions: RandomDirections) -> dict[str, Any]:
    """What a kind of random directions takes over from plain ones."""
    return {f.name: getattr(directions, f.name) for f in fields(RandomDirections)}
