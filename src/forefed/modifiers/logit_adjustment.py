"""Logit adjustment: Menon et al., "Long-tail learning via logit adjustment" (ICLR 2021, arXiv
2007.07314), equation 10, by the label frequencies of each client.

    loss = cross-entropy of (logits + tau log prior_i)      prior_i: of client i's training rows

What a client's rows say of its own label frequencies alone is then explained by its prior and moves
no parameter: clients of one class pull the model apart no more. Without the addition, when it is
used, the model answers as if all classes were equally frequent; that is what is tested and
exported.

Departures: the prior is the client's (published: the whole training set's), with ``smoothing`` rows
of every class added, as one that a client does not have would have a logit of minus infinity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from forefed.core.types import Batch, ClientContext
from forefed.modifiers.modifier import Modifier


class LogitAdjustment(Modifier):
    """A client's loss knows how frequent its labels are, so that its model need not learn it."""

    kind: Literal["logit_adjustment"] = "logit_adjustment"
    tau: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the prior's logarithm."""
    smoothing: Annotated[float, Field(gt=0)] = 0.5
    """Rows of every class that are added to a client's own when they are counted."""

    source: ClassVar[str] = "Menon et al., arXiv 2007.07314"

    def on_batch(
        self, batch: Batch, labels: NDArray[np.int64], classes: int, ctx: ClientContext
    ) -> Batch:
        if not self.tau:
            return batch
        counts_C = np.bincount(labels, minlength=classes) + self.smoothing
        logs_C = self.tau * torch.from_numpy(np.log(counts_C / counts_C.sum())).float()
        added = logs_C if batch.added is None else batch.added + logs_C
        return replace(batch, added=added.expand(batch.size, classes))

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.data.task.head != "classification":
            yield (
                "modifiers: 'logit_adjustment' is about classes of which one applies, and "
                f"data.task.kind = '{config.data.task.kind}' has none; drop it"
            )
        if any(m.per_example for m in config.modifiers):
            yield (
                "modifiers: 'logit_adjustment' makes a row's loss depend on the client's other "
                "rows, so no noise for single examples covers it; drop it"
            )
