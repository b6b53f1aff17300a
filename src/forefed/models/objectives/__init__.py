"""What a model is trained to say: its head, its loss, and how right it is."""

from collections.abc import Sequence

from forefed.data.tasks import Head
from forefed.models.objectives.answer_spans import AnswerSpans
from forefed.models.objectives.classes import Classes
from forefed.models.objectives.multilabel import MultiLabel
from forefed.models.objectives.next_token import NextToken
from forefed.models.objectives.objective import Objective, Sums, mean_loss, merge
from forefed.models.objectives.regression import Regression

OBJECTIVES: dict[Head, type[Objective]] = {
    "classification": Classes,
    "multilabel": MultiLabel,
    "regression": Regression,
    "causal_lm": NextToken,
    "spans": AnswerSpans,
}


def objective_of(label_names: Sequence[str] | None, head: Head | None = None) -> Objective:
    """The objective of a head; by default classes, or the next token where there are none."""
    return OBJECTIVES[head or ("causal_lm" if label_names is None else "classification")](
        tuple(label_names or ())
    )


__all__ = [
    "OBJECTIVES",
    "AnswerSpans",
    "Classes",
    "MultiLabel",
    "NextToken",
    "Objective",
    "Regression",
    "Sums",
    "mean_loss",
    "merge",
    "objective_of",
]
