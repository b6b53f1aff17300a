"""Errors a user can mend, and what every other error is called."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake: one message that names the place and the remedy.

    The command line prints it without a stack trace and exits with status 2.
    """


class Stopped(Exception):
    """Ended by the user or the system; the message says what is kept and how to go on.

    The command line prints it and exits with status 130.
    """


class ProtocolError(Exception):
    """A message or a file that is damaged, of another version, or not what was asked for.

    During a run such an answer becomes a ``Lost`` outcome; in a checkpoint it becomes a UserError.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Half a sentence that names the closest known word, and all of them when there are few."""
    candidates = list(known)
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    hint = f"did you mean '{several(close)}'? " if close else ""
    return f"{hint}Known here: {several(candidates)}"


def several(names: Iterable[str], most: int = 20, longest: int = 60) -> str:
    """The first names of many, and of each as much as a sentence bears."""
    found = list(names)
    cut = [n if len(n) <= longest else n[: longest - 1] + "…" for n in found[:most]]
    return ", ".join(cut) + (", ..." if len(found) > most else "")


REMEDIES = {
    errno.ENOSPC: "no room is left there; make room, and give the same command again",
    errno.EDQUOT: "no room is left there for you; make room, and give the same command again",
    errno.EFBIG: "no room: the file may not become so long; raise the limit, and try again",
    errno.EROFS: "nothing can be written there; choose another place",
    errno.EACCES: "you may not read or write there; change the rights, or choose another place",
    errno.EPERM: "you may not do this there; change the rights, or choose another place",
    errno.ENOTDIR: "a part of this path is a file and no folder; choose another place",
    errno.EISDIR: "a folder is in the place of this file; move it away",
    errno.EEXIST: "something else is there already; move it away, or choose another place",
    errno.ENOTEMPTY: "the folder is not empty; move it away, or choose another place",
    errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter one",
    errno.ENOENT: "it is not there (any more); restore it, or choose another place",
    errno.ELOOP: "its links go round in a circle; choose another place",
    errno.EXDEV: "it lies on another file system; choose another place",
    errno.EBUSY: "another program uses it; end that one, and try again",
    errno.EIO: "the disk does not read or write it; look at the disk",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOMEM: "memory is full; end other programs, or ask for less",
}
"""What a user can do about what the system refused."""


def of_system(error: OSError, place: object = None) -> UserError | None:
    """What the system refused as a user's mistake; None: it is none that a user can mend.

    Args:
        place: what was worked on, for errors that name no file.
    """
    remedy = REMEDIES.get(error.errno or 0)
    where = error.filename if error.filename is not None else place
    if remedy is None or where is None:
        return None
    where = where.decode(errors="replace") if isinstance(where, bytes) else where
    return UserError(f"{where}: {error.strerror or error}: {remedy}")
