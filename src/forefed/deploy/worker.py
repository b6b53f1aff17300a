"""The warm worker: a site's model, data and client state in one long-lived process.

It answers one envelope after the other on a UNIX socket that only its owner may open. Whoever
starts it restarts it (supervise.py); what it must remember between two starts is on disk
(journal.py), so a kill at any moment costs one answer.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from forefed.core.errors import ProtocolError, UserError
from forefed.core.files import locked
from forefed.deploy.envelope import Envelope, encode, read

log = logging.getLogger("forefed.site")
PATIENCE_S = 60.0  # for a peer that has connected and then stays silent
MAX_PATH = 100  # bytes of a UNIX socket's address: 108 on Linux, 104 elsewhere


def serve(path: Path, answer: Callable[[Envelope], Envelope], times: int | None = None) -> None:
    """Answer on the socket ``path``, for ever or some times.

    Raises:
        UserError: the path is too long for a socket, or another worker serves it.
    """
    with _listening(path) as listener:
        log.info("listening")
        while times is None or times > 0:
            connection, _ = listener.accept()
            with connection:
                _one(connection, answer)
            times = None if times is None else times - 1


def work(path: Path, make: Callable[[], Callable[[Envelope], Envelope]]) -> None:
    """Answer on a socket until the process is ended; a user's mistake ends it with 2, after which
    it is not started again."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        serve(path, make())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _one(connection: socket.socket, answer: Callable[[Envelope], Envelope]) -> None:
    connection.settimeout(PATIENCE_S)
    try:
        asked = read(connection.recv)
    except (OSError, ProtocolError) as error:
        log.warning("a question could not be read: %s", error)
        return
    if _has_left(connection):
        log.info("nobody waits any more for %s of round %d", asked.kind, asked.round)
        return
    answered = answer(asked)
    try:
        connection.sendall(encode(answered))
    except OSError as error:  # it was killed, or gave up; the answer is kept for the next asking
        log.warning("%s of round %d could not be handed over: %s", asked.kind, asked.round, error)


def _has_left(connection: socket.socket) -> bool:
    """Did the peer give up while its question waited in the queue?"""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(PATIENCE_S)


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    if len(os.fsencode(path)) > MAX_PATH:
        raise UserError(
            f"{path}: longer than the {MAX_PATH} bytes that the address of a socket may have; "
            "move the site's folder to a shorter path"
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    busy = f"{path}: another worker of this site is running"
    with locked(path.with_suffix(".lock"), busy):
        path.unlink(missing_ok=True)  # left by a worker that was killed
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            before = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen(16)
            try:
                yield listener
            finally:
                path.unlink(missing_ok=True)
