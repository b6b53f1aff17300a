"""What the ways to share the factors of LoRA have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from forefed.sharing.sharing import Sharing


class OfFactors(Sharing):
    """Base of the ways to divide LoRA's factors A and B."""

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.adapter.kind != "lora":
            yield (
                f"sharing.kind = '{self.kind}': adapter.kind = '{config.adapter.kind}' has no "
                "factors A and B; set adapter.kind = 'lora'"
            )
        if config.download.by_sums:
            yield (
                f"sharing.kind = '{self.kind}': download.kind = 'pool' sums over everything that "
                "is trained; set download.kind = 'dense'"
            )
