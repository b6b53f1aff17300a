"""Flower's two programs at a site, without the waiting that they do between messages.

``python -m forefed.deploy.flower_site flower-supernode ARGUMENTS`` is Flower's own program with its
own arguments, and one difference each (flwr 1.41 and 1.42; docs/LOG.md has the seconds):

- The node (``flower-supernode``) sleeps 3 s whenever it has heard nothing, also right after an
  answer, so a site that answers quickly waits 3 s in every exchange. Here it waits a tenth of the
  time for which it has heard nothing, between 0.2 s and Flower's own 3 s.
- The executor (``flower-superexec``) starts Python and imports Flower for every message. Here it
  has imported that already and splits itself (fork): a process per message as before.

Flower has no setting for either. Where one of its modules is no longer what is expected, or the
system is not Linux (a fork after threads is not safe on macOS), the program runs as Flower made it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from logging import getLogger
from types import ModuleType
from typing import Any

NODE, EXECUTOR = "flower-supernode", "flower-superexec"
LOOP = "flwr.supernode.start_client_internal"
"""Uses ``time`` for nothing but its pauses."""
DISPATCH = "flwr.supercore.superexec.run_superexec"
"""Asks its ``get_executor`` for what starts a process per task."""

SHORTEST_S, SHARE, BUSY_S = 0.2, 0.1, 0.1
IDLE_S = 1.0
"""The node's pauses are longer than this when it has heard nothing (3 s), and shorter while a
message is worked on (0.5 s)."""

log = getLogger("flwr")


class Pace:
    """Stands for the module ``time`` in the node's loop: pauses that follow how long it was quiet.

    A wait is so at most a tenth longer than it must be, and a node of an idle site asks the server
    as rarely as Flower's own.
    """

    def __init__(
        self,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.really, self.clock = sleep, clock
        self.quiet_since: float | None = None

    def sleep(self, seconds: float) -> None:
        """In place of a pause of so many seconds."""
        if seconds < IDLE_S:  # a message is being worked on
            self.quiet_since = None
            self.really(min(seconds, BUSY_S))
            return
        now = self.clock()
        if self.quiet_since is None:
            self.quiet_since = now
        self.really(min(seconds, max(SHORTEST_S, SHARE * (now - self.quiet_since))))

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class Forking:
    """A Flower ``Executor``: a process per message that needs not import anything.

    Runs in a process with one thread, which is what makes a fork safe.
    """

    def __init__(self, run: Callable[[Any], None]):
        self.run = run
        """One task, in the process that was split off; may end by ``SystemExit``."""
        self.children: set[int] = set()

    def get_eligible_capacity(self, wanted: set[Any], **_: object) -> tuple[set[Any], set[str]]:
        """All of them at any time, as Flower's own for processes of this machine."""
        return wanted, set()

    def wait_for_capacity(self, task_type: object = None, **_: object) -> None:
        """Never waits."""

    def launch(self, spec: Any) -> Any:
        """Start one task, and return at once."""
        from flwr.supercore.superexec.executor import LaunchResult

        child = os.fork()
        if child == 0:
            code = 1
            try:
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                    signal.signal(number, signal.SIG_DFL)
                self.run(spec)
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except Exception:
                log.exception("a message's process failed")
            finally:
                with suppress(OSError):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)  # nothing of the executor's own end may happen here
        self.children.add(child)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Take leave of the processes that have ended."""
        for child in sorted(self.children):
            if os.waitpid(child, os.WNOHANG)[0]:
                self.children.discard(child)

    def close(self) -> None:
        """Its processes see by themselves that this one has ended."""


def run_task(spec: Any) -> None:
    """What ``flwr-clientapp`` does for one message."""
    from flwr.supercore.exit.exit_handler import registered_exit_handlers
    from flwr.supercore.tls import validate_and_resolve_root_certificates
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    registered_exit_handlers.clear()  # the executor's: they close what it goes on using
    run_clientapp(
        runtime_api_address=spec.runtime_api_address,
        token=spec.token,
        insecure=spec.insecure,
        certificates=validate_and_resolve_root_certificates(
            spec.root_certificates_path, spec.insecure
        ),
        parent_pid=spec.parent_pid,
        runtime_dependency_install=spec.runtime_dependency_install,
    )


def quick_node() -> None:
    """Give the node's loop its pace."""
    expected(LOOP, "time").time = Pace()  # type: ignore[attr-defined]


def quick_executor() -> None:
    """Let the executor split itself, with everything imported that a message needs."""
    dispatch = expected(DISPATCH, "get_executor")
    for needed in ("flwr.supernode.runtime.run_clientapp", "forefed.deploy.flower_client"):
        importlib.import_module(needed)
    dispatch.get_executor = lambda *_, **__: Forking(run_task)  # type: ignore[attr-defined]


def expected(name: str, attribute: str) -> ModuleType:
    """Flower's module, which uses something under this name.

    Raises:
        ImportError: this version of Flower is built otherwise.
    """
    module = importlib.import_module(name)
    if not hasattr(module, attribute):
        raise ImportError(f"{name} has no {attribute}")
    return module


def main() -> None:
    """Flower's program of this name, quicker where that is possible."""
    program = sys.argv[1]
    sys.argv = sys.argv[1:]
    try:
        if program == NODE:
            quick_node()
        elif sys.platform == "linux":
            quick_executor()
    except ImportError as error:
        log.warning("as Flower made it, with its pauses: %s", error)
    if program == NODE:
        from flwr.supernode.cli.flower_supernode import flower_supernode

        flower_supernode()
    else:
        from flwr.supercore.cli.flower_superexec import flower_superexec

        flower_superexec()


if __name__ == "__main__":
    main()
