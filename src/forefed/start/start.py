"""The slot ``start``: what the first round begins from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from forefed.core.settings import Choice

if TYPE_CHECKING:
    from forefed.start.closed_form import ClosedForm


class Start(Choice):
    """Base of the starts."""

    def head(self, task: str) -> ClosedForm | None:
        """How a head is solved before round 1 for a task of this head; None: it is not."""
        return None


class NoStart(Start):
    """Nothing: the head begins as the checkpoint has it, or as it is drawn."""

    kind: Literal["none"] = "none"
