"""What a run tells while it goes on, and to whom."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forefed.core.errors import Stopped
from forefed.core.types import Json, Lost, Reply

if TYPE_CHECKING:
    from forefed.run.build import Federation

_LOG = logging.getLogger(__name__)


class Callback:
    """Told what happens during a run; the default is silence. Override what you want to know.

    An exception in a callback is logged, once for each method, and the run goes on without it.
    ``KeyboardInterrupt`` and ``forefed.core.errors.Stopped`` stop the run, which can be resumed.
    """

    def loading(self, what: str) -> None:
        """Something that takes a while is being read."""

    def starting(self, what: str, done: int, of: int) -> None:
        """Before the first round, or after the last: so many of the clients have answered."""

    def built(self, federation: Federation, start_round: int) -> None:
        """All is there; ``start_round``: finished rounds (0: a new run)."""

    def outcome(self, outcome: Reply | Lost) -> None:
        """A client has answered, or is lost."""

    def round(self, line: Json) -> None:
        """A round is finished and recorded: its line of rounds.jsonl."""

    def evaluated(self, line: Json) -> None:
        """A line of evaluations.jsonl."""

    def note(self, text: str) -> None:
        """A sentence that a person should read."""

    def ended(self, summary: Json) -> None:
        """The run has ended: what summary.json says."""

    def already_finished(self, summary: Json) -> None:
        """It had ended before, and nothing was done."""


class Told:
    """Everybody who is told, in order."""

    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks = tuple(callbacks)
        self._failed: set[tuple[int, str]] = set()

    def __call__(self, event: str, *about: Any) -> None:
        """Call the method ``event`` of each."""
        for number, callback in enumerate(self.callbacks):
            try:
                getattr(callback, event)(*about)
            except Stopped:
                raise
            except Exception:
                if (number, event) not in self._failed:
                    self._failed.add((number, event))
                    name = f"{type(callback).__name__}.{event}"
                    _LOG.exception("the callback %s failed; the run goes on without it", name)
