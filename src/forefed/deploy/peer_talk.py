"""Peers on the network: TLS 1.3 between keys that are known in advance, and one exchange of logs.

Both sides show their certificates, and each is compared with the one in ``known/``: nobody else is
talked to, and no authority is believed. A talk is five messages (wire/message.py: version, kind,
lengths, digest; nothing is pickled), each bounded before it is read:

    asking   have      what I have of every chain
    asked    given     what you lack        have   what I have
    asking   given     what you lack, and my better chains where ours part
    asked    given     my better chains where ours part (mostly nothing)

What was said before, by whomever it is said again, changes nothing: the log is a set.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from forefed.core.errors import ProtocolError
from forefed.deploy.names import split_address
from forefed.deploy.peer_folder import Known, der_of
from forefed.federation.chains import LIMITS
from forefed.wire.message import HEAD_BYTES, frame_bytes

log = logging.getLogger("forefed.peer")
CONNECT_S, TALK_S = 3.0, 30.0
AT_ONCE = 16
"""Connections that are answered at a time; more are turned away."""
LARGEST = LIMITS.meta + LIMITS.body + HEAD_BYTES


class Away(OSError):
    """Nobody with the peer's key is at its address: it has ended, or the network parts us. (Who is
    there and too busy to talk raises another one.)"""


def send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(message)


def receive(connection: socket.socket) -> bytes:
    """One message.

    Raises:
        ProtocolError: none begins here, it is too long, or the other side has left.
    """
    head = _exactly(connection, HEAD_BYTES)
    length = frame_bytes(head)
    if length > LARGEST:
        raise ProtocolError(f"a message of {length} bytes, at most {LARGEST}")
    return head + _exactly(connection, length - HEAD_BYTES)


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = connection.recv(min(count, 1 << 16))
        if not part:
            raise ProtocolError("the other side ended the talk")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class Network:
    """One peer's place on the network: it dials the others, and answers them in threads."""

    def __init__(self, key: Path, peers: Sequence[Known], me: int) -> None:
        self.peers, self.me = peers, me
        self.certificates = [der_of(peer) for peer in peers]
        everybody = "\n".join(peer.certificate for peer in peers)
        self.dialling = self._context(ssl.PROTOCOL_TLS_CLIENT, key, everybody)
        self.answering = self._context(ssl.PROTOCOL_TLS_SERVER, key, everybody)
        self.free = threading.Semaphore(AT_ONCE)

    @staticmethod
    def _context(side: int, key: Path, everybody: str) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # a certificate is compared with the known one, whole
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(key)
        context.load_verify_locations(cadata=everybody)
        return context

    def dial(self, author: int) -> ssl.SSLSocket:
        """A connection to this peer and nobody else.

        Raises:
            Away: nobody answers there, or somebody without its key.
            OSError: somebody does, and the talk does not begin.
        """
        place = split_address(self.peers[author].address)
        try:
            plain = socket.create_connection(place, CONNECT_S)
        except OSError as error:
            raise Away(f"{type(error).__name__}: {error}") from None
        try:
            plain.settimeout(TALK_S)
            connection = self.dialling.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise
        if self.author_of(connection) != author:
            connection.close()
            raise Away(f"{self.peers[author].name}: another peer's key answers at its address")
        return connection

    def author_of(self, connection: ssl.SSLSocket) -> int | None:
        """Who is at the other end; None: nobody who is known."""
        shown = connection.getpeercert(binary_form=True)
        return self.certificates.index(shown) if shown in self.certificates else None

    @contextmanager
    def listen(
        self, host: str, port: int, answer: Callable[[int, ssl.SSLSocket], None]
    ) -> Iterator[None]:
        """Answer in the background.

        Raises:
            OSError: the port is taken, or the interface is none of this machine.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family, backlog=64) as listener:
            thread = threading.Thread(target=self._serve, args=(listener, answer), daemon=True)
            thread.start()
            try:
                yield
            finally:
                with suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)  # wakes whoever waits in accept
                thread.join(CONNECT_S)

    def _serve(self, listener: socket.socket, answer: Callable[[int, ssl.SSLSocket], None]) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return  # closed: the peer ends
            if not self.free.acquire(blocking=False):
                plain.close()
                continue
            threading.Thread(target=self._one, args=(plain, answer), daemon=True).start()

    def _one(self, plain: socket.socket, answer: Callable[[int, ssl.SSLSocket], None]) -> None:
        try:
            plain.settimeout(CONNECT_S)
            with self.answering.wrap_socket(plain, server_side=True) as connection:
                author = self.author_of(connection)
                if author is None or author == self.me:
                    return
                connection.settimeout(TALK_S)
                answer(author, connection)
        except (OSError, ProtocolError) as error:
            log.info("a talk ended early: %s", error)
        finally:
            plain.close()
            self.free.release()
