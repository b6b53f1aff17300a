"""The scalar log: what a run whose clients send slopes applied, round by round, on disk.

Source: Just One Byte (arXiv 2306.10015): seeds and scalars are a complete record of training. The
first values and this file give the parameters of every round bit for bit (run/rebuild.py), and a
stopped server goes on from its last checkpoint and the rounds that the log has beyond it.

A file of messages (wire/message.py), each with its own checksum, to which one is added per round:

    "log"    meta {"format": 1, "config": digest, "base": digest of the first values}
    "round"  meta {"r": round, "v": clients that answered, "f": clients that answered with an
             error, "d": digest of the parameters or ""}
             body: the round's record (wire/records.py)

A kill in the middle of a write leaves a torn last message: readers stop before it, and a run that
goes on cuts it off. Anything else that cannot be read is damage, which nobody repairs silently.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from forefed.core import trees
from forefed.core.errors import ProtocolError, UserError
from forefed.core.files import append, write_atomic
from forefed.core.types import Json
from forefed.federation.report import RoundReport
from forefed.federation.state import RunState
from forefed.wire.message import HEAD_BYTES, MAGIC, Limits, frame_bytes, pack, unpack

LOG = "scalars.log"
FORMAT = 1
DIGEST_EVERY = 16  # rounds; the last one of a run always has a digest
LIMITS = Limits(meta=1 << 28)  # a round of a million clients names them all


@dataclass(frozen=True)
class LoggedRound:
    """One round: who answered, or answered with an error; what was applied, and the digest of what
    came of it ("": none)."""

    round: int
    heard: tuple[int, ...]
    failed: tuple[int, ...]
    digest: str
    record: bytes
    stop: int
    """Place in the file where the next round begins."""


@dataclass(frozen=True)
class ScalarLog:
    """A log that has been opened: its first message is whole and of this version."""

    path: Path
    config: str
    base: str
    start: int
    """Place of the first round."""

    def rounds(self) -> Iterator[LoggedRound]:
        """The whole rounds of the log, in their order.

        Raises:
            UserError: damaged at a place after which there is more.
        """
        place, last = self.start, 0
        with self.path.open("rb") as file:
            while True:
                try:
                    frame = _frame(file, place)
                    if frame is None:
                        return
                    logged = _logged(frame, place + len(frame))
                except ProtocolError as error:
                    if _more_after(file, place):
                        raise UserError(
                            f"{self.path}: damaged at byte {place}, after round {last} ({error}); "
                            "restore it from a copy"
                        ) from None
                    return
                yield logged
                place, last = logged.stop, logged.round

    def append(self, state: RunState, report: RoundReport, last: bool = False) -> None:
        """Add the round that led to ``state``, and do not return before it is on the disk.

        ``last``: it is the run's last one, which has a digest in any case.
        """
        checked = last or state.round % DIGEST_EVERY == 0
        digest = trees.digest(state.params) if checked else ""
        meta: Json = {"r": state.round, "v": report.heard, "f": report.failed, "d": digest}
        append(self.path, pack("round", meta, report.record))

    def cut(self, place: int) -> None:
        """Forget what stands from this place on."""
        with self.path.open("r+b") as file:
            file.truncate(place)
            os.fsync(file.fileno())


def create_log(path: Path, config: str, base: str) -> ScalarLog:
    """A log without a round. ``config``, ``base``: digests of what the rounds will build on."""
    head = pack("log", {"format": FORMAT, "config": config, "base": base})
    write_atomic(path, head)
    return ScalarLog(path, config, base, len(head))


def open_log(path: Path, config: str) -> ScalarLog:
    """A log that was written by a run with this digest of its settings.

    Raises:
        UserError: missing, no log, damaged, of another version or of another run.
    """
    try:
        with path.open("rb") as file:
            frame = _frame(file, 0)
        if frame is None:
            raise ProtocolError("it is empty")
        meta, _ = unpack(frame, "log")
        if meta.get("format") != FORMAT:
            raise ProtocolError(f"format {meta.get('format')!r}; this version reads {FORMAT}")
        log = ScalarLog(path, str(meta["config"]), str(meta["base"]), len(frame))
    except FileNotFoundError:
        raise UserError(
            f"{path}: the run's log is missing; restore it, or start the run anew under another "
            "name"
        ) from None
    except (ProtocolError, KeyError, OSError) as error:
        raise UserError(f"{path}: not a readable scalar log ({error}); restore it") from None
    if log.config != config:
        raise UserError(
            f"{path}: the log of a run with other settings (or another version of forefed wrote "
            "it, which can replay it); it belongs beside the config.json of the run that wrote it"
        )
    return log


def _frame(file: BinaryIO, place: int) -> bytes | None:
    """The message at this place; None at the end of the file."""
    file.seek(place)
    head = file.read(HEAD_BYTES)
    if not head:
        return None
    length = frame_bytes(head)
    left = os.fstat(file.fileno()).st_size - place
    if length > left:
        raise ProtocolError(f"a message of {length} bytes, of which {left} are there")
    return head + file.read(length - HEAD_BYTES)


def _logged(frame: bytes, stop: int) -> LoggedRound:
    meta, body = unpack(frame, "round", LIMITS)
    try:
        heard, failed = (tuple(int(client) for client in meta[who]) for who in ("v", "f"))
        return LoggedRound(int(meta["r"]), heard, failed, str(meta["d"]), bytes(body), stop)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the round cannot be read: {error!r}") from None


def _more_after(file: BinaryIO, place: int) -> bool:
    """Does a whole round stand behind this place? Then what stands there was not torn by a kill."""
    file.seek(place)
    rest = file.read()
    at = rest.find(MAGIC, 1)
    while at >= 0:
        try:
            frame = _frame(file, place + at)
            if frame is not None:
                _logged(frame, 0)
                return True
        except ProtocolError:
            pass  # chance bytes, or the record within a round: no round begins here
        at = rest.find(MAGIC, at + 1)
    return False
