"""The slot ``start``: what the first round begins from."""

from __future__ import annotations

from typing import Literal

from forefed.core.settings import Choice


class Start(Choice):
    """Base of the starts."""

    @property
    def private(self) -> bool:
        """Are its sums bounded and noised?"""
        return False


class NoStart(Start):
    """Nothing: the head begins as the checkpoint has it, or as it is drawn."""

    kind: Literal["none"] = "none"
