"""Writing so that a kill at any moment leaves the old file or the new one, never half of either."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from forefed.core.errors import UserError
from forefed.core.keys import Secret

SECRET = "secret.key"


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """``data`` into a temporary file beside ``path``, flushed to disk, then renamed over it.

    ``mode``: the file's access rights; 0o600 for what only its owner may read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def kept_secret(folder: Path) -> Secret:
    """The secret of a party that has this folder: drawn once, and the same after every restart, so
    that a task done again gives the same bits. Only the owner may read its file.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / SECRET
    if not path.exists():
        write_atomic(path, Secret.new().bytes, mode=0o600)
    try:
        return Secret.of_bytes(path.read_bytes())
    except ValueError:
        raise UserError(
            f"{path}: damaged; restore it from a copy, or delete it (a run in progress then draws "
            "other noise when it is resumed)"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, atomically; NaN becomes null, as JSON has no NaN."""
    text = json.dumps(without_nan(value), indent=1, ensure_ascii=False)
    write_atomic(path, text.encode() + b"\n")


def without_nan(value: Any) -> Any:
    """The same value with None in the place of every number that JSON cannot write."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value
