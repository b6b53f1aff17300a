"""None, one or several labels per example."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from forefed.core.intervals import Ends, Ratio
from forefed.core.metrics import Measures, Metric
from forefed.core.types import Batch, Json
from forefed.data.examples import Examples
from forefed.models.objectives import calibration
from forefed.models.objectives.classes import by_class
from forefed.models.objectives.objective import (
    LOGITS_OF_TEXTS,
    Objective,
    Rows,
    Sums,
    share,
    used,
    wide,
)

SAID_FROM = 0.5
"""The probability from which a label is said; a logit of 0."""


class MultiLabel(Objective):
    """Labels that are said or not, each by itself: logits [B, C], labels [B, C] of 0 and 1.

    The loss is the mean of the C binary cross-entropies, as transformers have it. Sums:
    ``by_label`` [3, C] (found, held, said), ``exact``, ``calibration``, and ``ratio``, of
    2 x found and held + said (of which micro-F1 is the ratio) what its interval needs. Labels that
    are neither held nor said count as an F1 of 0, as in scikit-learn.
    """

    head: ClassVar[str] = "multilabel"
    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task: ClassVar[str | None] = "SEQ_CLS"
    pooled: ClassVar[bool] = True
    of_one: ClassVar[bool] = False
    answered: ClassVar[bool] = True
    measures: ClassVar[Measures] = Measures(
        (
            Metric(
                "micro_f1",
                "micro-F1",
                chance="the best fixed labels",
                about="Of all labels that are said or should be: how well the two agree, frequent "
                "labels counting more.",
            ),
            Metric(
                "macro_f1",
                "macro-F1",
                about="The same by label, then the mean: a rare label counts as much as another.",
            ),
            Metric(
                "exact_match",
                "exact match",
                about="The share of texts with all of their labels and no other.",
            ),
            Metric(
                "label_accuracy",
                "accuracy over all labels",
                about="The share of right decisions, each of a label about a text; high wherever "
                "labels are rare.",
            ),
            Metric(
                "calibration_error",
                "calibration error",
                higher_is_better=False,
                about="How far the stated probability of a label is from the share of texts that "
                "have it, on average (15 bins).",
            ),
        )
    )

    def recipe(self) -> str:
        return f"""{LOGITS_OF_TEXTS}
for text, row in zip(texts, logits.sigmoid().tolist()):
    said = [config.id2label[i] for i, chance in enumerate(row) if chance >= {SAID_FROM}]
    print(", ".join(said) or "(no label)", text)"""

    def numpy_recipe(self) -> str:
        return f"""for text, row in zip(texts, 1 / (1 + numpy.exp(-logits))):
    said = [names[i] for i, chance in enumerate(row) if chance >= {SAID_FROM}]
    print(", ".join(said) or "(no label)", text)"""

    def options(self) -> dict[str, Any]:
        return {
            **super().options(),
            "problem_type": "multi_label_classification",
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {name: i for i, name in enumerate(self.label_names)},
        }

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        z = used(logits, batch)
        marks = batch.labels.to(z.device, z.dtype)
        return binary_cross_entropy_with_logits(z, marks, reduction="none").mean(1)

    def counts(self, logits: Tensor, examples: Examples, rows: Rows) -> Sums:
        chances = torch.sigmoid(logits.double()).cpu().numpy()
        held, said = examples.labels[np.asarray(rows)] > 0, chances >= SAID_FROM
        found = held & said
        a, b = 2.0 * found.sum(1), (held.sum(1) + said.sum(1)).astype(np.float64)
        return {
            "by_label": np.stack([found.sum(0), held.sum(0), said.sum(0)]).astype(np.float64),
            "exact": float((held == said).all(1).sum()),
            "calibration": calibration.bins(chances.ravel(), held.ravel()),
            "ratio": np.array([a.sum(), b.sum(), (a * a).sum(), (a * b).sum(), (b * b).sum()]),
        }

    def points(self, logits: Tensor, examples: Examples, rows: Rows) -> list[float]:
        """The F1 of an example's own labels; 1 where it has none and none is said."""
        held, said = examples.labels[np.asarray(rows)] > 0, (logits >= 0).cpu().numpy()
        found, there = (held & said).sum(1), held.sum(1) + said.sum(1)
        return [share(2.0 * f, t) if t else 1.0 for f, t in zip(found, there, strict=True)]

    def results(self, sums: Sums) -> dict[str, float]:
        by_label: NDArray[np.float64] = sums["by_label"]
        found, held, said = by_label
        n = sums["n"]
        wrong = (held + said - 2 * found).sum()
        pairs = zip(found, held, said, strict=True)
        return {
            "micro_f1": share(2 * found.sum(), held.sum() + said.sum()),
            "macro_f1": float(np.mean([share(2 * f, h + s) for f, h, s in pairs])),
            "exact_match": sums["exact"] / n,
            "label_accuracy": 1 - float(wrong / (n * len(found))),
            "calibration_error": calibration.error(sums["calibration"]),
        }

    def interval(self, sums: Sums) -> Ends | None:
        ends = Ratio(sums["n"], *map(float, sums["ratio"])).interval()
        return ends and (max(0.0, ends[0]), min(1.0, ends[1]))

    def details(self, sums: Sums) -> Json:
        """``by_class``: per label the texts that have it, recall, precision and F1."""
        return {
            "calibration": calibration.curve(sums["calibration"]),
            "by_class": [by_class(*cells) for cells in sums["by_label"].T.tolist()],
        }

    def answers(self, logits: Tensor, examples: Examples, rows: Rows) -> list[str]:
        texts = []
        for chances in torch.sigmoid(logits.float()).tolist():
            pairs = zip(self.label_names, chances, strict=True)
            said = [name for name, x in pairs if x >= SAID_FROM]
            texts.append(", ".join(said) or "(no label)")
        return texts

    def chances(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(wide(logits))

    def constant(self, train: Examples, test: Examples) -> float | None:
        """Micro-F1 of saying the same labels of every text: the most frequent ones in training,
        as many as fit the training texts best."""
        held = train.labels.sum(0)
        order = np.argsort(-held, kind="stable")
        many = np.arange(1, len(order) + 1)
        fits = 2 * np.cumsum(held[order]) / (held.sum() + many * len(train))
        said = order[: int(fits.argmax()) + 1]
        right, there = test.labels[:, said].sum(), test.labels.sum()
        return share(2 * float(right), float(there + len(said) * len(test)))
