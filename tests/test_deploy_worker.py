"""The warm worker and the client that asks it: over a real socket, in real processes."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployment import through_bytes
from forefed.core.errors import ProtocolError, UserError
from forefed.deploy.envelope import VERSION, Envelope, encode, read
from forefed.deploy.supervise import Pause, Program, Stopped, supervise
from forefed.deploy.worker import serve
from forefed.deploy.worker_client import ask

QUESTION = Envelope("train", "run", 3, 1, "settings", {"state": bytes(100_000), "order": b"o"})


def echo(asked: Envelope) -> Envelope:
    return Envelope("trained", asked.run, asked.round, asked.client, "", {"update": b"done"})


@contextmanager
def serving(path: Path, answer: Callable[[Envelope], Envelope], times: int) -> Iterator[None]:
    thread = threading.Thread(target=serve, args=(path, answer, times), daemon=True)
    thread.start()
    yield
    thread.join(10)
    assert not thread.is_alive()


def test_a_question_and_its_answer_cross_the_socket(tmp_path):
    path = tmp_path / "s" / "worker.sock"
    seen: list[Envelope] = []
    with serving(path, lambda asked: seen.append(asked) or echo(asked), 1):
        assert ask(path, QUESTION) == echo(QUESTION)
    assert seen == [QUESTION]


def test_only_the_owner_may_open_the_socket(tmp_path):
    path = tmp_path / "s" / "worker.sock"
    with serving(path, echo, 1):
        while not path.exists():
            time.sleep(0.01)
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        ask(path, QUESTION)


def test_without_a_worker_the_answer_is_a_failure(tmp_path):
    answer = ask(tmp_path / "worker.sock", QUESTION, patience_s=0.3)
    assert (answer.kind, answer.round, answer.client) == ("failed", 3, 1)


def test_the_client_waits_for_a_worker_that_comes_late(tmp_path):
    path = tmp_path / "worker.sock"
    answers: list[Envelope] = []
    thread = threading.Thread(target=lambda: answers.append(ask(path, QUESTION)))
    thread.start()
    time.sleep(0.5)
    with serving(path, echo, 1):
        thread.join(10)
    assert answers == [echo(QUESTION)]


def test_garbage_and_a_peer_that_leaves_do_no_harm(tmp_path):
    path = tmp_path / "worker.sock"
    with serving(path, echo, 3):
        for data in (b"GET / HTTP/1.1\r\n\r\n" * 10, encode(QUESTION)[:50]):
            while not path.exists():
                time.sleep(0.01)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
                peer.connect(str(path))
                peer.sendall(data)
        assert ask(path, QUESTION) == echo(QUESTION)


def test_one_worker_per_site_and_no_path_too_long(tmp_path):
    path = tmp_path / "worker.sock"
    with serving(path, echo, 1):
        while not path.exists():
            time.sleep(0.01)
        with pytest.raises(UserError, match="another worker"):
            serve(path, echo)
        ask(path, QUESTION)
    with pytest.raises(UserError, match="shorter path"):
        serve(tmp_path / ("x" * 120) / "worker.sock", echo)


ANSWERS_SLOWLY = """
import sys, time
from pathlib import Path
from forefed.deploy.envelope import Envelope
from forefed.deploy.worker import serve
folder = Path(sys.argv[1])
def answer(asked):
    (folder / "busy").write_text("")
    time.sleep(60 if asked.round == 1 else 0)
    return Envelope("trained", asked.run, asked.round, asked.client)
serve(folder / "worker.sock", answer)
"""


SUPERVISES = """
import sys
from pathlib import Path
from forefed.deploy.supervise import Program, supervise
program = Program("worker", [sys.executable, "-c", sys.argv[2], sys.argv[1]])
supervise([program], Path(sys.argv[1]) / "logs", {}, print)
"""


def test_kill_9_of_the_worker_is_a_failure_and_it_is_started_again(tmp_path):
    path = tmp_path / "worker.sock"
    command = [sys.executable, "-u", "-c", SUPERVISES, str(tmp_path), ANSWERS_SLOWLY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        answers: list[Envelope] = []
        first = Envelope("train", "run", 1, 0)
        thread = threading.Thread(target=lambda: answers.append(ask(path, first)))
        thread.start()
        while not (tmp_path / "busy").exists():
            time.sleep(0.05)
        os.kill(child_of(supervisor.pid), signal.SIGKILL)
        said = supervisor.stdout.readline()
        thread.join(10)
        assert said == "worker is started again: it ended with code -9\n"
        assert [a.kind for a in answers] == ["failed"]
        assert ask(path, Envelope("train", "run", 2, 0)).kind == "trained"
        worker = child_of(supervisor.pid)
        supervisor.send_signal(signal.SIGTERM)
    assert supervisor.returncode == 0 and not Path(f"/proc/{worker}").exists()


def test_kill_9_of_who_asks_costs_one_answer(tmp_path):
    path = tmp_path / "worker.sock"
    started = threading.Event()

    def slow(asked: Envelope) -> Envelope:
        started.set()
        time.sleep(0.5 if asked.round == 1 else 0)
        return echo(asked)

    code = (
        "import sys; from pathlib import Path; from forefed.deploy.envelope import Envelope;"
        "from forefed.deploy.worker_client import ask;"
        "ask(Path(sys.argv[1]), Envelope('train', 'r', 1))"
    )
    with serving(path, slow, 2):
        shim = subprocess.Popen([sys.executable, "-c", code, str(path)])
        assert started.wait(20)
        shim.kill()
        shim.wait()
        assert ask(path, QUESTION) == echo(QUESTION)


def test_nobody_is_worked_for_who_has_given_up(tmp_path):
    path = tmp_path / "worker.sock"
    begun, go_on = threading.Event(), threading.Event()
    done: list[int] = []

    def slow(asked: Envelope) -> Envelope:
        begun.set()
        assert go_on.wait(60)
        done.append(asked.round)
        return echo(asked)

    with serving(path, slow, 3):
        first = threading.Thread(target=ask, args=[path, Envelope("train", "run", 1)])
        first.start()
        assert begun.wait(60)
        late = Envelope("train", "run", 2)
        assert ask(path, late, life_s=0.1).kind == "failed"  # it waits in the queue, and leaves
        go_on.set()
        assert ask(path, Envelope("train", "run", 3)).kind == "trained"
        first.join()
    assert done == [1, 3]


def test_the_client_loads_no_torch():
    code = (
        "import sys, forefed.deploy.worker_client;"
        "print('torch' in sys.modules, 'pydantic' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "torch", "pydantic"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def test_an_envelope_survives_its_bytes():
    empty = Envelope("join", "x", text="ü\n")
    assert through_bytes(QUESTION) == QUESTION and through_bytes(empty) == empty


HEADERS = {
    "version": {"version": VERSION + 1},
    "kind": {"kind": "dance"},
    "round": {"round": "1"},
    "client": {"client": True},
    "run": {"run": 5},
    "more": {"colour": "red"},
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_header_of_another_kind_is_refused(fault):
    with pytest.raises(
        ProtocolError, match="version" if fault == "version" else "header|value|numbers"
    ):
        Envelope.of({**QUESTION.header(), **HEADERS[fault]}, {})


def test_a_torn_envelope_is_refused_wherever_it_is_torn():
    data = encode(Envelope("train", "run", 1, 2, "t", {"a": b"12345"}))
    for end in range(len(data)):
        stream = [data[:end]]
        with pytest.raises(ProtocolError):
            read(lambda n, s=stream: cut(s, n))


def cut(stream: list[bytes], count: int) -> bytes:
    head, stream[0] = stream[0][:count], stream[0][count:]
    return head


def test_a_program_that_cannot_run_stops_the_others(tmp_path):
    mark = tmp_path / "gone"
    lasting = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(15, lambda *_: (pathlib.Path({str(mark)!r}).touch(), sys.exit()))\n"
        "time.sleep(60)"
    )
    refusing = "import time; time.sleep(1); print('Exit Code: 302'); raise SystemExit(1)"
    programs = [
        Program("lasting", [sys.executable, "-c", lasting]),
        Program("refusing", [sys.executable, "-c", refusing], fatal=frozenset({302})),
    ]
    with pytest.raises(Stopped, match="refusing ended with code 302"):
        supervise(programs, tmp_path / "logs", {}, print)
    assert mark.exists()


def test_a_refused_node_is_started_again_after_its_pause(tmp_path):
    count = tmp_path / "count"
    code = f"import pathlib; p = pathlib.Path({str(count)!r}); p.open('a').write('x'); " + (
        "n = len(p.read_text()); print('Exit Code:', 305 if n < 3 else 302); raise SystemExit(1)"
    )
    said: list[str] = []
    node = Program(
        "node", [sys.executable, "-c", code], frozenset({302}), {305: Pause(0.1, "not yet")}
    )
    with pytest.raises(Stopped):
        supervise([node], tmp_path / "logs", {}, said.append, poll_s=0.05)
    assert count.read_text() == "xxx" and said == ["node is started again: not yet"]
    assert stat.S_IMODE((tmp_path / "logs" / "node.log").stat().st_mode) == 0o600
