"""Asks the warm worker, on behalf of Flower's short-lived process (no torch here)."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from forefed.core.errors import ProtocolError
from forefed.deploy.envelope import Envelope, encode, read

PATIENCE_S = 90.0  # a worker that was restarted needs time until it listens again


def ask(
    path: Path, asked: Envelope, patience_s: float = PATIENCE_S, life_s: float | None = None
) -> Envelope:
    """The worker's answer; a worker that cannot be reached or dies answers "failed".

    Args:
        path: the worker's socket.
        patience_s: how long to wait for a worker that does not listen (yet).
        life_s: how long anybody waits for the answer; whoever gives up is not worked for.
    """
    try:
        with _connect(path, patience_s) as connection:
            connection.settimeout(life_s)
            connection.sendall(encode(asked))
            return read(connection.recv)
    except (OSError, ProtocolError) as error:
        text = f"the site's worker did not answer ({type(error).__name__})"
        return Envelope("failed", asked.run, asked.round, asked.client, text)


def _connect(path: Path, patience_s: float) -> socket.socket:
    last = time.monotonic() + patience_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if time.monotonic() >= last:
                raise
            time.sleep(0.2)
