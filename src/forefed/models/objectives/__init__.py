"""What a model is trained to say: its head, its loss, and how right it is."""

from collections.abc import Sequence

from forefed.core.errors import UserError
from forefed.core.plugins import Entries
from forefed.data.tasks import Head
from forefed.models.objectives.answer_spans import AnswerSpans
from forefed.models.objectives.choice import Choice
from forefed.models.objectives.classes import Classes
from forefed.models.objectives.generate import Generate
from forefed.models.objectives.multilabel import MultiLabel
from forefed.models.objectives.next_token import NextToken
from forefed.models.objectives.objective import Objective, Sums, head_of, mean_loss, merge
from forefed.models.objectives.regression import Regression

OBJECTIVES: Entries[type[Objective]] = Entries(
    "objective",
    [Classes, MultiLabel, Regression, NextToken, Choice, Generate, AnswerSpans],
    head_of,
)
"""By the head that they are of (``TextTask.head``)."""


def objective_of(label_names: Sequence[str] | None, head: Head | None = None) -> Objective:
    """The objective of a head; by default classes, or the next token where there are none.

    Raises:
        UserError: there is none of this head.
    """
    named = head or ("causal_lm" if label_names is None else "classification")
    if named not in OBJECTIVES:
        raise UserError(f"the head '{named}' has no objective; register one (forefed.register)")
    return OBJECTIVES[named](tuple(label_names or ()))


__all__ = [
    "OBJECTIVES",
    "AnswerSpans",
    "Choice",
    "Classes",
    "Generate",
    "MultiLabel",
    "NextToken",
    "Objective",
    "Regression",
    "Sums",
    "mean_loss",
    "merge",
    "objective_of",
]
