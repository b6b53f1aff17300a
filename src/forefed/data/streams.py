"""Files as streams of bytes and of text, unpacked where they are packed, with places of faults."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from forefed.core.errors import UserError


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file; unpacked where its name ends in .gz.

    Raises:
        UserError: a damaged gzip file.
    """
    packed = path.suffix.lower() == ".gz"
    try:
        with path.open("rb") as file:
            yield gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip file ({error}); copy it again") from error


@contextmanager
def as_text(path: Path, newline: str) -> Iterator[IO[str]]:
    """The text of a file; ``newline`` as for ``open``.

    Raises:
        UserError: damaged, or not UTF-8; names the line and the byte.
    """
    try:
        with opened(path) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline=newline) as text:
            yield text
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


def whole_text(path: Path) -> str:
    """All of a file's text."""
    with as_text(path, "\n") as text:
        return text.read()


def _not_utf8(path: Path) -> UserError:
    """Where the first byte is that is not UTF-8 (a stream's own offset counts within a block)."""
    with opened(path) as stream:
        data = stream.read()
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return UserError(
            f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x} at offset "
            f"{error.start}); save the file as UTF-8"
        )
    return UserError(f"{path}: not UTF-8; save the file as UTF-8")
