"""What a head is fitted to, by the task's kind of head."""

from collections.abc import Sequence

from forefed.data.tasks import Head
from forefed.start.targets.classes import Classes
from forefed.start.targets.labels import Labels
from forefed.start.targets.numbers import Numbers
from forefed.start.targets.targets import SCALES, SHARES, Candidate, Chosen, Targets

TARGETS: dict[Head, type[Targets]] = {
    "classification": Classes,
    "multilabel": Labels,
    "regression": Numbers,
}
"""Heads that have a closed form; spans and next tokens have none."""


def targets_of(head: Head, names: Sequence[str]) -> Targets:
    return TARGETS[head](tuple(names))


__all__ = [
    "SCALES",
    "SHARES",
    "TARGETS",
    "Candidate",
    "Chosen",
    "Classes",
    "Labels",
    "Numbers",
    "Targets",
    "targets_of",
]
