"""HyperFL: what of a generated model travels (Guo et al., AAAI 2025, ``Pengxin-Guo/HyperFL``): the
network that makes B is averaged; the embedding from which it makes it, and the head, are each
client's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from forefed.core.hyper import EMBEDDING, part_of
from forefed.core.types import Unit
from forefed.sharing.sharing import Sharing, Split, names_of


class HyperFl(Sharing):
    """A network makes every client's B from an embedding of its own; the network is common."""

    kind: Literal["hyperfl"] = "hyperfl"
    source: ClassVar[str] = "HyperFL, arXiv 2412.07187"
    whole_products: ClassVar[bool] = False

    @property
    def personal(self) -> bool:
        return True

    def split(self, units: Sequence[Unit], round: int) -> Split:
        head = names_of([u for u in units if u.is_head])
        own = frozenset(n for n in names_of(units) if part_of(n) == EMBEDDING)
        return Split(names_of(units) - head - own, private=head | own)

    def reveals(self) -> str:
        return (
            "the network that makes the adapters hides nothing of them: its bias has their "
            "gradient, and the rank-one gradient of its matrix the same direction"
        )

    def differs(self, units: Sequence[Unit]) -> bool:
        return any(part_of(n) for n in names_of(units))

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.adapter.kind != "lora_hyper" or config.client.kind != "hyperfl":
            yield (
                f"sharing.kind = 'hyperfl': adapter.kind = '{config.adapter.kind}' and client.kind "
                f"= '{config.client.kind}' make no factors from an embedding, or train it with the "
                "rest; set strategy = 'hyperfl', which has all three"
            )
        if config.data.task.writes:
            yield (
                "sharing.kind = 'hyperfl': a language model has no head of a client's own; choose "
                "strategy = 'fedsa_lora'"
            )
