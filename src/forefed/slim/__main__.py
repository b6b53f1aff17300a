"""``python -m forefed.slim FOLDER``: answers orders on its standard streams.

Messages follow one another in either direction, each in its frame (core/frame.py): the state of a
round is kept, and every order is answered by an update. What cannot be answered ends the program
with one sentence on the standard error stream.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from forefed.core.errors import ProtocolError, UserError
from forefed.core.frame import HEAD_BYTES, frame_bytes, kind_of
from forefed.slim.client import Client
from forefed.slim.orders import Arrays, read_state


def messages(stream: BinaryIO) -> Iterator[bytes]:
    """The messages of a stream, until it ends.

    Raises:
        ProtocolError: what is none, or is cut.
    """
    while head := stream.read(HEAD_BYTES):
        rest = frame_bytes(head) - HEAD_BYTES
        body = stream.read(rest)
        if len(body) < rest:
            raise ProtocolError("the last message is cut")
        yield head + body


def serve(client: Client, asked: BinaryIO, said: BinaryIO) -> None:
    """Answers until nothing is asked any more."""
    params: Arrays = {}
    for message in messages(asked):
        if kind_of(message) == "state":
            params = read_state(message)
        else:
            said.write(client(message, params))
            said.flush()


def main(folder: str) -> int:
    try:
        serve(Client.of(Path(folder)), sys.stdin.buffer, sys.stdout.buffer)
    except (UserError, ProtocolError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m forefed.slim FOLDER")
    sys.exit(main(sys.argv[1]))
