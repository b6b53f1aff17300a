"""What a run measures, as data: written into its record, read by whatever shows or compares it.

No code outside an objective knows the name of a metric: it reads these descriptors. The first one
of a run decides which of two evaluations is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from forefed.core.types import Json

Scale = Literal["share", "bits", "number"]
"""A share of 1 (shown in percent), bits, or a number in the unit of the data."""


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation.

    ``key`` is its name in the record, ``title`` what people call it; ``chance`` is the answer that
    costs nothing and that a value is compared with ("": there is none). ``about``: what it says, in
    a sentence for people who do not know it.
    """

    key: str
    title: str
    scale: Scale = "share"
    higher_is_better: bool = True
    chance: str = ""
    about: str = ""

    def of(self, line: Mapping[str, Any] | None) -> float | None:
        """Its value in one evaluation; None where it is missing or no finite number."""
        value = line.get(self.key) if line else None
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return float(value) if math.isfinite(value) else None

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return 1 if self.higher_is_better else -1

    def better(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
        """Is evaluation ``a`` better than ``b``? One without a number is worse than any."""
        ours, theirs = self.of(a), self.of(b)
        if ours is None or theirs is None:
            return ours is not None
        return self.sign * (ours - theirs) > 0

    def said(self, value: float | None) -> str:
        """In words for a terminal: "accuracy 0.612", "2.661 bits per byte"."""
        number = "-" if value is None else f"{value:.3f}"
        return f"{number} {self.title}" if self.scale == "bits" else f"{self.title} {number}"


@dataclass(frozen=True)
class Measures:
    """All that a run measures. ``terms``: what ``n`` of an evaluation counts."""

    metrics: tuple[Metric, ...]
    terms: str = "texts"

    @property
    def decides(self) -> Metric:
        return self.metrics[0]

    def said(self, line: Mapping[str, Any]) -> str:
        """The first two metrics of an evaluation in words."""
        return ", ".join(metric.said(metric.of(line)) for metric in self.metrics[:2])

    def baseline_name(self, name: str) -> str:
        """What people call an entry of a summary's "baseline"."""
        return (self.decides.chance if name == "majority" else "") or name.replace("_", " ")

    def to_json(self) -> Json:
        return {"terms": self.terms, "metrics": [asdict(metric) for metric in self.metrics]}

    @classmethod
    def of_json(cls, raw: Any) -> Measures | None:
        """Those of a record; None where it has none, or none that can be read."""
        try:
            metrics = tuple(Metric(**metric) for metric in raw["metrics"])
            return cls(metrics, str(raw["terms"])) if metrics else None
        except (KeyError, TypeError):
            return None


ACCURACY = Metric(
    "accuracy",
    "accuracy",
    chance="the most frequent class",
    about="The share of test texts whose class is found.",
)
F1 = Metric(
    "f1",
    "F1",
    chance="no answer at all",
    about="The words that an answer shares with the right one; case, punctuation and articles do "
    "not count (SQuAD). Where there is no answer, only none is right.",
)
EXACT_MATCH = Metric(
    "exact_match", "exact match", about="The share of answers that have the right one's words."
)
BITS_PER_BYTE = Metric(
    "bits_per_byte",
    "bits per byte",
    "bits",
    higher_is_better=False,
    about="What the model needs to encode a byte of test text; comparable across tokenizers.",
)


def of_old_records(lines: Sequence[Mapping[str, Any]]) -> Measures | None:
    """What a record measures that does not say so itself (version 0.1)."""
    known = (
        Measures((ACCURACY,)),
        Measures((F1, EXACT_MATCH), "questions"),
        Measures((BITS_PER_BYTE,), "tokens"),
    )
    return next((m for m in known for line in lines if m.decides.key in line), None)
