"""How long every contribution of a round is, and where it points: what a record tells of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from forefed.core.types import Contribution, Json, Params

AT_ONCE = 1 << 20
"""Numbers of which lengths and angles are taken at once: 8 MB in float64."""


def described(contributions: Sequence[Contribution], total: Params | None) -> tuple[Json, ...]:
    """{client, norm, cosine} of every contribution, against the aggregate over the same parameters.

    All clients that trained the same at once, in float64, and told to six digits: the last ones of
    a dot product depend on where its numbers lie in memory.
    """

    def shown(x: float) -> float:
        return float(f"{x:.6g}")

    alike: dict[tuple[tuple[str, torch.Size], ...], list[Contribution]] = {}
    for c in contributions:
        alike.setdefault(tuple((n, x.shape) for n, x in c.delta.items()), []).append(c)
    told: dict[int, tuple[float, float | None]] = {}
    for form, some in alike.items():
        # a client of lower rank has no angle to the whole
        fits = total is not None and all(total[n].shape == s for n, s in form if n in total)
        like, rows = some[0].delta, [c.delta for c in some]
        whole = {
            n: total[n] if total and fits and n in total else torch.zeros_like(like[n])
            for n, _ in form
        }
        squares, dots = [0.0] * (len(rows) + 1), [0.0] * (len(rows) + 1)
        for names in _some_at_once(form, len(rows)):
            x_ND = torch.stack([_joined(each, names) for each in (*rows, whole)]).double()
            norms, along = torch.linalg.vector_norm(x_ND, dim=1), x_ND @ x_ND[-1]
            squares = [a + b * b for a, b in zip(squares, norms.tolist(), strict=True)]
            dots = [a + b for a, b in zip(dots, along.tolist(), strict=True)]
        for c, square, dot in zip(some, squares, dots, strict=False):
            product = math.sqrt(square) * math.sqrt(squares[-1])
            told[c.client] = shown(math.sqrt(square)), shown(dot / product) if product else None
    return tuple(
        {"client": c.client, "norm": told[c.client][0], "cosine": told[c.client][1]}
        for c in contributions
    )


def _some_at_once(form: Iterable[tuple[str, torch.Size]], clients: int) -> Iterator[list[str]]:
    """The names, so many together as ``AT_ONCE`` allows for all clients."""
    names: list[str] = []
    size = 0
    for name, shape in form:
        if names and clients * (size + shape.numel()) > AT_ONCE:
            yield names
            names, size = [], 0
        names.append(name)
        size += shape.numel()
    if names:
        yield names


def _joined(tensors: Params, names: Sequence[str]) -> Tensor:
    parts = [tensors[n].reshape(-1) for n in names]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
