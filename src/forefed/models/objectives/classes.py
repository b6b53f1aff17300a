"""One class per example."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forefed.core.intervals import Ends, wilson
from forefed.core.metrics import ACCURACY, Measures, Metric
from forefed.core.types import Batch, Json
from forefed.data.examples import Examples
from forefed.models.objectives import calibration
from forefed.models.objectives.objective import (
    LOGITS_OF_TEXTS,
    CrossEntropy,
    Rows,
    Sums,
    share,
    used,
)


class Classes(CrossEntropy):
    """One class per example: logits [B, C], labels [B].

    Sums: ``confusion`` [C, C], true by predicted class, and ``calibration``. Macro-F1 is over the
    classes that occur, as true or as predicted ones; balanced accuracy over those that occur as
    true ones; the correlation is Gorodkin's for many classes (Comput. Biol. Chem. 28, 2004), 0
    where it is undefined: all as scikit-learn has them.
    """

    head: ClassVar[str] = "classification"
    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task: ClassVar[str | None] = "SEQ_CLS"
    pooled: ClassVar[bool] = True
    answered: ClassVar[bool] = True
    measures: ClassVar[Measures] = Measures(
        (
            ACCURACY,
            Metric(
                "macro_f1",
                "macro-F1",
                about="The mean over the classes of F1, which is high where a class is found and "
                "nothing else is taken for it: a rare class counts as much as a frequent one.",
            ),
            Metric(
                "balanced_accuracy",
                "balanced accuracy",
                about="The mean over the classes of the share that is found.",
            ),
            Metric(
                "mcc",
                "Matthews correlation",
                "number",
                about="Agreement with the true classes: 1 perfect, 0 no better than chance.",
            ),
            Metric(
                "calibration_error",
                "calibration error",
                higher_is_better=False,
                about="How far the model's stated certainty is from the share that is right, on "
                "average (15 bins).",
            ),
        )
    )

    def recipe(self) -> str:
        return f"""{LOGITS_OF_TEXTS}
chances = logits.softmax(-1)
for text, row in zip(texts, chances):
    print(config.id2label[int(row.argmax())], f"{{float(row.max()):.2f}}", text)"""

    def numpy_recipe(self) -> str:
        return """chances = numpy.exp(logits - logits.max(1, keepdims=True))
chances /= chances.sum(1, keepdims=True)
for text, row in zip(texts, chances):
    print(names[int(row.argmax())], f"{float(row.max()):.2f}", text)"""

    def options(self) -> dict[str, Any]:
        return {
            **super().options(),
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {name: i for i, name in enumerate(self.label_names)},
        }

    def terms(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return used(logits, batch), batch.labels.to(logits.device)

    def counts(self, logits: Tensor, examples: Examples, rows: Rows) -> Sums:
        classes = logits.shape[-1]
        chances, best = torch.softmax(logits.double(), dim=-1).max(-1)
        true, said = examples.labels[np.asarray(rows)], best.cpu().numpy()
        cells = np.bincount(true * classes + said, minlength=classes * classes)
        return {
            "confusion": cells.astype(np.float64).reshape(classes, classes),
            "calibration": calibration.bins(chances.cpu().numpy(), true == said),
        }

    def points(self, logits: Tensor, examples: Examples, rows: Rows) -> list[float]:
        right = logits.argmax(-1).cpu().numpy() == examples.labels[np.asarray(rows)]
        return list(map(float, right))

    def results(self, sums: Sums) -> dict[str, float]:
        confusion: NDArray[np.float64] = sums["confusion"]
        n, right = confusion.sum(), np.diag(confusion)
        true, said = confusion.sum(1), confusion.sum(0)
        occurs = true + said > 0
        spread = (n * n - (said * said).sum()) * (n * n - (true * true).sum())
        return {
            "accuracy": share(right.sum(), n),
            "macro_f1": float((2 * right[occurs] / (true + said)[occurs]).mean()),
            "balanced_accuracy": float((right[true > 0] / true[true > 0]).mean()),
            "mcc": share(n * right.sum() - (true * said).sum(), float(np.sqrt(spread))),
            "calibration_error": calibration.error(sums["calibration"]),
        }

    def interval(self, sums: Sums) -> Ends | None:
        return wilson(float(np.trace(sums["confusion"])), float(sums["confusion"].sum()))

    def details(self, sums: Sums) -> Json:
        """``by_class``: per class its true examples, recall, precision and F1."""
        confusion: NDArray[np.float64] = sums["confusion"]
        cells = zip(np.diag(confusion), confusion.sum(1), confusion.sum(0), strict=True)
        return {
            "confusion": confusion.astype(int).tolist(),
            "calibration": calibration.curve(sums["calibration"]),
            "by_class": [by_class(right, true, said) for right, true, said in cells],
        }

    def answers(self, logits: Tensor, examples: Examples, rows: Rows) -> list[str]:
        return [self.label_names[label] for label in logits.argmax(-1).tolist()]

    def chances(self, logits: Tensor) -> Tensor | None:
        return torch.softmax(logits.float(), dim=-1)

    def constant(self, train: Examples, test: Examples) -> float | None:
        """Accuracy on the test examples of the class that is most frequent in training."""
        return float((test.labels == np.bincount(train.labels).argmax()).mean())


def by_class(right: float, true: float, said: float) -> Json:
    """A class in numbers; recall and precision are None where there is nothing to be right about.

    Args:
        right: examples of the class that are found; ``true``: all of it; ``said``: all that are
            said to be of it.
    """
    return {
        "examples": int(true),
        "recall": share(right, true) if true else None,
        "precision": share(right, said) if said else None,
        "f1": share(2 * right, true + said),
    }
