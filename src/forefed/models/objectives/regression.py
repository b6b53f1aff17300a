"""A number per example."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import mse_loss

from forefed.core.intervals import Ends, Ratio
from forefed.core.metrics import Measures, Metric
from forefed.core.types import Batch, Json
from forefed.data.examples import Examples
from forefed.models.objectives.objective import LOGITS_OF_TEXTS, Objective, Rows, Sums, used

SHOWN = 400
"""Points of the picture of said and true numbers."""


class Regression(Objective):
    """A number: logits [B, 1], labels [B], both from -2 to 2 over the ends of the scale.

    The ends are ``label_names``; answers and errors are on the scale itself. Loss: the squared
    error. Sums: ``said`` and ``true``, the numbers themselves (ranks do not add up).
    """

    head: ClassVar[str] = "regression"
    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task: ClassVar[str | None] = "SEQ_CLS"
    pooled: ClassVar[bool] = True
    measures: ClassVar[Measures] = Measures(
        (
            Metric(
                "rmse",
                "RMSE",
                "number",
                higher_is_better=False,
                chance="the mean of the training texts",
                about="Root of the mean squared error, on the scale of the data.",
            ),
            Metric(
                "pearson",
                "Pearson correlation",
                "number",
                about="How near said and true numbers are to a straight line: 1 perfect, 0 not at "
                "all (and where all answers are the same).",
            ),
            Metric(
                "spearman",
                "Spearman correlation",
                "number",
                about="The same of their ranks: does the model order the texts rightly?",
            ),
            Metric(
                "mae",
                "mean absolute error",
                "number",
                higher_is_better=False,
                about="On the scale of the data.",
            ),
        )
    )

    @property
    def classes(self) -> tuple[str, ...]:
        return ()

    @property
    def outputs(self) -> int:
        return 1

    def recipe(self) -> str:
        return f"{LOGITS_OF_TEXTS}\n{self._said('logits.double().flatten().tolist()')}"

    def numpy_recipe(self) -> str:
        return self._said('logits.astype("float64").ravel()')

    def _said(self, numbers: str) -> str:
        low, high = self.on_scale(np.array([-2.0, 2.0])).tolist()
        return f"""low, high = {low!r}, {high!r}  # of the scale, on which the model says -2 to 2
for text, said in zip(texts, {numbers}):
    print(f"{{low + (said + 2) / 4 * (high - low):.4g}}", text)"""

    def options(self) -> dict[str, Any]:
        return {**super().options(), "problem_type": "regression"}

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        z = used(logits, batch).flatten()
        return mse_loss(z, batch.labels.to(z.device, z.dtype), reduction="none")

    def counts(self, logits: Tensor, examples: Examples, rows: Rows) -> Sums:
        said = logits.double().flatten().cpu().numpy()
        true = examples.labels[np.asarray(rows)]
        return {"said": self.on_scale(said).tolist(), "true": self.on_scale(true).tolist()}

    def results(self, sums: Sums) -> dict[str, float]:
        from scipy.stats import rankdata

        said, true = np.array(sums["said"]), np.array(sums["true"])
        return {
            "rmse": float(np.sqrt(np.mean((said - true) ** 2))),
            "pearson": correlation(said, true),
            "spearman": correlation(rankdata(said), rankdata(true)),
            "mae": float(np.mean(np.abs(said - true))),
        }

    def interval(self, sums: Sums) -> Ends | None:
        squares = (np.array(sums["said"]) - np.array(sums["true"])) ** 2
        a, n = float(squares.sum()), float(len(squares))
        ends = Ratio(n, a, n, float((squares**2).sum()), a, n).interval()
        return ends and (max(0.0, ends[0]) ** 0.5, ends[1] ** 0.5)

    def details(self, sums: Sums) -> Json:
        """``scatter``: true and said numbers of some examples, evenly spaced in their order."""
        n = len(sums["said"])
        picked = np.unique(np.linspace(0, n - 1, min(n, SHOWN)).astype(int))
        pairs = [(round(sums["true"][i], 4), round(sums["said"][i], 4)) for i in picked]
        return {"scatter": [list(pair) for pair in pairs]}

    def answers(self, logits: Tensor, examples: Examples, rows: Rows) -> list[str]:
        said = self.on_scale(logits.double().flatten().cpu().numpy())
        return [f"{x:.4g}" for x in said.tolist()]

    def constant(self, train: Examples, test: Examples) -> float | None:
        """The error on the test examples of always saying the mean of the training examples."""
        mean, true = self.on_scale(train.labels).mean(), self.on_scale(test.labels)
        return float(np.sqrt(np.mean((true - mean) ** 2)))

    def on_scale(self, learned: NDArray[Any]) -> NDArray[np.float64]:
        """From -2 ... 2 to the scale of the data."""
        low, high = map(float, self.label_names)
        return low + (learned + 2) * (high - low) / 4


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's; 0 where one of both does not vary."""
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / length) if length > 0 else 0.0
