"""What is learned from a row: a class, labels or a number of its texts, the text itself, or an
answer in it."""

from forefed.core.settings import Registry
from forefed.data.encoding import encode_texts
from forefed.data.tasks.causal_lm import CausalLM
from forefed.data.tasks.choice import Choice
from forefed.data.tasks.classification import Classification, Pairs
from forefed.data.tasks.generate import Generate
from forefed.data.tasks.multilabel import MultiLabel
from forefed.data.tasks.qa import QuestionAnswering
from forefed.data.tasks.regression import Regression
from forefed.data.tasks.task import Encoded, Head, TextTask

TASKS: Registry[TextTask] = Registry(
    "data.task",
    [Classification, Pairs, MultiLabel, Regression, CausalLM, Choice, Generate, QuestionAnswering],
)

__all__ = [
    "TASKS",
    "CausalLM",
    "Choice",
    "Classification",
    "Encoded",
    "Generate",
    "Head",
    "MultiLabel",
    "Pairs",
    "QuestionAnswering",
    "Regression",
    "TextTask",
    "encode_texts",
]
