"""The factors of low-rank updates among named parameters, and exact arithmetic on their products.

An adapted matrix [O, I] becomes W + s (B A + R): A [r, I], B [O, r], and R [O, I], a dense part
that only an aggregator writes ("folded", ``adapter.fold``). s stands outside, so nothing here knows
alpha, r or rsLoRA.

Legend: O outputs, I inputs, r rank, N clients, R the sum of their ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

A, B, FOLDED, CORE = "lora_A.", "lora_B.", "folded", "core"


@dataclass(frozen=True)
class Factors:
    """The names of one matrix's factors; ``folded``: of its dense part, whether there or not."""

    a: str
    b: str
    folded: str


def is_a(name: str) -> bool:
    """Is it the factor A [r, I] of a matrix?"""
    return f".{A}" in f".{name}"


def is_b(name: str) -> bool:
    """Is it the factor B [O, r] of a matrix?"""
    return f".{B}" in f".{name}"


def is_folded(name: str) -> bool:
    """Is it the dense part [O, I] of a matrix?"""
    return f".{name}".endswith(f".{FOLDED}")


def factors_of(names: Iterable[str]) -> tuple[Factors, ...]:
    """The matrices of which both factors are among the names, in their order."""
    there = list(names)
    known = {*there}
    found = []
    for name in there:
        stem, mark, rest = f".{name}".partition(f".{A}")
        if mark and (b := f"{stem}.{B}{rest}"[1:]) in known:
            found.append(Factors(name, b, f"{stem}.{FOLDED}"[1:]))
    return tuple(found)


def stacked(
    pairs: Sequence[tuple[Tensor, Tensor]], shares: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """B_s [O, R] and A_s [R, I] with B_s A_s = sum_i share_i B_i A_i, exactly; float64.

    Args:
        pairs: (A_i, B_i), of any ranks.
    """
    b_OR = torch.cat([b.double() * p for (_, b), p in zip(pairs, shares, strict=True)], 1)
    return b_OR, torch.cat([a.double() for a, _ in pairs], 0)


def norm_of_product(b_OR: Tensor, a_RI: Tensor) -> float:
    """|B A|_F without the product [O, I]."""
    square = ((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).sum()
    return float(square.clamp(min=0).sqrt())


def core_svd(b_OR: Tensor, a_RI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [O, k], S [k] (falling), V^T [k, I] of B A, by the SVD of a k x k core, k = min(O, R, I).

    Of every right vector the largest entry is positive, as bits differ between machines and signs
    should not.
    """
    q_b, r_b = torch.linalg.qr(b_OR)
    q_a, r_a = torch.linalg.qr(a_RI.T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    u, vt = q_b @ u, vt @ q_a.T
    at = vt.abs().argmax(1, keepdim=True)
    sign = torch.where(vt.gather(1, at) < 0, -1.0, 1.0).to(vt)
    return u * sign.T, s, vt * sign
