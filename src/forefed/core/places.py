"""Where something is written: looked at before the work that leads to it; the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from forefed.core.errors import UserError


def new_place(path: Path, option: str, folder: bool = False) -> Path:
    """A place that can be written, so that nobody computes for an hour first.

    Args:
        option: what a message calls it; ``folder``: a folder is meant, not a file.

    Raises:
        UserError: below a file, in a folder that is read-only, or a folder where a file is meant.
    """
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if there == path.absolute():
        if there.is_dir() and not folder:
            raise UserError(f"{option} {path}: is a folder; name a file")
        return path
    if not there.is_dir():
        raise UserError(f"{option} {path}: '{there}' is a file, and nothing lies below one")
    if not os.access(there, os.W_OK):
        raise UserError(f"{option} {path}: '{there}' cannot be written; choose another place")
    return path


def user_cache() -> Path:
    """Where is kept what any run of this user may read again: the folder ``FOREFED_CACHE``, else
    ``forefed`` below the user's cache.

    Raises:
        RuntimeError: this user has no home.
    """
    own = os.environ.get("FOREFED_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forefed"
