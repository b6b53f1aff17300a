"""Pairs of a client half and a server half around the update, applied in order (server: reversed).

A client half sees one client's change before it is encoded; a server half sees the aggregate before
the server's optimiser.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from forefed.core import trees
from forefed.core.settings import Choice, Registry
from forefed.core.types import Params


class Transform(Choice):
    """Base: both halves do nothing unless they are overridden."""

    def client(self, grad: Params) -> Params:
        """One client's change, before encoding."""
        return grad

    def server(self, grad: Params) -> Params:
        """The aggregate, before the server's optimiser."""
        return grad


class ClipNorm(Transform):
    """Scale a client's change down to an l2 norm of at most ``norm``; bounds any one client."""

    kind: Literal["clip"] = "clip"
    norm: Annotated[float, Field(gt=0)] = 1.0

    source: ClassVar[str] = "McMahan et al., arXiv 1710.06963"

    def client(self, grad: Params) -> Params:
        norm = trees.norm(grad)
        return grad if norm <= self.norm else {n: g * (self.norm / norm) for n, g in grad.items()}


TRANSFORMS: Registry[Transform] = Registry("transforms", [ClipNorm])
