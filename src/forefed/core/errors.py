"""Errors a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake: one message that names the place and the remedy.

    The command line prints it without a stack trace and exits with status 2.
    """


class ProtocolError(Exception):
    """A message or a file that is damaged, of another version, or not what was asked for.

    During a run such an answer becomes a ``Lost`` outcome; in a checkpoint it becomes a UserError.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Half a sentence that names the closest known word, and all of them when there are few."""
    candidates = list(known)
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    shown = ", ".join(candidates[:20]) + (", ..." if len(candidates) > 20 else "")
    return f"{hint}Known here: {shown}"
