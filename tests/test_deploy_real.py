"""Three sites, a server and TLS with node keys, in the real processes of this machine.

Minutes long, so not among the default tests: ``make test-deploy``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import options
from deployment import NAMES, STRATEGIES, deployed_sets, rehearsal, write_rows
from federation import lines
from forefed.deploy.connect import NOTES
from forefed.run import run

pytest.importorskip("flwr")
pytestmark = pytest.mark.deploy
FOREFED = [sys.executable, "-m", "forefed.cli"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def forefed(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [*FOREFED, *map(str, arguments)]
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=500)


def start(*arguments: object, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen([*FOREFED, *map(str, arguments)], stdout=output, stderr=output)


class Federation:
    """A running server with its sites."""

    def __init__(self, root: Path, world):
        self.root, self.world = root, world
        self.port = free_port()
        self.port_of: dict[str, int] = {}
        files = write_rows(root / "rows")
        self.server = root / "server"
        forefed("server", "init", self.server, "--port", self.port)
        self.running = {"server": start("server", "start", self.server, log=root / "server.out")}
        for name in NAMES:
            folder = root / name
            place = ["--server", f"127.0.0.1:{self.port}", "--ca", self.server / "ca.crt"]
            self.port_of[name] = free_port()
            data = ["--data", files[name], "--port", self.port_of[name]]
            forefed("site", "init", folder, "--name", name, *place, *data)
            settings = folder / "site.toml"
            model = json.dumps(str(world.bert))
            text = settings.read_text().replace('minilm = "minilm"', f"{model} = {model}")
            settings.write_text(text)
        self.until(lambda: forefed("server", "status", self.server, check=False).returncode == 0)
        for name in NAMES:
            forefed("server", "admit", self.server, name, root / name / "node.pub")
            self.running[name] = start("site", "start", root / name, log=root / f"{name}.out")
        self.until(lambda: forefed("server", "status", self.server).stdout.count("online") == 3)

    def until(self, done, seconds: float = 180) -> None:
        last = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < last, self.logs()
            time.sleep(1)

    def run(self, name: str, *more: str) -> list[object]:
        """The command that runs these settings with the three sites."""
        sets = deployed_sets(self.world, self.root, "partition.join_s=120", *more, f"name={name}")
        sets.append(f"out='{self.root / 'runs'}'")
        return ["server", "run", "--dir", self.server, *options(sets)]

    def logs(self) -> str:
        found = [*self.root.glob("*/logs/*.log"), *self.root.glob("*.out")]
        return "\n".join(f"== {p}\n{p.read_text()[-1500:]}" for p in found)

    def stop(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            process.wait(40)


@pytest.fixture(scope="module")
def federation(world, tmp_path_factory):
    made = Federation(tmp_path_factory.mktemp("d"), world)
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_three_tls_sites_end_with_the_bits_of_the_rehearsal(federation, tmp_path, strategy):
    more = STRATEGIES[strategy]
    alone = run(rehearsal(federation.world, tmp_path, *more))
    done = forefed(*federation.run(strategy, *more), check=False)
    assert done.returncode == 0, done.stdout + done.stderr + federation.logs()
    folder = federation.root / "runs" / strategy
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["digest"] == alone.summary["digest"]
    assert all(line["replies"] == 3 for line in lines(folder, "rounds.jsonl"))


def test_kill_9_of_a_worker_in_a_run(federation):
    """The order that it worked on is lost; the next round has all three again."""
    site, folder = federation.root / "main", federation.root / "runs" / "killed"
    log = site / "logs" / "worker.log"
    before = log.read_text().count("round 1:")
    slow = ["strategy=fedavg", "client.epochs=100", "client.max_steps=1000", "deadline_s=100"]
    watching = start(*federation.run("killed", *slow), log=federation.root / "killed.out")
    federation.until(lambda: (folder / "notes.jsonl").exists() and len(lines(folder, NOTES)) == 3)
    federation.until(lambda: find(f"flwr-clientapp {federation.port_of['main']}"))
    time.sleep(2)
    (worker,) = find(f"start_worker {site}")
    os.kill(worker, signal.SIGKILL)
    assert watching.wait(400) == 0, federation.logs()
    rounds = lines(folder, "rounds.jsonl")
    assert rounds[0]["lost"] == {"error": 1} and log.read_text().count("round 1:") == before
    assert rounds[-1]["replies"] == 3


def test_kill_9_of_flowers_process_at_a_site_in_a_run(federation):
    """Flower tells after about a minute; the worker has done the work and keeps the answer."""
    folder = federation.root / "runs" / "shot"
    slow = ["strategy=fedavg", "client.epochs=100", "client.max_steps=1000", "deadline_s=100"]
    watching = start(*federation.run("shot", *slow), log=federation.root / "shot.out")
    federation.until(lambda: (folder / "notes.jsonl").exists() and len(lines(folder, NOTES)) == 3)
    federation.until(lambda: find(f"flwr-clientapp {federation.port_of['large']}"))
    os.kill(find(f"flwr-clientapp {federation.port_of['large']}")[0], signal.SIGKILL)
    assert watching.wait(400) == 0, federation.logs()
    rounds = lines(folder, "rounds.jsonl")
    assert rounds[0]["lost"] == {"crash": 1}
    assert rounds[-1]["replies"] == 3


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
