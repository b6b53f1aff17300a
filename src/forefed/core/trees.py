"""Arithmetic on dicts of tensors. Every function returns new dicts; none changes its arguments."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Tree = Mapping[str, Tensor]


def subtract(a: Tree, b: Tree) -> dict[str, Tensor]:
    """a - b, name by name."""
    return {name: a[name] - b[name] for name in a}


def step(params: Tree, grad: Tree, rate: float) -> dict[str, Tensor]:
    """params - rate * grad on the names of ``grad``; the others are passed on as they are."""
    return {name: p - rate * grad[name] if name in grad else p for name, p in params.items()}


def dot(a: Tree, b: Tree) -> float:
    """Inner product over all names of ``a``, accumulated in float64."""
    return float(sum(torch.dot(a[n].flatten().double(), b[n].flatten().double()) for n in a))


def norm(tree: Tree) -> float:
    """Euclidean norm over all tensors, accumulated in float64."""
    return dot(tree, tree) ** 0.5


def size(tree: Tree) -> int:
    """Number of elements."""
    return sum(x.numel() for x in tree.values())


def pick(tree: Tree, names: Iterable[str]) -> dict[str, Tensor]:
    """The named tensors, in the order of ``names``."""
    return {name: tree[name] for name in names}


def all_finite(tree: Tree) -> bool:
    """Is every element finite? (A finite sum says so at a fifth of the cost of asking each one.)"""
    return all(
        math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all()) for x in tree.values()
    )


def flatten(tree: Tree) -> Tensor:
    """All elements in one vector [D], in the order of the dict."""
    return torch.cat([x.flatten() for x in tree.values()])


def unflatten(vector_D: Tensor, like: Tree) -> dict[str, Tensor]:
    """The inverse of ``flatten`` for the names and shapes of ``like``."""
    sizes = [x.numel() for x in like.values()]
    return {
        name: piece.reshape(x.shape)
        for (name, x), piece in zip(like.items(), vector_D.split(sizes), strict=True)
    }


def digest(tree: Tree) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in sorted order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tree):
        x = tree[name].detach().cpu().contiguous()
        sha.update(f"{name}|{x.dtype}|{tuple(x.shape)}|".encode())
        if x.numel():  # bytes by a view, as numpy has no bfloat16; of nothing there may be no view
            sha.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
