"""Flow: what of a model with two paths travels (Panchal et al., NeurIPS 2023, arXiv 2211.15281).

The common B, the gates and the head are averaged; a client's own B stays with it, A rests, as both
paths share it (published code: the own path was sent and averaged, too).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from forefed.core.lora import is_a
from forefed.core.routes import OWN, ROUTE, part_of
from forefed.core.types import Unit
from forefed.sharing.sharing import Sharing, Split, names_of


class Flow(Sharing):
    """The common path and the gates are trained by all; every client has a path of its own."""

    kind: Literal["flow"] = "flow"
    source: ClassVar[str] = "Flow, arXiv 2211.15281"
    whole_products: ClassVar[bool] = False

    @property
    def personal(self) -> bool:
        return True

    def split(self, units: Sequence[Unit], round: int) -> Split:
        names = names_of(units)
        own = frozenset(n for n in names if part_of(n) in (OWN, ROUTE))
        resting = frozenset(n for n in names if is_a(n))
        return Split(names - own - resting, own if own else frozenset(), resting)

    def differs(self, units: Sequence[Unit]) -> bool:
        return bool(self.split(units, 1).private)

    def told(self) -> str:
        return (
            "sharing.kind = 'flow': the clients' own paths stayed with them, so this model answers "
            "by the common path alone"
        )

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.adapter.kind != "lora_flow" or config.client.kind != "flow":
            yield (
                f"sharing.kind = 'flow': adapter.kind = '{config.adapter.kind}' and client.kind = "
                f"'{config.client.kind}' have no second path, or train both at once; set strategy "
                "= 'flow', which has all three"
            )
