"""FedPer: Arivazhagan et al., "Federated learning with personalization layers" (arXiv 1912.00818):
base layers are averaged, each client keeps its own head.

Departure: a client's head begins at the run's first values (published: drawn at each client), so
that clients without a round of their own can still be tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from forefed.core.types import Unit
from forefed.sharing.sharing import Sharing, Split, names_of


class PersonalHead(Sharing):
    """Every client keeps a head of its own; the adapters below it are shared."""

    kind: Literal["personal_head"] = "personal_head"
    blocks: Annotated[int, Field(ge=0)] = 0
    """Of the last blocks with adapters so many are each client's own, too."""
    source: ClassVar[str] = "FedPer, arXiv 1912.00818"

    @property
    def personal(self) -> bool:
        return True

    def split(self, units: Sequence[Unit], round: int) -> Split:
        depths = sorted({u.depth for u in units if not u.is_head})
        last = depths[max(0, len(depths) - self.blocks) :]
        own = names_of([u for u in units if u.is_head or u.depth in last])
        return Split(names_of(units) - own, private=own)

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.adapter.kind == "head":
            yield (
                "sharing.kind = 'personal_head': with adapter.kind = 'head' there is nothing but "
                "the head, so nothing would be shared; choose another adapter"
            )
        if config.data.task.writes:
            yield (
                "sharing.kind = 'personal_head': a language model's adapters have no head; choose "
                "sharing.kind = 'everything'"
            )
