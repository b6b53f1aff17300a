"""Clients whose local steps are a script's own: a ``Trainer`` of Hugging Face (``forefed.hf``).

The settings of such a client, and what cannot be said of steps that are not ours. How a round is
done stands in ``hf/steps.py``, which needs the script's object.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from forefed.local.training import LocalTraining

OURS = ("kind", "max_steps", "keep_optimiser", "schedule")
"""The settings that a round of a script's own steps takes from the run; all others are the
script's."""


class Brought(LocalTraining):
    """A script's own Trainer: its loss, data, batches, optimiser and callbacks (``forefed.hf``)."""

    kind: Literal["trainer"] = "trainer"  # type: ignore[assignment]
    schedule: Literal["round", "run"] = "round"
    """Over what the script's schedule of the learning rate is laid: over every round anew (a linear
    decay then reaches 0 in each of them), or over the steps of all rounds together."""

    brought: ClassVar[bool] = True

    @property
    def linear(self) -> bool:
        return False

    def conflicts(self, config: Any) -> Iterator[str]:
        for name, field in type(self).model_fields.items():
            default = field.get_default(call_default_factory=True)
            if name not in OURS and getattr(self, name) != default:
                yield (
                    f"client.{name}: with client.kind = 'trainer' the script decides; set it there "
                    "(TrainingArguments), and leave it out here"
                )
        if config.engine.kind != "backprop":
            yield (
                f"engine.kind = '{config.engine.kind}': with client.kind = 'trainer' the script "
                "computes its gradients, exactly; set engine.kind = 'backprop'"
            )
        if config.codec.sends_slopes:
            yield (
                f"codec.kind = '{config.codec.kind}' sends slopes, which a script's Trainer has "
                "none of; set codec.kind = 'dense', or another that sends changes"
            )
        for modifier in config.modifiers:
            if modifier.per_example or modifier.reads_batches:
                yield (
                    f"modifiers: '{modifier.kind}' has a say in what a local step is computed on, "
                    "and with client.kind = 'trainer' the script decides that; drop it"
                )
        if config.sharing.personal and not config.sharing.keeps_trained:
            yield (
                f"sharing.kind = '{config.sharing.kind}' reads the labels of a client's rows, "
                "which the script of client.kind = 'trainer' has; set sharing.kind = 'everything'"
            )
        for slot in ("start", "guard"):
            kind = getattr(config, slot).kind
            if kind not in ("none", "auto"):
                yield (
                    f"{slot}.kind = '{kind}' asks clients for sums over their rows, and a script's "
                    f"Trainer answers no questions; set {slot}.kind = 'none'"
                )
        pooled = config.data.task.head in ("classification", "multilabel", "regression")
        # in one process the server has no model but the script's
        if config.partition.kind == "sites" and pooled and config.model.pooling != "pooler":
            yield (
                "model.pooling: a script's model is read as its class in transformers does; set "
                "model.pooling = 'pooler'"
            )
