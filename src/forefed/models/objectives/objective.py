"""The base of the objectives: what a model is trained to say, its loss, and how right it is.

Axes: B examples, C classes, M terms of a loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from forefed.core.errors import UserError
from forefed.core.intervals import Ends
from forefed.core.metrics import Measures
from forefed.core.types import Batch, Json
from forefed.data.examples import IGNORED_LABEL, Examples, Indices

Rows = Sequence[int] | Indices
Sums = Mapping[str, Any]
"""What ``counts`` returns: numbers and arrays, which add, and lists, which are joined: ``+`` gives
those of both parts."""


LOGITS_OF_TEXTS = """inputs = tokenizer(
    texts, truncation=True, max_length=longest, padding=True, return_tensors="pt"
)
with torch.no_grad():
    logits = model(**inputs).logits"""
"""The first lines of a recipe, where all texts are read at once."""


def head_of(entry: type[Objective]) -> str:
    """The name of an objective.

    Raises:
        UserError: it has none, or is none.
    """
    name = getattr(entry, "head", None)
    if not (isinstance(entry, type) and issubclass(entry, Objective) and isinstance(name, str)):
        raise UserError(f"objective: {entry!r} is no Objective with the name of its head")
    return name


@dataclass(frozen=True)
class Objective(ABC):
    """Base of the objectives. ``label_names`` are the classes, where there are any."""

    label_names: tuple[str, ...] = ()

    head: ClassVar[str]
    """The name under which tasks ask for it (``TextTask.head``)."""
    auto: ClassVar[str]
    """The class of transformers that loads such a model."""
    peft_task: ClassVar[str | None]
    """PEFT's name for it."""
    measures: ClassVar[Measures]
    """What an evaluation measures; the first metric decides."""
    has_head: ClassVar[bool] = True
    pooled: ClassVar[bool] = False
    """Is a whole text judged by one vector of it (``models.pooling``)?"""
    of_one: ClassVar[bool] = True
    """Does one class apply at most, so that ``chances`` add up to 1?"""
    answered: ClassVar[bool] = False
    """Is an example right or wrong, wholly or in part (``points``), beside having a loss?"""
    reads_logits: ClassVar[bool] = True
    """Does ``counts`` need logits? Where not, those of a batch are never held at once."""
    speaks: ClassVar[bool] = False
    """Is the model asked for words of its own in an evaluation (``agreement``)?"""

    @property
    def writes(self) -> bool:
        """Is the model a language model as it is?"""
        return self.auto == "AutoModelForCausalLM"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names that outputs of the head stand for, one each; none where they have none."""
        return self.label_names

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

    def recipe(self) -> str:
        """Lines of Python for a model card: from ``texts``, ``tokenizer``, ``config`` and ``model``
        to printed answers.

        They may use ``longest``, the tokens at which texts are cut, ``ends``, how many special
        tokens the tokeniser puts behind a text, and ``longest_answer``.
        """
        return f"{LOGITS_OF_TEXTS}\nprint(logits)"

    def numpy_recipe(self) -> str:
        """The same from ``logits``, an array of numpy, and ``names``, the classes' (an ONNX graph
        gives the logits). Empty: no graph is made of such a model."""
        return ""

    @abstractmethod
    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of every example [B], in float32 or wider."""

    def loss_sum(self, logits: Tensor, batch: Batch) -> Tensor:
        """The sum of ``losses``."""
        return self.losses(logits, batch).sum()

    @abstractmethod
    def counts(self, logits: Tensor, examples: Examples, rows: Rows) -> Sums:
        """Sums over these examples from which ``results`` follow, for any union of parts."""

    def agreement(self, said: Sequence[str], examples: Examples, rows: Rows) -> Sums:
        """Sums beside ``counts``, of what the model itself has said of these examples."""
        return {}

    @abstractmethod
    def results(self, sums: Sums) -> dict[str, float]:
        """The metrics by key.

        Args:
            sums: of ``counts``, with ``loss_sum``, ``weight`` and ``n`` (examples, not 0).
        """

    def points(self, logits: Tensor, examples: Examples, rows: Rows) -> list[float]:
        """How right every example is, from 0 to 1; where one can be (``answered``)."""
        raise NotImplementedError

    def interval(self, sums: Sums) -> Ends | None:
        """95 % interval of the metric that decides, for another draw of examples."""
        return None

    def details(self, sums: Sums) -> Json:
        """Results that are no single numbers, for pictures and tables of a report."""
        return {}

    def number(self, sums: Sums) -> int:
        """How many terms (``measures.terms``) were tested."""
        return int(sums["n"])

    @abstractmethod
    def answers(self, logits: Tensor, examples: Examples, rows: Rows) -> list[str]:
        """What the model says of these examples, in words."""

    def chances(self, logits: Tensor) -> Tensor | None:
        """The probability of every class, [B, C]; None where no classes are learned."""
        return None

    def constant(self, train: Examples, test: Examples) -> float | None:
        """What the answer that costs nothing (``Metric.chance``) reaches on the test examples, by
        the metric that decides; None where there is none.

        Args:
            train: where that answer is learned; a test example has no say in it.
        """
        return None


class CrossEntropy(Objective):
    """Base of those whose loss is a sum of cross-entropies in nats."""

    shares: ClassVar[int] = 1
    """Terms that count as one loss together."""

    def terms(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [M, C] and classes [M], as many for every example; ``IGNORED_LABEL``: no term."""
        return wide(logits), batch.labels.to(logits.device)

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        return self._cross_entropy(logits, batch, "none").view(batch.size, -1).sum(1)

    def loss_sum(self, logits: Tensor, batch: Batch) -> Tensor:
        return self._cross_entropy(logits, batch, "sum")  # one kernel

    def _cross_entropy(self, logits: Tensor, batch: Batch, reduction: str) -> Tensor:
        terms, classes = self.terms(logits, batch)
        loss = cross_entropy(terms, classes, ignore_index=IGNORED_LABEL, reduction=reduction)
        return loss if self.shares == 1 else loss / self.shares


def merge(parts: Iterable[Sums]) -> Sums:
    """The sums of all parts."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total


def share(part: float, whole: float) -> float:
    """``part / whole``; 0 of nothing is 0, as scikit-learn has it."""
    return float(part / whole) if whole else 0.0


def mean_loss(sums: Sums) -> float:
    """NaN where no example has a loss."""
    return float(sums["loss_sum"] / sums["weight"]) if sums.get("weight") else math.nan


def wide(logits: Tensor) -> Tensor:
    """In float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def used(logits: Tensor, batch: Batch) -> Tensor:
    """Logits as a loss takes them: ``wide``, with what the batch adds (``Batch.added``)."""
    z = wide(logits)
    return z if batch.added is None else batch.times * z + batch.added.to(z.device, z.dtype)
