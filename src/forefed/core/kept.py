"""A party's own secret, in a file of its folder."""

from __future__ import annotations

from pathlib import Path

from forefed.core.errors import UserError
from forefed.core.files import write_atomic
from forefed.core.keys import Secret

SECRET = "secret.key"


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
