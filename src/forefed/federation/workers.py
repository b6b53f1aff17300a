"""Processes that do the work of clients in this process's place, on cores of their own.

They are forked when the first work comes: the frozen weights, the rows and the code are in memory
once, and what a worker is sent and sends back are the messages of the run. Which worker does what
changes no bit: a client's work is a function of its message, its rows and what it kept, and each
worker computes with one thread. A client goes to the worker that had it before where that one is
free (its caches are there), else to any that is.

A worker ends with the process that made it, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe, wait

import torch

from forefed.core.errors import ProtocolError, UserError

Parts = Sequence[bytes]
_DONE, _REFUSED, _MISTAKE, _BROKEN = b"done", b"refused", b"mistake", b"broken"


class Workers:
    """Some workers, none of which exists before the first work.

    Args:
        count: how many.
        work: what one does; parts of bytes in and out. Raises ProtocolError or UserError, which
            are raised here.
    """

    def __init__(self, count: int, work: Callable[[Parts], Parts]):
        self.count, self.work = count, work
        self.homes: dict[int, int] = {}
        """The worker that each client was at last."""
        self._there: list[tuple[int, Connection]] = []
        self._end: Callable[[], object] = lambda: None

    def each(
        self, common: Sequence[Parts], tasks: Sequence[tuple[int, Parts]]
    ) -> Iterator[Parts | ProtocolError]:
        """What came of every task, in their order.

        Args:
            common: what every worker does first.
            tasks: of which client, and what is to be done.

        Raises:
            UserError: as the work raised it.
            RuntimeError: a worker failed, or ended.
        """
        if not self._there:
            self._start()
        busy: dict[Connection, tuple[int, int]] = {}
        try:
            yield from self._each(common, tasks, busy)
        except Exception:
            self.close()
            raise
        finally:
            if busy:  # nobody asks for the rest: what is under way is of no use
                self.close()

    def _each(
        self,
        common: Sequence[Parts],
        tasks: Sequence[tuple[int, Parts]],
        busy: dict[Connection, tuple[int, int]],
    ) -> Iterator[Parts | ProtocolError]:
        for _, there in self._there:
            for parts in common:
                there.send_bytes(joined(parts))
                found = _outcome(_received(there))
                if isinstance(found, ProtocolError):
                    raise RuntimeError(f"a worker refused what all are told: {found}")
        queue = _Queue(tasks, self.homes, self.count)
        free = [*range(self.count)]
        came: dict[int, Parts | ProtocolError] = {}
        for number in range(len(tasks)):
            while number not in came:
                while (begun := queue.next_for(free)) is not None:
                    worker, task = begun
                    free.remove(worker)
                    there = self._there[worker][1]
                    there.send_bytes(joined(tasks[task][1]))
                    busy[there] = worker, task
                for ready in wait([*busy]):
                    assert isinstance(ready, Connection)
                    worker, task = busy.pop(ready)
                    came[task] = _outcome(_received(ready))
                    free.append(worker)
            yield came.pop(number)

    def close(self) -> None:
        """Ends all workers, whatever they do."""
        self._end()
        self._there = []
        self.homes.clear()

    def _start(self) -> None:
        parent = os.getpid()
        self._end = weakref.finalize(self, _end, self._there)
        for _ in range(self.count):
            try:
                here, there = Pipe()
                pid = os.fork()
            except OSError as error:
                made = len(self._there)
                self.close()
                raise UserError(
                    f"workers = {self.count}: after {made} the system made no more processes "
                    f"({error.strerror}); set fewer"
                ) from None
            if pid == 0:
                for _, other in self._there:
                    other.close()
                here.close()
                _serve(there, self.work, parent)
            there.close()
            self._there.append((pid, here))


class _Queue:
    """Tasks that nobody has begun, by the worker that should."""

    def __init__(
        self, tasks: Sequence[tuple[int, Parts]], homes: dict[int, int], count: int
    ) -> None:
        self.clients = [client for client, _ in tasks]
        self.homes = homes
        self.fresh: deque[int] = deque()
        self.own: list[deque[int]] = [deque() for _ in range(count)]
        for number, client in enumerate(self.clients):
            (self.own[homes[client]] if client in homes else self.fresh).append(number)

    def next_for(self, free: Sequence[int]) -> tuple[int, int] | None:
        """A free worker, and a task for it: of a client that was there, that was nowhere, that was
        at a busy one (of the one that has most to do); None: nobody is free, or all are begun."""
        for worker in free:
            if self.own[worker]:
                return self._begun(worker, self.own[worker])
        busy = [self.own[w] for w in range(len(self.own)) if w not in free]
        for queue in (self.fresh, max(busy, key=len, default=self.fresh)):
            if free and queue:
                return self._begun(free[0], queue)
        return None

    def _begun(self, worker: int, queue: deque[int]) -> tuple[int, int]:
        task = queue.popleft()
        self.homes[self.clients[task]] = worker
        return worker, task


def joined(parts: Parts) -> bytes:
    """Parts as one message, each behind its length."""
    return b"".join(b for part in parts for b in (struct.pack("<Q", len(part)), part))


def parted(data: bytes) -> list[bytes]:
    """The inverse of ``joined``."""
    found, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        found.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return found


def _received(there: Connection) -> bytes:
    try:
        return there.recv_bytes()
    except (EOFError, OSError):
        raise RuntimeError(
            "a worker ended amid its work (killed, or out of memory: see workers)"
        ) from None


def _outcome(data: bytes) -> Parts | ProtocolError:
    state, *parts = parted(data)
    if state == _DONE:
        return parts
    text = parts[0].decode("utf-8", "replace")
    if state == _REFUSED:
        return ProtocolError(text)
    if state == _MISTAKE:
        raise UserError(text)
    raise RuntimeError(f"a worker failed:\n{text}")


def _serve(there: Connection, work: Callable[[Parts], Parts], parent: int) -> None:
    """A worker's whole life; it ends by ``os._exit``, so that nothing of its parent's is undone."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        torch.set_num_threads(1)
        while os.getppid() == parent:
            request = parted(there.recv_bytes())
            try:
                answer = joined([_DONE, *work(request)])
            except ProtocolError as error:
                answer = joined([_REFUSED, str(error).encode()])
            except UserError as error:
                answer = joined([_MISTAKE, str(error).encode()])
            except Exception:
                answer = joined([_BROKEN, traceback.format_exc().encode()])
            there.send_bytes(answer)
        status = 0
    except (EOFError, OSError):
        status = 0  # nobody asks any more
    finally:
        os._exit(status)


def _end(there: Sequence[tuple[int, Connection]]) -> None:
    for pid, connection in there:
        connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
