"""A real deployment on this machine: three sites and a server with TLS and node keys, started once.

Faults are put where they belong by stopping a site's worker (SIGSTOP): as long as it is held, the
round cannot end, whatever the speed of the machine.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from commands import options
from deployment import NAMES, deployed_sets, write_rows
from federation import World, lines
from forefed.deploy.connect import NOTES
from forefed.run.record import ROUNDS

FOREFED = [sys.executable, "-m", "forefed.cli"]


@dataclass
class Watched:
    """``forefed server run`` in the background."""

    federation: Federation
    folder: Path
    process: subprocess.Popen[bytes]

    def rounds(self) -> list[dict[str, Any]]:
        path = self.folder / ROUNDS
        return lines(self.folder, ROUNDS) if path.exists() else []

    def until_round(self, number: int) -> None:
        """The line of this round has been written."""
        self.federation.until(lambda: len(self.rounds()) >= number)

    def finish(self) -> list[dict[str, Any]]:
        """Wait for its end; the lines of its rounds, every round once."""
        assert self.process.wait(500) == 0, self.federation.logs()
        rounds = self.rounds()
        assert [line["round"] for line in rounds] == list(range(1, len(rounds) + 1))
        return rounds

    @property
    def digest(self) -> str:
        return str(json.loads((self.folder / "summary.json").read_text())["digest"])


class Federation:
    """A running server with its sites."""

    def __init__(self, root: Path, world: World):
        self.root, self.world = root, world
        self.port = free_port()
        self.port_of: dict[str, int] = {}
        self.files = write_rows(root / "rows")
        self.server = root / "server"
        forefed("server", "init", self.server, "--port", self.port)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        for name in NAMES:
            self.init_site(name, self.files[name])
        self.start_server()
        for name in NAMES:
            forefed("server", "admit", self.server, name, root / name / "node.pub")
            self.start_site(name)
        self.online(3)

    def start_server(self) -> None:
        """Start it, and wait until it answers."""
        log = self.root / "server.out"
        self.running["server"] = start("server", "start", self.server, log=log)
        answers = ["server", "status", self.server]
        self.until(lambda: forefed(*answers, check=False).returncode == 0, pause=2.0)

    def stop_server(self) -> None:
        """As an administrator does."""
        self.running["server"].send_signal(signal.SIGTERM)
        self.running["server"].wait(60)

    def everything(self, number: int) -> list[int]:
        """A process and all that it has started, the first one first."""
        children = psutil.Process(number).children(recursive=True)
        return [number, *(child.pid for child in children)]

    def init_site(self, name: str, data: Path) -> None:
        self.port_of[name] = free_port()
        place = ["--server", f"127.0.0.1:{self.port}", "--ca", self.server / "ca.crt"]
        more = ["--data", data, "--port", self.port_of[name]]
        forefed("site", "init", self.root / name, "--name", name, *place, *more)
        settings = self.root / name / "site.toml"
        model = json.dumps(str(self.world.bert))
        text = settings.read_text().replace('minilm = "minilm"', f"{model} = {model}")
        text = text.replace("# min_group = 5", "min_group = 3").replace("# memory", "memory")
        settings.write_text(text)

    def start_site(self, name: str, environment: dict[str, str] | None = None) -> None:
        log = self.root / f"{name}.out"
        self.running[name] = start("site", "start", self.root / name, log=log, more=environment)

    def status(self) -> str:
        return forefed("server", "status", self.server).stdout

    def online(self, count: int) -> None:
        """Wait until the server counts so many sites."""
        self.until(lambda: self.status().count("online") == count, pause=3.0)

    def until(self, done: Callable[[], object], seconds: float = 600, pause: float = 0.05) -> None:
        last = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < last, self.logs()
            time.sleep(pause)

    def run(self, name: str, *more: str, resume: bool = False) -> Watched:
        """Start a run of these settings with the three sites, and watch it."""
        sets = deployed_sets(
            self.world, self.root, "partition.join_s=150", "deadline_s=200", *more, f"name={name}"
        )
        runs = self.root / "runs"
        command = ["server", "run", "--dir", self.server, *options([*sets, f"out='{runs}'"])]
        log = self.root / f"{name}{'-again' * resume}.out"
        process = start(*command, *["--resume"] * resume, log=log)
        return Watched(self, runs / name, process)

    def said(self, name: str) -> str:
        """What a command has said on the console."""
        return " ".join((self.root / f"{name}.out").read_text().split())

    def log(self, site: str) -> str:
        """What a site's worker has said."""
        return (self.root / site / "logs" / "worker.log").read_text()

    def node(self, site: str) -> int:
        return one(f"flower-supernode {self.root / site}/")

    def worker(self, site: str) -> int:
        return one(f"start_worker {self.root / site}")

    def asking(self, site: str) -> list[int]:
        """Flower's process for a message at this site: what its executor has split off."""
        found = find(f"flower-superexec 127.0.0.1:{self.port_of[site]}")
        return [p for p in found if psutil.Process(p).ppid() in found]

    @property
    def link(self) -> int:
        return one(f"flower-superlink {self.server}/")

    @property
    def app(self) -> int:
        return one(f"flwr-serverapp 127.0.0.1:{self.port}")

    def joined(self, run: Watched) -> None:
        """All three sites take part in this run."""
        path = run.folder / NOTES
        self.until(lambda: path.exists() and len(lines(run.folder, NOTES)) >= 3)

    @contextmanager
    def held(self, run: Watched, site: str, after: int = 1) -> Iterator[None]:
        """In the round after these: the site's worker stands still, its order has arrived, and the
        other sites have answered."""
        run.until_round(after)
        worker = self.worker(site)
        before = {n: self.log(n).count(f" round {after + 1}: ") for n in NAMES if n != site}
        os.kill(worker, signal.SIGSTOP)
        try:
            for name, count in before.items():
                self.until(lambda n=name, c=count: self.log(n).count(f" round {after + 1}: ") > c)
            self.until(lambda: self.asking(site))
            time.sleep(3)  # until the others' answers are with the server
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGCONT)

    def logs(self) -> str:
        found = [*self.root.glob("*/logs/*.log"), *self.root.glob("*.out")]
        return "\n".join(f"== {p}\n{p.read_text()[-1500:]}" for p in found)

    def stop(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            process.wait(40)


@pytest.fixture(scope="session")
def federation(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    pytest.importorskip("flwr")
    made = Federation(tmp_path_factory.mktemp("d"), world)
    try:
        yield made
    finally:
        made.stop()


def forefed(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [*FOREFED, *map(str, arguments)]
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=500)


def start(
    *arguments: object, log: Path, more: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        command = [*FOREFED, *map(str, arguments)]
        return subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **(more or {})}
        )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def find(words: str) -> list[int]:
    """Processes whose command line holds all of these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words.split()):
            found.append(int(path.parent.name))
    return found


def one(words: str) -> int:
    (found,) = find(words)
    return found


def kill(number: int) -> None:
    os.kill(number, signal.SIGKILL)
