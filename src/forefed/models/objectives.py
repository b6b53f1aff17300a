"""What a model is trained to say: its head, its loss, and how right it is.

Axes: B examples, C classes, S positions, V vocabulary; 2: start and end of an answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from forefed.core.types import Batch
from forefed.data.examples import IGNORED_LABEL, Examples, Indices
from forefed.data.spans import exact_match, f1, predict
from forefed.data.tasks import Head


@dataclass(frozen=True)
class Objective(ABC):
    """Base of the objectives. ``label_names`` are the classes, where there are any."""

    label_names: tuple[str, ...] = ()

    auto: ClassVar[str]
    """The class of transformers that loads such a model."""
    peft_task: ClassVar[str | None]
    """PEFT's name for it."""
    has_head: ClassVar[bool] = True

    @property
    def outputs(self) -> int:
        """Outputs of the head; 0 without one."""
        return len(self.label_names)

    def options(self) -> dict[str, Any]:
        """What the model's configuration is told."""
        return {"num_labels": self.outputs} if self.has_head else {}

    def logits(self, output: Any) -> Tensor:
        """The logits in what the model returns."""
        logits: Tensor = output.logits
        return logits

    def weight(self, batch: Batch) -> int:
        """Terms of the mean loss."""
        return batch.size

    @abstractmethod
    def loss_sum(self, logits: Tensor, batch: Batch) -> Tensor:
        """Summed cross-entropy in nats, in float32 or wider."""

    @abstractmethod
    def right(
        self, logits: Tensor, examples: Examples, indices: Sequence[int] | Indices
    ) -> dict[str, float]:
        """Sums over these examples of what their answers are worth."""

    @abstractmethod
    def answers(
        self, logits: Tensor, examples: Examples, indices: Sequence[int] | Indices
    ) -> list[str]:
        """What the model says of these examples, in words."""

    def baseline(self, test: Examples) -> float | None:
        """The score of always saying the same; None where that means nothing."""
        return None


class Classes(Objective):
    """One class per example: logits [B, C], labels [B]."""

    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task: ClassVar[str | None] = "SEQ_CLS"

    def options(self) -> dict[str, Any]:
        return {
            **super().options(),
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {name: i for i, name in enumerate(self.label_names)},
        }

    def loss_sum(self, logits: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(_wide(logits), batch.labels.to(logits.device), reduction="sum")

    def right(
        self, logits: Tensor, examples: Examples, indices: Sequence[int] | Indices
    ) -> dict[str, float]:
        labels = torch.from_numpy(examples.labels[np.asarray(indices)])
        return {"correct": float((logits.argmax(-1).cpu() == labels).sum())}

    def answers(
        self, logits: Tensor, examples: Examples, indices: Sequence[int] | Indices
    ) -> list[str]:
        chances, best = torch.softmax(logits.float(), dim=-1).max(-1)
        pairs = zip(best.tolist(), chances.tolist(), strict=True)
        return [f"{self.label_names[label]} ({chance:.2f})" for label, chance in pairs]

    def baseline(self, test: Examples) -> float | None:
        """Accuracy of always naming the test set's most frequent class."""
        return float(np.bincount(test.labels).max() / len(test.labels))


class NextToken(Objective):
    """A language model: logits [B, S, V] at S predict the token at S + 1 of labels [B, S]."""

    auto: ClassVar[str] = "AutoModelForCausalLM"
    peft_task: ClassVar[str | None] = "CAUSAL_LM"
    has_head: ClassVar[bool] = False

    def weight(self, batch: Batch) -> int:
        """Predicted tokens."""
        return int((batch.labels[:, 1:] != IGNORED_LABEL).sum())

    def loss_sum(self, logits: Tensor, batch: Batch) -> Tensor:
        wide, labels = _wide(logits[:, :-1]).flatten(0, 1), batch.labels[:, 1:].flatten()
        there = labels.to(wide.device)
        return cross_entropy(wide, there, ignore_index=IGNORED_LABEL, reduction="sum")

    def right(
        self, logits: Tensor, examples: Examples, indices: Sequence[int] | Indices
    ) -> dict[str, float]:
        return {}

    def answers(
        self, logits: Tensor, examples: Examples, indices: Sequence[int] | Indices
    ) -> list[str]:
        raise TypeError("a language model is asked token by token (run/use.py)")


class AnswerSpans(Objective):
    """The first and the last token of an answer: logits [B, 2, S], labels [B, 2].

    Source: BERT (arXiv 1810.04805), section 4.2. Departure: its loss, and that of transformers,
    runs over padding too; here padding is left out, so that a loss does not depend on the other
    texts of a batch. An example whose answer was cut off has no loss.
    """

    auto: ClassVar[str] = "AutoModelForQuestionAnswering"
    # PEFT's class for QUESTION_ANS drops token_type_ids on their way to the model.
    peft_task: ClassVar[str | None] = None

    @property
    def outputs(self) -> int:
        return 2

    def logits(self, output: Any) -> Tensor:
        return torch.stack([output.start_logits, output.end_logits], 1)

    def weight(self, batch: Batch) -> int:
        """Examples that have a loss."""
        return int((batch.labels[:, 0] != IGNORED_LABEL).sum())

    def loss_sum(self, logits: Tensor, batch: Batch) -> Tensor:
        """The mean of the two cross-entropies, summed over the examples."""
        wide, labels = _wide(logits), batch.labels.to(logits.device)
        padding_BS = batch.inputs["attention_mask"].to(logits.device) == 0
        seen = wide.masked_fill(padding_BS[:, None], -torch.inf).flatten(0, 1)
        both = cross_entropy(seen, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")
        return both / 2

    def right(
        self, logits: Tensor, examples: Examples, indices: Sequence[int] | Indices
    ) -> dict[str, float]:
        assert examples.passages is not None
        said = predict(logits, examples, indices)
        pairs = [(s, examples.passages.answers[i]) for s, i in zip(said, indices, strict=True)]
        return {
            "exact": sum(exact_match(answer, right) for answer, right in pairs),
            "f1": sum(f1(answer, right) for answer, right in pairs),
        }

    def answers(
        self, logits: Tensor, examples: Examples, indices: Sequence[int] | Indices
    ) -> list[str]:
        return [s or "(no answer)" for s in predict(logits, examples, indices)]

    def baseline(self, test: Examples) -> float | None:
        """F1 of never giving an answer; None where every question has one."""
        assert test.passages is not None
        without = sum(not right for right in test.passages.answers)
        return without / len(test) or None


OBJECTIVES: dict[Head, type[Objective]] = {
    "classification": Classes,
    "causal_lm": NextToken,
    "spans": AnswerSpans,
}


def objective_of(label_names: Sequence[str] | None, head: Head | None = None) -> Objective:
    """The objective of a head; by default classes, or the next token where there are none."""
    return OBJECTIVES[head or ("causal_lm" if label_names is None else "classification")](
        tuple(label_names or ())
    )


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
