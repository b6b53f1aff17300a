"""Files that are whole at every moment, and reading them without a surprise.

A kill or a power cut leaves the old file or the new one, never half of either; a temporary file
that it leaves is named ``.NAME.xxxxxxxx.partial``. What was written or renamed here stays so after
a power cut: the file is flushed to the disk before it is renamed, and its folder after that (a
rename is a change of the folder, which POSIX keeps in memory for a while).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from forefed.core.errors import UserError

PARTIAL = ".partial"
Json = dict[str, Any]
"""Here, as this file is read where there is no torch; ``core.types`` hands it on."""


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """``data`` into a temporary file beside ``path``, flushed to disk, then renamed over it.

    ``mode``: the file's access rights; 0o600 for what only its owner may read.
    """
    write_pieces(path, [data], mode)


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview], mode: int = 0o644) -> None:
    """The same of what is never held as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name[:100]}.", suffix=PARTIAL
    )
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    flush_folder(path.parent)


def append(path: Path, data: bytes) -> None:
    """``data`` at the end of a file, which is made where it is missing; on the disk at return.

    A kill can tear what was being written, and nothing before it.
    """
    with path.open("ab") as file:
        new = file.tell() == 0
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if new:
        flush_folder(path.parent)


def rename_folder(building: Path, place: Path) -> None:
    """A folder under its name, which no other has, once all that it holds is on the disk.

    Raises:
        OSError: the system refuses it, for example as a folder with files is there.
    """
    for path in building.rglob("*"):
        if path.is_dir():
            flush_folder(path)
        else:
            with path.open("r+b" if sys.platform == "win32" else "rb") as file:
                os.fsync(file.fileno())
    flush_folder(building)
    os.replace(building, place)
    flush_folder(place.parent)


def flush_folder(folder: Path) -> None:
    """What was made, renamed and removed in a folder is on the disk after this.

    Nothing is done on Windows, where a folder cannot be opened so (NTFS keeps a journal of its
    own), and on file systems that do not know it.
    """
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


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


def read_table(path: Path, remedy: str = "restore it from a copy") -> Json:
    """A JSON file that holds a table.

    Raises:
        UserError: missing, unreadable, damaged, or something else than a table.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged (it holds no table); {remedy}")
    return value


def read_table_lines(
    path: Path, remedy: str, fits: Callable[[Json], bool] | None = None
) -> tuple[list[Json], bool]:
    """The tables of a file with one per line, and whether a torn last line was left out.

    No file at all has no lines. Only the last line can be torn: by a kill, before its line break.

    Args:
        fits: has a table what its reader needs of it? None: every table is taken.

    Raises:
        UserError: unreadable, a line that is damaged otherwise, or a table that does not fit.
    """
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return [], False
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    lines: list[Json] = []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            if fits is not None and not fits(value):
                what = "damaged (not what is written there)"
                raise UserError(f"{path}, line {number}: {what}; {remedy}")
            lines.append(value)
        elif number == len(texts):
            return lines, True
        else:
            raise UserError(f"{path}, line {number}: damaged; {remedy}")
    return lines, False


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """The file at ``path``, which is made where it is missing, for this process alone.

    Raises:
        UserError: ``busy``: another process has it.
    """
    with path.open("w") as file:
        if not _lock(file):
            raise UserError(busy)
        yield


def is_locked(path: Path) -> bool:
    """Does a process have the file, by ``locked``?"""
    if not path.exists():
        return False
    with path.open("a") as file:
        return not _lock(file)


def _lock(file: IO[str]) -> bool:
    """False: another process has it. The lock ends with the file, however the process ends."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
    else:
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def sweep(folder: Path) -> None:
    """Remove what a kill left half written here; only for who holds the folder's lock."""
    for path in folder.glob(f".*{PARTIAL}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
