"""kill -9, SIGSTOP and wrong clocks in a real deployment; ``make faults`` makes a table of it.

FedAvg's sites remember nothing between rounds, so the parameters are a function of who answered in
which round: that is what every test compares, bit for bit.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import pytest

from deployment import NAMES, bits_without
from faults import fault
from real import forefed, kill

pytestmark = pytest.mark.deploy
FEDAVG = "strategy=fedavg"


@pytest.fixture
def check(federation, tmp_path):
    """The run ended, lost just these answers, and has the bits of a run that lost the same ones."""

    def check(run, lost=None, *more: str) -> None:
        lost = lost or {}
        rounds = run.finish()
        assert [line["lost"] for line in rounds] == [
            {reason: 1 for (r, _), reason in lost.items() if r == number}
            for number in range(1, len(rounds) + 1)
        ]
        expected = bits_without(federation.world, tmp_path, lost.keys(), FEDAVG, *more)
        assert run.digest == expected

    return check


@fault(
    "site: Flower's process for a message (ClientApp) killed",
    "mid-round",
    "one loss 'crash' after about a minute; the worker keeps its answer; next round whole",
)
def test_kill_9_of_the_client_app(federation, check):
    run = federation.run("clientapp", FEDAVG)
    with federation.held(run, "main"):
        kill(federation.asking("main")[0])
    check(run, {(2, "main"): "crash"})
    assert federation.log("main").count(" round 2: ") >= 1


@fault(
    "site: worker killed", "mid-round", "one loss 'error' at once; started again; next round whole"
)
def test_kill_9_of_the_worker(federation, check):
    run = federation.run("worker", FEDAVG)
    with federation.held(run, "main"):
        kill(federation.worker("main"))
    check(run, {(2, "main"): "error"})
    assert "worker is started again: it ended with code -9" in federation.said("main")


@fault(
    "site: worker killed",
    "between its orders",
    "nothing lost: the next order waits until it is back; same bits",
)
def test_kill_9_of_the_worker_between_rounds(federation, check):
    run = federation.run("worker-between", FEDAVG)
    with federation.held(run, "large"):
        kill(federation.worker("main"))
    check(run)


@fault(
    "site: node (SuperNode) killed, started again while it counts as online",
    "mid-round",
    "one loss 'offline' after about a minute; refused until then, then let in; same bits",
)
def test_kill_9_of_the_node(federation, check):
    patient = "cohort_min=3"  # the next round waits for all three
    run = federation.run("node", FEDAVG, patient)
    with federation.held(run, "main"):
        kill(federation.node("main"))
    check(run, {(2, "main"): "offline"}, patient)
    assert run.rounds()[1]["abandoned"] == 2
    assert "supernode is started again: the server does not let it in" in federation.said("main")


@fault(
    "site: all its processes stopped (SIGSTOP), later continued (SIGCONT)",
    "mid-round",
    "one loss 'offline' after about a minute; it takes part again when it goes on; same bits",
)
def test_a_site_that_is_stopped_and_goes_on(federation, check):
    patient = "cohort_min=3"  # the next round waits for all three
    run = federation.run("stopped", FEDAVG, patient)
    with federation.held(run, "main"):
        stopped = federation.everything(federation.running["main"].pid)
        for number in stopped:
            os.kill(number, signal.SIGSTOP)
        try:
            run.until_round(2)
        finally:
            for number in stopped:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGCONT)
    check(run, {(2, "main"): "offline"}, patient)
    assert run.rounds()[1]["abandoned"] == 2


@fault(
    "a second key under the name of a site that is online; then that site's key revoked",
    "any time",
    "the second key is refused; after the revocation the site is shut out within a minute and says "
    "so; its key is not taken again, a new one is",
)
def test_a_second_key_and_a_revoked_one(federation):
    name = "guest"
    federation.init_site(name, federation.files["main"])
    own = federation.root / name / "node.pub"
    forefed("server", "admit", federation.server, name, own)
    federation.start_site(name)
    federation.online(4)
    second = forefed(
        "server", "admit", federation.server, name, federation.root / "main/node.pub", check=False
    )
    assert second.returncode == 2 and "admitted with another key" in second.stderr
    forefed("server", "revoke", federation.server, name)
    federation.online(3)
    federation.until(lambda: "has not admitted this key" in federation.said(name))
    back = forefed("server", "admit", federation.server, name, own, check=False)
    assert back.returncode == 2 and "revoked" in back.stderr
    federation.running[name].send_signal(signal.SIGTERM)
    federation.running[name].wait(40)
    forefed("site", "renew", federation.root / name)
    forefed("server", "admit", federation.server, name, own)
    federation.start_site(name)
    federation.online(4)
    federation.running[name].send_signal(signal.SIGTERM)
    federation.running[name].wait(40)
    forefed("server", "revoke", federation.server, name)
    federation.online(3)


@fault(
    "site: node killed, started again after it was marked offline",
    "mid-round",
    "one loss 'offline'; let in at once; same bits",
)
def test_a_node_that_comes_back_late(federation, check):
    patient = "cohort_min=3"
    before = federation.said("main")
    run = federation.run("node-late", FEDAVG, patient)
    with federation.held(run, "main"):
        federation.running["main"].send_signal(signal.SIGSTOP)  # who would start it again
        try:
            kill(federation.node("main"))
            run.until_round(2)
        finally:
            federation.running["main"].send_signal(signal.SIGCONT)
    check(run, {(2, "main"): "offline"}, patient)
    new = federation.said("main").removeprefix(before)
    assert "supernode is started again: it ended with code -9" in new
    assert "does not let it in" not in new


@fault(
    "site: node killed",
    "after its answer, before the round ends",
    "the answer counts; the next round loses one, 'offline'; same bits",
)
def test_kill_9_of_the_node_after_its_answer(federation, check):
    run = federation.run("node-between", FEDAVG)
    with federation.held(run, "large"):
        kill(federation.node("main"))
    check(run, {(3, "main"): "offline"})
    federation.online(3)


@fault(
    "server: SuperLink killed",
    "mid-round",
    "started again; the round goes on; nothing lost; same bits",
)
def test_kill_9_of_the_link(federation, check):
    run = federation.run("link", FEDAVG)
    with federation.held(run, "main"):
        kill(federation.link)
        time.sleep(5)
    check(run)
    assert "superlink is started again: it ended with code -9" in federation.said("server")


@fault("server: SuperLink killed", "as a round ends", "started again; nothing lost; same bits")
def test_kill_9_of_the_link_between_rounds(federation, check):
    run = federation.run("link-between", FEDAVG)
    run.until_round(1)
    kill(federation.link)
    check(run)


def resumed(federation, run, name):
    """The watcher has said what to do, and it is done."""
    assert run.process.wait(300) == 2
    assert "--resume" in federation.said(name)
    return federation.run(name, FEDAVG, resume=True)


@fault(
    "server: the run's process (ServerApp) killed",
    "mid-round",
    "`forefed server run` says so; --resume goes on from the checkpoint; no order is worked on "
    "twice; same bits",
)
def test_kill_9_of_the_server_app(federation, check):
    before = federation.log("large").count(" round 2: ")
    run = federation.run("app", FEDAVG, "checkpoint_every=1")
    with federation.held(run, "main"):
        kill(federation.app)
    again = resumed(federation, run, "app")
    check(again)
    assert federation.log("large").count(" round 2: ") == before + 1
    assert "round 2 was done already" in federation.log("large")


@fault(
    "server: stopped and started again in order",
    "mid-round, while a site trains",
    "the run's process ends with it, and `forefed server run` says so; --resume goes on from the "
    "checkpoint; the answer that the site had worked on is kept; same bits",
)
def test_a_server_restarted_in_order(federation, check):
    run = federation.run("restarted", FEDAVG, "checkpoint_every=1")
    with federation.held(run, "main"):
        federation.stop_server()
        federation.start_server()
    federation.online(3)
    check(resumed(federation, run, "restarted"))


@fault(
    "server: its certificate has ended",
    "when it starts",
    "one sentence, status 2; after `forefed server renew` and a start all sites are back, with the "
    "ca.crt that they have",
)
def test_an_ended_certificate(federation):
    from forefed.deploy.certificates import write_server
    from forefed.deploy.places import ServerFolder

    folder = ServerFolder(federation.server)
    federation.stop_server()
    signer = (folder.authority, folder.authority_key)
    write_server(folder.certificate, folder.key, ["localhost", "127.0.0.1"], *signer, days=-1)
    said = forefed("server", "start", federation.server, check=False)
    assert said.returncode == 2 and "this certificate ended on" in said.stderr
    assert said.stderr.count("\n") == 1
    forefed("server", "renew", federation.server)
    federation.start_server()
    federation.online(3)


@fault("server: the run's process killed", "as a round ends", "the same")
def test_kill_9_of_the_server_app_between_rounds(federation, check):
    run = federation.run("app-between", FEDAVG)
    run.until_round(1)
    kill(federation.app)
    check(resumed(federation, run, "app-between"))


@fault(
    "server: `forefed server run` (who watches) killed",
    "mid-round",
    "the run goes on; nothing lost; same bits",
)
def test_kill_9_of_who_watches(federation, check):
    run = federation.run("watcher", FEDAVG)
    with federation.held(run, "main"):
        kill(run.process.pid)
        run.process.wait()
    federation.until(lambda: (run.folder / "summary.json").exists())
    run.process.returncode = 0
    check(run)


@fault(
    "a site ten times slower",
    "the whole run",
    "rounds last as long as it needs; nothing lost; same bits",
)
def test_a_slow_site(federation, check):
    slow = ["client.epochs=20", "client.max_steps=200"]
    over = threading.Event()
    worker = federation.worker("main")

    def hinder() -> None:
        while not over.is_set():
            os.kill(worker, signal.SIGSTOP)
            time.sleep(0.45)
            os.kill(worker, signal.SIGCONT)
            time.sleep(0.05)

    hindering = threading.Thread(target=hinder)
    hindering.start()
    try:
        run = federation.run("slow", FEDAVG, *slow)
        check(run, None, *slow)
    finally:
        over.set()
        hindering.join()


@fault(
    "a site that does not answer in time",
    "one round",
    "one loss 'deadline'; its late order is not worked on; next round whole; same bits",
)
def test_no_backlog_after_a_deadline(federation, check):
    run = federation.run("late", FEDAVG, "deadline_s=40")
    with federation.held(run, "main"):
        run.until_round(2)
        federation.until(lambda: not federation.asking("main"))  # it has given up, too
    check(run, {(2, "main"): "deadline"})
    assert "nobody waits any more for train of round 2" in federation.log("main")
    assert not any(federation.asking(site) for site in NAMES)


SKEWED = """\
import datetime, sys, time
real = datetime.datetime
class Skewed(real):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + datetime.timedelta(seconds={seconds})
# Flower's programs only: the worker asks no clock, and its libraries' C code wants the real class
if not any("start_worker" in word for word in sys.orig_argv):
    then = time.time
    time.time = lambda: then() + {seconds}
    datetime.datetime = Skewed
"""


@pytest.fixture
def skewed(federation, tmp_path):
    """Starts the site "main" anew with a clock that is wrong by so many seconds."""

    def restart(seconds: float | None) -> None:
        process = federation.running["main"]
        process.send_signal(signal.SIGTERM)
        process.wait(40)
        more = {}
        if seconds is not None:
            (tmp_path / "sitecustomize.py").write_text(SKEWED.format(seconds=seconds))
            more = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
        federation.start_site("main", more)

    yield restart
    restart(None)
    federation.online(3)


@fault("a site's clock two minutes behind", "always", "nothing lost; same bits")
def test_a_clock_that_is_behind(federation, check, skewed):
    skewed(-120)
    federation.online(3)
    check(federation.run("behind", FEDAVG))


@fault(
    "a site's clock an hour ahead",
    "always",
    "the server does not let it in, and the site says that its clock may be wrong",
)
def test_a_clock_that_is_ahead(federation, skewed):
    skewed(3600)
    federation.until(lambda: "clock" in federation.said("main"))
    assert federation.status().count("online") == 2
