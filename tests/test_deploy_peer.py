"""Peers between processes: who is let in, what a kill leaves, and README's commands, really run."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from documents import ROOT, blocks
from faults import fault
from federation import World
from forefed.core.errors import ProtocolError, UserError
from forefed.deploy.peer import Peer, calling, listening, verifier
from forefed.deploy.peer_folder import (
    PeerFolder,
    init_peers,
    know,
    known_peers,
    read_key,
    read_peer,
    shared_config,
)
from forefed.deploy.peer_talk import LARGEST, Network, receive, send
from forefed.federation.chains import SharedLog, encode_given, encode_have
from forefed.wire.message import pack

RUN = bytes(range(32))
CONFIG = """
strategy = "fedfgd"
codec = "one_byte"
rounds = 9
deadline_s = 60
[data.task]
labels = ["a", "b"]
"""


def free_ports(count: int) -> int:
    """The first of so many neighbouring ports that nobody listens on."""
    for first in range(21000 + os.getpid() % 500 * 20, 60000, count):
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
            return first
        except OSError:
            continue
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("peers")
    (root / "rows.csv").write_text("text,label\nx,a\ny,b\n")
    (root / "run.toml").write_text(CONFIG)
    made = [root / name for name in ("ana", "ben", "cleo")]
    address = f"127.0.0.1:{free_ports(3)}"
    init_peers(made, str(root / "rows.csv"), root / "run.toml", address)
    return made


def peer(root: Path, run: bytes = RUN) -> Peer:
    """A peer that only talks: no model is loaded."""
    folder, settings, peers = PeerFolder(root), read_peer(root), known_peers(root)
    me = [p.name for p in peers].index(settings.name)
    log = SharedLog(run, len(peers), 9, verifier(peers))
    nothing: Any = cast(Any, None)
    config = shared_config(root)
    network = Network(folder.key, peers, me)
    return Peer(settings, folder, config, nothing, peers, network, log, nothing, lambda _: None)


def says(one: Peer, round: int, payload: bytes = b"slopes") -> None:
    part = one.shared.append(one.me, round, payload, read_key(one.folder.key).sign)
    one.keep([part])


@pytest.fixture(autouse=True)
def clean(folders: list[Path]) -> Iterator[None]:
    yield
    for folder in folders:
        PeerFolder(folder).log.unlink(missing_ok=True)


@fault(
    "peer: killed, its log torn in the middle of a record",
    "between two meetings",
    "it starts from the whole records, and hears the rest from others; same log",
)
def test_two_peers_talk_until_both_have_the_same(folders: list[Path]) -> None:
    ana, ben = peer(folders[0]), peer(folders[1])
    says(ana, 1), says(ana, 2), says(ben, 1)
    with listening(ben):
        ana.meet(1)
        assert ana.shared.have() == ben.shared.have() and len(ana.shared.chain(1)) == 1
        assert not ana.seen[1].equal
        ana.meet(1)
        assert ana.seen[1].equal and ana.present() == [1]
    again = peer(folders[0])  # after a kill: what was said and heard is on the disk
    again.load()
    assert again.shared.have() == ana.shared.have()
    ben.folder.log.write_bytes(ben.folder.log.read_bytes()[:-5])  # torn by a kill
    torn = peer(folders[1])
    torn.load()
    assert torn.shared.chain(0).rounds in ((), (1,)) or not torn.shared.chain(1).rounds
    with listening(torn):
        again.meet(1)
    assert torn.shared.have() == again.shared.have()


@fault(
    "peer: a stranger of its name, another key at its address, plain text, another run, rubbish",
    "when it calls",
    "the connection ends; nothing is taken; the next talk goes well",
)
def test_only_known_keys_are_talked_to(folders: list[Path], tmp_path: Path) -> None:
    """A stranger with a certificate of the same name; a peer of another run; one at another's
    address; messages that are too long or none."""
    ana, ben = peer(folders[0]), peer(folders[1])
    rows = str(folders[0].parent / "rows.csv")
    init_peers([tmp_path / "ben"], rows, folders[0] / "run.toml", "127.0.0.1:1")
    with pytest.raises(UserError, match="another certificate"):
        know(folders[0], [tmp_path / "ben" / "ben.peer"])
    stranger = Network(PeerFolder(tmp_path / "ben").key, ben.peers, 1)
    with listening(ana), pytest.raises((OSError, ProtocolError)), stranger.dial(0) as talk:
        send(talk, encode_have(RUN, {}, False))
        receive(talk)
    cleo = peer(folders[2])
    host, _, port = ben.settings.address.rpartition(":")
    with cleo.network.listen(host, int(port), cleo.answer), pytest.raises(OSError, match="key"):
        ana.meet(1)
    other = peer(folders[1], run=RUN[:8] + bytes(24))
    says(ana, 1)
    with listening(other), pytest.raises((OSError, ProtocolError)):
        ana.meet(1)
    assert not other.shared.chains
    with listening(ben):
        for wrong in (b"GET / HTTP/1.1\r\n\r\n" * 9, b"FFED" + b"\xff" * 200, pack("have", {})):
            with ana.network.dial(1) as talk, pytest.raises((OSError, ProtocolError)):
                send(talk, wrong)
                while True:
                    receive(talk)
        with socket.create_connection((host, int(port))) as plain:  # no TLS at all
            plain.sendall(b"hello")
        ana.meet(1)  # and it goes on
    assert ben.shared.chain(0).rounds == (1,) and LARGEST < 1 << 28


@fault(
    "peer: its log on the disk was changed", "when it starts", "one sentence, and it does not start"
)
def test_a_forged_log_on_the_disk_is_refused(folders: list[Path]) -> None:
    ana = peer(folders[0])
    says(ana, 1)
    (part,) = ana.shared.missing({})
    forged = type(part)(1, 0, part.entries, part.signature)
    ana.folder.log.write_bytes(encode_given(RUN, [forged]))
    with pytest.raises(UserError, match="not signed"):
        peer(folders[0]).load()


def test_who_is_done_stays_for_who_is_not(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``linger_s`` after the last word of anybody who is not done; ``absent_s`` for who never
    came, which somebody whose words are in the log has."""
    clock = [100.0]
    monkeypatch.setattr("forefed.deploy.peer.time", SimpleNamespace(monotonic=lambda: clock[0]))
    ana, heard = peer(folders[0]), list[str]()
    ana.say, ana.moved = heard.append, clock[0]
    linger, absent = ana.settings.linger_s, ana.settings.absent_s
    assert (linger, absent) == (30, 300), "as the template and docs/peers.md say"
    ana.heard(1, True, True)
    clock[0] += 40
    assert not ana.leaves() and not ana.leaves(), "cleo never came"
    assert [x for x in heard if "cleo" in x] == [heard[-1]] and "ben," not in heard[-1]
    clock[0] += 261
    assert ana.leaves()
    ana.heard(2, False, False)  # a latecomer, at last
    assert not ana.leaves()
    clock[0] += 29
    ana.heard(2, False, True)  # it works through the rounds
    clock[0] += 29
    assert not ana.leaves(), "29 s after its last word"
    clock[0] += 2
    assert not ana.leaves(), "nobody says that it is gone: too busy to talk"
    ana.seen[2].away = True
    assert ana.leaves(), "killed"
    ana.seen[2].away = False
    ana.heard(2, True, True)
    assert ana.leaves(), "done, and equal: nothing begins anew"
    ben = peer(folders[1])  # started again; what ana and cleo said is in its log
    for author, root in ((0, folders[0]), (2, folders[2])):
        part = ben.shared.append(author, 1, b"slopes", read_key(PeerFolder(root).key).sign)
        ben.keep([part])
    ben.moved = clock[0]
    clock[0] += 31
    assert ben.leaves()


def test_a_call_while_a_model_is_loaded_keeps_the_others(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forefed.deploy.peer.CALL_S", 0.01)
    ana, said = peer(folders[0]), queue.Queue[str]()
    ana.say = said.put
    with listening(ana), calling(peer(folders[1]).network):
        assert said.get(timeout=60) == "ben is starting"
    assert ana.open > ana.moved and not ana.seen, "no talk yet, and nobody to wait for in a round"
    endless = folders[0] / "peer.toml"
    text = endless.read_text()
    endless.write_text(text.replace("# linger_s = 30.0  ", "linger_s = inf #"))
    assert read_peer(folders[0]).linger_s == float("inf")
    endless.write_text(text)


def test_a_latecomer_adds_nothing_to_a_run_that_is_over(folders: list[Path]) -> None:
    """By itself it would have another last round than those who may have left."""
    ana, ben = peer(folders[0]), peer(folders[1])
    for round in range(1, 10):
        says(ana, round)
    ben.shared.take(ana.shared.missing({}))
    ben.heard(0, True, True)
    assert ben.step() is False and ben.finished and not ben.shared.chain(1).rounds
    cleo, calls = peer(folders[2]), list[int]()
    cleo.shared.take(ana.shared.missing({}))
    for round in range(1, 9):
        says(cleo, round)
    cleo.heard(0, True, False)  # ana has said its last word, and cleo has one round to go
    cleo.fold = SimpleNamespace(asked=lambda view, round: calls.append(round) or ())
    assert cleo.step() is True and calls == [8, 9], (
        "whoever was there all the time does its last one"
    )


def test_nobody_trains_alone_from_the_first_round_on(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("forefed.deploy.peer.time", SimpleNamespace(monotonic=lambda: clock[0]))
    ana, said = peer(folders[0]), list[str]()
    ana.say, ana.began = said.append, clock[0]
    clock[0] += 1000
    assert not ana.gathered(ana.view()) and not ana.gathered(ana.view())
    assert len(said) == 1 and "nobody else" in said[0]
    ana.heard(1, False, True)
    assert ana.gathered(ana.view()), "one is there, and join_s is over"
    clock[0] += 1000
    assert not ana.present() and not ana.gathered(ana.view())
    says(ana, 1)
    assert ana.gathered(ana.view()), "the run has begun: a kill of all others does not end it"


def test_settings_that_need_a_server_are_refused(folders: list[Path], tmp_path: Path) -> None:
    rows = str(folders[0].parent / "rows.csv")
    for line, about in (
        ('codec = "dense"', "share a log of slopes"),
        ('codec = "scalars"\nchannel = "secure_sum"', "channel.kind"),
        ('codec = "scalars"\nstart = "closed_form"', "start"),
    ):
        text = CONFIG.replace('codec = "one_byte"', line)
        (tmp_path / "run.toml").write_text(text)
        with pytest.raises(UserError, match=about):
            init_peers([tmp_path / "dan"], rows, tmp_path / "run.toml", "127.0.0.1:7101")
    with pytest.raises(UserError, match="peer here already"):
        init_peers([folders[0]], rows, folders[0] / "run.toml", "127.0.0.1:7101")


@fault(
    "one of five peers killed for good, a sixth added",
    "mid-run",
    "all that are there end with the same digest, the sixth too",
)
@pytest.mark.deploy
def test_readme_five_peers_one_killed_one_added_all_end_with_equal_digests(
    world: World, tmp_path: Path
) -> None:
    """README's commands as they stand, but on a tiny model and with the ports of this test."""
    text = next(b.text for b in blocks(ROOT / "README.md") if "forefed peer start" in b.text)
    lines = text.splitlines()
    assert len(lines) <= 8
    config = (ROOT / "examples" / "peers.toml").read_text()
    config = config.replace("rounds = 20", "rounds = 12") + '[model]\npooling = "pooler"\n'
    (tmp_path / "peers.toml").write_text(config)
    models = f"\n[models]\nminilm = {json.dumps(str(world.bert))}\n"
    (tmp_path / "models").write_text(models)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, run in (("python", ""), ("forefed", " -m forefed.cli")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable}{run} "$@"\n')
        (programs / name).chmod(0o700)
    script = ["set -e"]
    for line in lines:
        line = line.replace("examples/peers.toml", "peers.toml")
        line = line.replace("examples/", f"{ROOT}/examples/").partition("  #")[0]
        if "kill -9" in line:  # in the middle of things
            size = "$(stat -c %s peers/cleo/peer.log 2>/dev/null || echo 0)"
            script.append(f"until [ {size} -gt 1500 ]; do sleep 0.2; done")
        if "peer init" in line:
            line += f" --address 127.0.0.1:{free_ports(6)}"
            line += "; for p in peers/*; do cat models >> $p/peer.toml; done"
        script.append(line)
    path = f"{programs}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    with (tmp_path / "out").open("w") as out:
        done = subprocess.Popen(
            ["bash", "-c", "\n".join(script)],
            cwd=tmp_path,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = done.wait(1500)  # five starts at once on a busy machine
        finally:
            with suppress(ProcessLookupError):
                os.killpg(done.pid, signal.SIGKILL)
    told = (tmp_path / "out").read_text()
    assert status == 0, told
    summaries = {
        p.name: json.loads((p / "run" / "summary.json").read_text())
        for p in sorted((tmp_path / "peers").iterdir())
        if (p / "run").is_dir()
    }
    assert sorted(summaries) == ["ana", "ben", "dan", "eva", "fay"], told
    assert len({s["digest"] for s in summaries.values()}) == 1, told
    counts = summaries["ana"]["contributions"]
    assert counts["ana"] == 12 and 0 < counts["cleo"] < 12, counts
    assert summaries["fay"]["contributions"] == counts, "some of its own, if it came in time"
    assert f"digest: {summaries['fay']['digest']}" in told, "replayed from its log alone"
