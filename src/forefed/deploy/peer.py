"""``forefed peer start``: one peer of a run that has no server.

One thread talks to the others and trains; further threads answer. All that must be remembered is in
peer.log, and it is on the disk before anybody hears of it: a kill at any moment costs the step that
was being computed. Who waits for whom (``ready``) is pace, not result: the result is a function of
the log (federation/peer.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from forefed.config.config import Config
from forefed.core import trees
from forefed.core.errors import ProtocolError, UserError
from forefed.core.files import append, locked
from forefed.core.kept import kept_secret
from forefed.core.keys import Secret
from forefed.core.settings import travelling
from forefed.deploy.names import split_address
from forefed.deploy.peer_folder import (
    Known,
    PeerFolder,
    PeerSettings,
    known_peers,
    need_cryptography,
    own_config,
    read_key,
    read_peer,
    roster_digest,
    shared_config,
)
from forefed.deploy.peer_record import write_record
from forefed.deploy.peer_talk import Away, Network, receive, send
from forefed.deploy.site import Prepared, prepare
from forefed.federation.chains import (
    Foreign,
    Given,
    SharedLog,
    Verify,
    decode_given,
    decode_have,
    encode_given,
    encode_have,
)
from forefed.federation.peer import Fold
from forefed.federation.star import Star
from forefed.federation.state import RunState
from forefed.run.assemble import assemble
from forefed.wire.message import frames

GONE_S = 5.0
"""A peer that was not heard for so long is waited for no more."""
AT_ONCE = 8
"""Peers that are asked at a time; with more of them those asked least recently."""
ASK_AGAIN_S = 5.0
"""Between two attempts at a peer that does not answer, at most."""
QUIET_S = 1.0
CALL_S = 2.0
"""Between two calls of a peer that is starting."""
REVEALS = (
    "what a contribution reveals: every peer reads its slopes, which are measurements of this "
    "peer's gradient; no noise and no secure sum stand in between"
)


def run_name(shared: Config, prepared: Prepared, peers: Sequence[Known]) -> bytes:
    """32 bytes that name a run: 8 of its settings, 12 of the model and the first values, 12 of who
    may take part."""
    settings = travelling(shared)
    for here in ("device", "name"):  # where it is loaded from and computed is each peer's own
        settings["model"].pop(here, None)
    settings["data"].pop("source", None)
    said = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()[:8]
    values = json.dumps(prepared.weights, sort_keys=True) + trees.digest(prepared.task.params)
    return said + hashlib.sha256(values.encode()).digest()[:12] + roster_digest(peers)


def first_of(prepared: Prepared) -> RunState:
    """The state before round 1, which every peer makes for itself."""
    return RunState(0, prepared.task.params)


def star_of(config: Config, prepared: Prepared, count: int, secret: Secret) -> Star:
    """The run's loop at one peer: its own client is the only one that it reaches."""
    trainer = prepared.trainer
    star, _ = assemble(
        config, prepared.task, lambda _: trainer, count, prepared.data, secret, measure=False
    )
    # what a server draws in secret, peers cannot draw alike: nobody has such a secret
    return replace(star, server=replace(star.server, secret=None))


def verifier(peers: Sequence[Known]) -> Verify:
    """Whose signature is it? By the certificates that are known."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    keys = [x509.load_pem_x509_certificate(p.certificate.encode()).public_key() for p in peers]
    for peer, key in zip(peers, keys, strict=True):
        if not isinstance(key, Ed25519PublicKey):
            raise UserError(f"{peer.name}: its certificate has another kind of key than Ed25519")

    def verify(author: int, data: bytes, signature: bytes) -> bool:
        key = keys[author]
        assert isinstance(key, Ed25519PublicKey), "looked at above"
        try:
            key.verify(signature, data)
        except InvalidSignature:
            return False
        return True

    return verify


@dataclass
class Seen:
    """What is known of another peer (changes in place)."""

    at: float = float("-inf")
    """When it was heard last, by the monotonic clock."""
    done: bool = False
    equal: bool = False
    """Had it the same log as we, when it was heard last?"""
    asked: float = float("-inf")
    next_try: float = 0.0
    failures: int = 0
    away: bool = False
    """Was nobody at its address, when it was tried last?"""
    said: str = ""
    """Why it was not reached, as it was last told."""


@dataclass
class Peer:
    """One running peer (changes in place). ``own`` guards the log, which other threads join to."""

    settings: PeerSettings
    folder: PeerFolder
    config: Config
    prepared: Prepared
    peers: Sequence[Known]
    network: Network
    shared: SharedLog
    fold: Fold
    say: Callable[[str], None]
    own: threading.Lock = field(default_factory=threading.Lock)
    seen: dict[int, Seen] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    next: int = 0
    """The round that it contributes to next (0: not decided yet)."""
    moved: float = field(default_factory=time.monotonic)
    """When the log grew last."""
    open: float = float("-inf")
    """When somebody was heard last who was not done, or had another log, or was starting."""
    starting: set[int] = field(default_factory=set)
    """Who has called before it could talk."""
    alone: bool = False
    """Has it said that it waits for the first of the others?"""
    stays: bool = False
    """Has it said for whom it stays when all is done?"""
    written: str = ""

    @property
    def me(self) -> int:
        return self.network.me

    @property
    def finished(self) -> bool:
        return self.next > self.config.rounds

    # -------------------------------------------------------------- the log

    def load(self) -> None:
        """The log as it was kept; a record that a kill has torn is cut off."""
        path = self.folder.log
        data = path.read_bytes() if path.exists() else b""
        whole = 0
        try:
            for frame in frames(data):
                self.shared.take(decode_given(frame, self.shared.run))
                whole += len(frame)
        except Foreign as error:
            raise UserError(
                f"{path}: {error}; move it away to begin anew, or restore run.toml and known/"
            ) from None
        except ProtocolError:
            with path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
            self.say(f"{path}: {len(data) - whole} bytes were torn by a kill and are cut off")

    def keep(self, parts: Sequence[Given]) -> None:
        if parts:
            append(self.folder.log, encode_given(self.shared.run, parts))
            self.moved = time.monotonic()

    def view(self) -> SharedLog:
        """The log of this moment."""
        with self.own:
            return replace(self.shared, chains=dict(self.shared.chains))

    def join(self, message: bytes) -> list[Given]:
        """Take what somebody gave; returns our better chains where theirs part from ours."""
        parts = decode_given(message, self.shared.run)
        with self.own:
            new, better = self.shared.take(parts)
            self.keep(new)
            return [self.shared.whole(author) for author in better]

    # -------------------------------------------------------------- talks

    def answer(self, author: int, connection: ssl.SSLSocket) -> None:
        """A talk that another peer began.

        Raises:
            OSError, ProtocolError: it left, or says what cannot be.
        """
        run = self.shared.run
        try:
            first = receive(connection)
        except (OSError, ProtocolError):
            self.called(author)
            raise
        have, done = decode_have(first, run)
        with self.own:
            lacks, ours = self.shared.missing(have), self.shared.have()
        send(connection, encode_given(run, lacks))
        send(connection, encode_have(run, ours, self.finished))
        better = self.join(receive(connection))
        send(connection, encode_given(run, better))
        self.heard(author, done, have == ours)

    def meet(self, author: int) -> None:
        """A talk with another peer.

        Raises:
            OSError, ProtocolError: it is not there, or says what cannot be.
        """
        run, ours = self.shared.run, self.view().have()
        with self.network.dial(author) as connection:
            send(connection, encode_have(run, ours, self.finished))
            better = self.join(receive(connection))
            have, done = decode_have(receive(connection), run)
            with self.own:
                lacks = self.shared.missing(have)
            there = {part.author for part in lacks}
            lacks += [part for part in better if part.author not in there]
            send(connection, encode_given(run, lacks))
            self.join(receive(connection))
        self.heard(author, done, have == ours)

    def heard(self, author: int, done: bool, equal: bool) -> None:
        seen = self.seen.setdefault(author, Seen())
        if seen.at == float("-inf"):
            self.say(f"{self.peers[author].name} is there")
        seen.at, seen.done, seen.equal, seen.failures = time.monotonic(), done, equal, 0
        if not (done and equal):
            self.open = seen.at

    def called(self, author: int) -> None:
        """A call of a known key without a word: it is starting, or it is cut off."""
        self.open = time.monotonic()
        if author not in self.starting:
            self.say(f"{self.peers[author].name} is starting")
        self.starting.add(author)

    def talk(self, pool: ThreadPoolExecutor) -> None:
        """A talk with everybody whose turn it is."""
        others = [a for a in range(len(self.peers)) if a != self.me]
        now = time.monotonic()
        due = [a for a in others if self.seen.setdefault(a, Seen()).next_try <= now]
        list(pool.map(self.tried, sorted(due, key=lambda a: self.seen[a].asked)[:AT_ONCE]))

    def tried(self, author: int) -> None:
        seen, now = self.seen[author], time.monotonic()
        seen.asked, seen.next_try = now, now + self.settings.every_s
        try:
            self.meet(author)
            seen.said, seen.away = "", False
        except (OSError, ProtocolError) as error:
            seen.failures, seen.away = seen.failures + 1, isinstance(error, Away)
            pause = self.settings.every_s * 2 ** min(seen.failures, 10)
            seen.next_try = time.monotonic() + min(pause, ASK_AGAIN_S)
            text = f"{type(error).__name__}: {error}"
            if text != seen.said and not seen.done:  # who is done may leave
                self.say(f"{self.peers[author].name} is not reached ({text})")
                seen.said = text

    def present(self) -> list[int]:
        """The other peers that are there, as far as one can tell."""
        now = time.monotonic()
        return [a for a, seen in sorted(self.seen.items()) if now - seen.at < GONE_S]

    # -------------------------------------------------------------- pace

    def run(self, stop: threading.Event) -> None:
        """Talk and train until all is done and quiet, or ``stop`` is set."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while not stop.is_set():
                self.talk(pool)
                if self.step():
                    continue
                if self.finished and self.quiet():
                    self.write()
                    if self.leaves():
                        return
                stop.wait(self.settings.every_s)

    def step(self) -> bool:
        """Contribute, if it is time; returns whether something was done."""
        view = self.view()
        if self.next == 0 and not self.gathered(view):
            return False
        last = view.chain(self.me).rounds[-1:]
        self.next = max(self.next, 1, view.newest, *(r + 1 for r in last))
        if last != (self.next - 1,) and any(seen.done for seen in self.seen.values()):
            # the run is over for others, who may leave: what a latecomer adds would be its alone
            self.next = self.config.rounds + 1
        if self.finished or not self.ready(view):
            return False
        round, self.next = self.next, self.next + 1
        if self.me not in self.fold.asked(view, round):
            return True
        began = time.monotonic()
        try:
            payload = self.fold.contribution(view, self.me, round)
        except ProtocolError as error:
            self.say(f"round {round}: nothing to contribute ({error})")
            return True
        assert payload is not None, "it was asked"
        with self.own:
            if self.shared.chain(self.me).rounds[-1:] >= (round,):
                return True  # it has contributed before, and lost its disk: somebody gave it back
            sign = read_key(self.folder.key).sign
            self.keep([self.shared.append(self.me, round, payload, sign)])
        done = self.fold.done[-1] if self.fold.done else None
        loss = "" if done is None or done.loss is None else f", loss before it {done.loss:.3f}"
        took = time.monotonic() - began
        self.say(f"round {round}/{self.config.rounds}: {len(payload)} bytes in {took:.1f} s{loss}")
        return True

    def gathered(self, view: SharedLog) -> bool:
        """May the first round begin?"""
        there = self.present()
        running = view.newest > 0 and there
        whole = len(there) == len(self.peers) - 1
        if running or whole:
            return True
        if time.monotonic() - self.began <= self.settings.join_s:
            return False
        # alone from the first round on it would make a model of its own rows, and call it the run's
        if not there and not view.newest:
            if not self.alone:
                self.say("nobody else is there yet; it waits for the first of them")
            self.alone = True
            return False
        return True

    def ready(self, view: SharedLog) -> bool:
        """Has everybody who is there said what it has to say of the round before?"""
        before = self.next - 1
        if before == 0:
            return True
        wanted = {*self.fold.asked(view, before)} & {*self.present()}
        silent = [a for a in wanted if view.chain(a).rounds[-1:] < (before,)]
        assert self.config.deadline_s is not None, "config/compat.py wants it"
        return not silent or time.monotonic() - self.moved > self.config.deadline_s

    def quiet(self) -> bool:
        """Is everybody who is there done, with the same log?"""
        there = [self.seen[a] for a in self.present()]
        still = time.monotonic() - self.moved > QUIET_S
        return still and all(seen.done and seen.equal for seen in there)

    def leaves(self) -> bool:
        """Is it time to go, where all who can be heard are done? ``linger_s`` after the last word
        of anybody who was not; ``absent_s``, where somebody who is listed never came, or who was
        not done is still at its address, too busy to talk."""
        view, still = self.view(), time.monotonic() - max(self.moved, self.open)
        awaited = []
        for author, peer in enumerate(self.peers):
            seen = self.seen.get(author, Seen())
            never = seen.at == float("-inf") and not view.chain(author).rounds
            busy = seen.at > float("-inf") and not (seen.done and seen.equal) and not seen.away
            if author != self.me and (never or busy):
                awaited.append(peer.name)
        settings = self.settings
        if not awaited or settings.absent_s <= settings.linger_s:
            return still > settings.linger_s
        if not self.stays:
            self.say(
                f"stays for {', '.join(awaited)}: at most {settings.absent_s:g} s (absent_s in "
                "peer.toml); the record is written, and Ctrl-C ends it"
            )
        self.stays = True
        return still > settings.absent_s

    # -------------------------------------------------------------- the record

    def write(self) -> None:
        """The record of the run, if it is another than what was written last: a folder that
        ``forefed replay``, ``predict`` and ``export`` read."""
        view = self.view()
        state = self.fold.state(view, self.config.rounds)
        digest = trees.digest(state.params)
        if digest == self.written:
            return
        names = [peer.name for peer in self.peers]
        write_record(
            self.folder.run, self.config, self.prepared, names, self.me, self.fold, view, state
        )
        self.written = digest
        self.say(f"digest {digest}; {self.folder.run}")


def start_peer(root: Path, say: Callable[[str], None]) -> None:
    """Take part until all is done and quiet, or a signal ends it.

    Raises:
        UserError: no peer there, settings, rows or a model that cannot be used, a damaged log, the
            port is taken, or this peer runs already.
    """
    need_cryptography()
    folder, settings = PeerFolder(root), read_peer(root)
    peers, shared = known_peers(root), shared_config(root)
    config = own_config(root, shared, settings)
    names = [peer.name for peer in peers]
    me = names.index(settings.name)
    with locked(root / ".lock", f"{root}: this peer is running already"):
        tell = partial(named, say, settings.name)
        tell(f"one of {len(peers)}: {', '.join(names)}; loading {config.model.name}")
        tell(REVEALS)
        network = Network(folder.key, peers, me)
        with calling(network):
            prepared = prepare(config)
        fold = Fold(star_of(config, prepared, len(peers), kept_secret(root)), first_of(prepared))
        run = run_name(shared, prepared, peers)
        log = SharedLog(run, len(peers), config.rounds, verifier(peers))
        peer = Peer(settings, folder, config, prepared, peers, network, log, fold, tell)
        peer.load()
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        with listening(peer):
            tell(f"{settings.address}; run {run.hex()[:16]}; rounds so far {log.newest}")
            peer.run(stop)
        if not stop.is_set():
            tell("all done and quiet")


def named(say: Callable[[str], None], name: str, text: str) -> None:
    """A line with the peer's name before it, as several may share a terminal."""
    say(f"{name}: {text}")


@contextmanager
def calling(network: Network) -> Iterator[None]:
    """The others hear that this peer is starting, so that who is done stays: a model takes long to
    load on a busy machine."""
    others = [a for a in range(len(network.peers)) if a != network.me]
    stop = threading.Event()

    def call() -> None:
        while not stop.wait(CALL_S):
            for author in others:
                with suppress(OSError), network.dial(author):
                    pass

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()  # a call that is on its way ends by itself


@contextmanager
def listening(peer: Peer) -> Iterator[None]:
    """The others are answered.

    Raises:
        UserError: the port is taken, or the interface is none of this machine.
    """
    host, port = split_address(peer.settings.address)
    with ExitStack() as stack:
        try:
            stack.enter_context(
                peer.network.listen(peer.settings.listen or host, port, peer.answer)
            )
        except OSError as error:
            raise UserError(f"{peer.settings.address}: cannot listen there ({error})") from None
        yield
