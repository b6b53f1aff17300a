"""A head that a checkpoint brings, under the names that its classes have in the data.

The rows of a head mean classes by their order. A head that was trained for the same classes in
another order is put into ours; one for other classes, or for classes without names, is drawn anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from forefed.models.attach import head_modules
from forefed.models.objectives import Objective, Regression


def fit_head(
    model: Any, objective: Objective, theirs: Sequence[str], drawn: set[str], resized: bool
) -> tuple[set[str], str]:
    """Orders the rows of the head's last layer by our classes, in place.

    Args:
        theirs: the checkpoint's names of its classes, in the order of its rows.
        drawn: tensors of the head that the checkpoint lacks, or has in another shape.
        resized: is there one in another shape?

    Returns:
        All tensors that are to be drawn, and what a person should know of it ("": nothing).
    """
    ours = objective.classes
    heads = head_modules(model, objective)
    tensors = [n for n, _ in model.named_parameters() if _inside(n, heads)]
    last = _last_linear(model, heads)
    rows = [n for n in tensors if last and _inside(n, (last,))]
    if not ours or not rows or (drawn >= {*rows} and not resized):
        return drawn, ""
    if isinstance(objective, Regression):
        return {*drawn, *rows}, (
            "model: the checkpoint's head says a number on a scale that it does not tell, so it is "
            f"drawn anew for {' to '.join(ours)}"
        )
    if resized:
        return {*drawn, *rows}, _said(theirs, ours, "is for another number of classes")
    order = order_of(theirs or [f"LABEL_{i}" for i in range(len(ours))], ours)
    if order is None:
        why = "has names of other classes" if named(theirs) else "does not tell its classes' names"
        return {*drawn, *rows}, _said(theirs, ours, why)
    if order == list(range(len(ours))):
        return drawn, ""
    for name in rows:
        parameter = model.get_parameter(name)
        parameter.data = parameter.data[torch.tensor(order)].contiguous()
    return drawn, (
        "model: the checkpoint's head has these classes in another order "
        f"({', '.join(theirs)}); its rows were put into the order of the data ({', '.join(ours)})"
    )


def order_of(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """For each of our classes the row of theirs; None if the sets of names differ."""
    numbers = {plain(name): i for i, name in enumerate(theirs)}
    wanted = [plain(name) for name in ours]
    if len(numbers) != len(theirs) or len(set(wanted)) != len(wanted) or set(wanted) != {*numbers}:
        return None
    return [numbers[name] for name in wanted]


def plain(name: str) -> str:
    """A class's name by its value: without case and outer blanks; ``LABEL_3``, ``3.0`` are 3."""
    text = name.strip().casefold()
    text = re.sub(r"^label_(\d+)$", r"\1", text)
    match = re.fullmatch(r"([+-]?)0*(\d+)(\.0*)?", text)
    return f"{match[1].replace('+', '')}{match[2]}" if match else text


def named(theirs: Sequence[str]) -> bool:
    """Has the checkpoint names of its own, not transformers' ``LABEL_0`` and so on?"""
    return not all(re.fullmatch(r"LABEL_\d+", name) for name in theirs)


def _said(theirs: Sequence[str], ours: Sequence[str], why: str) -> str:
    known = f" ({', '.join(theirs[:10])})" if named(theirs) and theirs else ""
    return (
        f"model: the checkpoint's head{known} {why}, so it is drawn anew for "
        f"{', '.join(ours[:10])}; id2label in its config.json tells the classes of its rows"
    )


def _last_linear(model: Any, heads: Sequence[str]) -> str | None:
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and _own(n, heads)]
    return names[-1] if names else None


def _own(name: str, heads: Sequence[str]) -> bool:
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)
