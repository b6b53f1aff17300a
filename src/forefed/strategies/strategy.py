"""A strategy: FedAvg with some slots replaced, by name.

It is a set of defaults for the sections of the configuration; whatever the user sets himself wins,
so every method is a configuration and none is a trainer of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Strategy:
    """``sections``: defaults by section of the configuration; ``fixed``: the ``kind`` of a slot
    without which the strategy would be another one (changing it is an error that says so);
    ``own``: more sections, which were measured for this strategy, so that those which are made of
    its ``sections`` do not have them."""

    name: str
    summary: str
    source: str
    sections: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
