"""Writing so that a kill at any moment leaves the old file or the new one, never half of either."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


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
