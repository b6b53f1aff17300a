"""Data poisoning: hostile clients train, honestly, on rows with wrong labels (Tolpegin et al.,
"Data poisoning attacks against federated learning systems", ESORICS 2020, arXiv 2007.08432)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from forefed.attacks.attack import Hostile, Lookup
from forefed.core.keys import Key
from forefed.data.examples import ClientData

Class = Annotated[int, Field(ge=0)]


class LabelFlip(Hostile):
    """Training on wrong labels: class y becomes C - 1 - y, or one class another."""

    kind: Literal["label_flip"] = "label_flip"
    flipped: Class | None = None
    """The class whose rows get another label; None: all."""
    into: Class | None = None
    """Their label; None: C - 1 - y."""
    labels: str = "y"
    """Over tensors of one's own (``forefed.simulate``): the one with the classes."""

    crafts: ClassVar[bool] = False
    source: ClassVar[str] = "Tolpegin et al., arXiv 2007.08432"

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.data.task.head is not None and config.data.task.kind not in (
            "classification",
            "pairs",
        ):
            yield (
                f"attack.kind = 'label_flip' changes classes, and data.task.kind = "
                f"'{config.data.task.kind}' has others or none; take another attack"
            )

    def flip(self, y: Any, classes: int) -> Any:
        """Classes [N] (an array), flipped."""
        wrong = classes - 1 - y if self.into is None else np.full_like(y, self.into)
        return wrong if self.flipped is None else np.where(y == self.flipped, wrong, y)

    def data_of(self, client: int, lookup: Lookup, who: frozenset[int], key: Key) -> ClientData:
        data = lookup(client)
        examples: Any = data.examples
        tensors = getattr(examples, "tensors", None)
        if tensors is None:
            y = examples.labels
            return replace(data, examples=replace(examples, labels=self.flip(y, int(y.max()) + 1)))
        y = tensors[self.labels]
        wrong = y.new_tensor(self.flip(y.numpy(), int(y.max()) + 1))
        return replace(data, examples=replace(examples, tensors={**tensors, self.labels: wrong}))
