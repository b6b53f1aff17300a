"""Three sites for the tests of a deployment: their files, and a post without a network.

The same rows serve a rehearsal (one file, split by its column of owners) and the sites (a file
each), so both must end with the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from federation import CLASSES, World, text_rows, write_lines
from forefed.aggregate import Mean
from forefed.assign import Everything
from forefed.core.keys import Key
from forefed.core.settings import parse
from forefed.core.types import ClientContext, LossReason
from forefed.data.examples import ClientData
from forefed.deploy.connect import connect_by
from forefed.deploy.envelope import Envelope, encode, read
from forefed.deploy.parcels import Delivery, Failure
from forefed.deploy.remote import RemoteClients
from forefed.deploy.settings import SiteSettings
from forefed.deploy.site import Site
from forefed.federation.server import Server
from forefed.federation.star import RunState, Star
from forefed.gradients.backprop import Backprop
from forefed.local import LocalTraining, Trainer
from forefed.optimisers import Sgd
from forefed.run import Config, configure, run
from forefed.wire import Dense
from forefed.wire.orders import decode_broadcast, decode_order
from toy import HEAD, toy_clients, toy_params, toy_task, toy_units

NAMES = ("large", "main", "middle")
"""Sites of the tiny world, in the order of a rehearsal's clients."""

REAL = "engine.emulate=false"  # as at sites, which never rehearse their slopes
FEW = "adapter.u=4"

STRATEGIES = {
    "fedavg": ["strategy=fedavg"],
    "spry": ["strategy=spry", REAL, FEW],
    "spry-scalars": ["strategy=spry", REAL, FEW, "codec=scalars", "client.max_steps=1"],
}


def write_rows(folder: Path) -> dict[str, Path]:
    """One file per site, and "all" and "test"."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in text_rows() if row["site"] in NAMES]
    tests = [row for row in text_rows() if row["site"] not in NAMES]
    files = {"all": write_lines(folder / "all.jsonl", rows)}
    files["test"] = write_lines(folder / "test.jsonl", tests)
    for name in NAMES:
        own = [{"text": r["text"], "label": r["label"]} for r in rows if r["site"] == name]
        files[name] = write_lines(folder / f"{name}.jsonl", own)
    return files


def sets(world: World, out: Path, files: Mapping[str, Path], *more: str) -> list[str]:
    """Settings of both, but for the partition."""
    return [
        *world.sets(out),
        f"data.task.labels={json.dumps(CLASSES)}",
        "data.task.text=text",
        "data.task.label=label",
        f"data.source.test='{files['test']}'",
        "cohort=3",
        "rounds=3",
        *more,
    ]


def rehearsal(world: World, out: Path, *more: str) -> Config:
    files = write_rows(out / "rows")
    natural = [f"data.source.path='{files['all']}'", "partition={kind='natural', column='site'}"]
    return configure(sets=[*sets(world, out, files), *natural, *more])


def deployed(world: World, out: Path, *more: str) -> Config:
    return configure(sets=deployed_sets(world, out, *more))


def deployed_sets(world: World, out: Path, *more: str) -> list[str]:
    files = write_rows(out / "rows")
    sites = f"partition={{kind='sites', names={json.dumps(NAMES)}, join_s=0.5}}"
    path = f"data.source.path='{files['test']}'"
    return [*sets(world, out, files), path, sites, "deadline_s=60", *more]


def site_settings(
    world: World, name: str, files: Mapping[str, Path], **more: object
) -> SiteSettings:
    raw = {
        "name": name,
        "server": "127.0.0.1:1",
        "data": {"source": {"kind": "files", "path": str(files[name])}},
        "models": {str(world.bert): str(world.bert)},
        **more,
    }
    return parse(SiteSettings, raw)


def make_sites(world: World, out: Path, **more: object) -> dict[str, Site]:
    files = write_rows(out / "rows")
    sites = {}
    for name in NAMES:
        folder = out / "sites" / name
        folder.mkdir(parents=True, exist_ok=True)
        sites[name] = Site(site_settings(world, name, files, **more), folder)
    return sites


Tamper = Callable[[Envelope], Iterable[Envelope | Failure]]


@dataclass
class FakePost:
    """Delivers at once, through real bytes. ``tamper`` may change, double or lose an answer."""

    sites: Mapping[str, Callable[[Envelope], Envelope]]
    registered: bool = True
    tamper: dict[str, Tamper] = field(default_factory=dict)
    """By site; acts on answers to "train" only."""
    offline: set[str] = field(default_factory=set)
    unsendable: set[str] = field(default_factory=set)
    waiting: dict[str, list[Envelope | Failure]] = field(default_factory=dict)
    asked: list[tuple[str, Envelope]] = field(default_factory=list)

    def nodes(self) -> Mapping[int, str]:
        names = [n for n in self.sites if n not in self.offline]
        return {self.node(n): n if self.registered else "" for n in names}

    def node(self, name: str) -> int:
        return 7000 + list(self.sites).index(name)

    def push(self, letters: Sequence[tuple[int, Envelope]], ttl_s: float) -> Sequence[str | None]:
        ids: list[str | None] = []
        for node, envelope in letters:
            name = list(self.sites)[node - 7000]
            if name in self.unsendable and envelope.kind == "train":
                ids.append(None)
                continue
            self.asked.append((name, envelope))
            answer = through_bytes(self.sites[name](through_bytes(envelope)))
            change = self.tamper.get(name) if envelope.kind == "train" else None
            question = f"q{len(self.asked)}"
            self.waiting[question] = list(change(answer)) if change else [answer]
            ids.append(question)
        return ids

    def pull(self, questions: Sequence[str]) -> Iterable[Delivery]:
        found = [Delivery(q, c) for q in questions for c in self.waiting.pop(q, [])]
        return reversed(found)  # answers come in any order


def bits_without(world: World, out: Path, lost: Iterable[tuple[int, str]], *more: str) -> str:
    """The digest of a run in which the answers of these (round, site) do not arrive."""
    post = FakePost(make_sites(world, out / "without"))

    def losing(name: str) -> Tamper:
        return lambda a: [Failure("crash", "") if (a.round, name) in lost else a]

    post.tamper = {name: losing(name) for name in NAMES}
    return str(
        run(deployed(world, out / "without", *more), connect=connect_by(post)).summary["digest"]
    )


def through_bytes(envelope: Envelope) -> Envelope:
    data = memoryview(encode(envelope))
    place = 0

    def receive(count: int) -> bytes:
        nonlocal place
        place += min(count, 1000)
        return bytes(data[place - min(count, 1000) : place])

    return read(receive)


def failing(reason: LossReason) -> Tamper:
    return lambda _: [Failure(reason, "as the post says")]


def remote(
    about: Mapping[str, Mapping[str, str]] | None = None,
    tamper: dict[str, Tamper] | None = None,
    registered: bool = True,
    say: Callable[[str], None] = lambda _: None,
    join_s: float = 0.05,
    **slots: object,
) -> tuple[Star, FakePost]:
    """The toy world's loop over a post to three sites "a", "b" and "c" (clients 0, 1 and 3, of
    seven, thirteen and nine examples)."""
    trainer = Trainer(
        LocalTraining(batch_size=4, optimiser=Sgd(lr=0.2)), Backprop(), Dense(), toy_task()
    )
    sites = {
        name: ToySite(name, trainer, toy_clients()[i], dict((about or {}).get(name, {})))
        for name, i in (("a", 0), ("b", 1), ("c", 3))
    }
    post = FakePost(sites, registered, tamper or {})
    weights = {"weights": "w", "tokenizer": "t", "dtype": "float64"}
    transport = RemoteClients(post, "run", "{}", tuple("abc"), weights, 1, join_s, say, poll_s=0.01)
    loop = Star(
        Key(4),
        toy_units(),
        3,
        Everything(),
        transport,
        Server(Key(4), HEAD, Mean(), Sgd(), trainer_of=lambda _: trainer),
        deadline_s=5.0,
    )
    return replace(loop, **slots), post


def orders_for(loop: Star) -> RunState:
    return RunState(0, toy_params())


def trained_by(post: FakePost, name: str) -> Envelope:
    site = post.sites[name]
    assert isinstance(site, ToySite)
    return site.answers[-1]


@dataclass
class ToySite:
    """Trains the toy model; no files, no policy."""

    name: str
    trainer: Trainer
    data: ClientData
    about: dict[str, str]
    answers: list[Envelope] = field(default_factory=list)

    def __call__(self, asked: Envelope) -> Envelope:
        answered = replace(asked, text="", blobs={})
        if asked.kind == "join":
            same = {"weights": "w", "tokenizer": "t", "dtype": "float64"}
            about = {"site": self.name, **same, **self.about}
            return replace(answered, kind="joined", text=json.dumps(about))
        params, memo, _ = decode_broadcast(asked.blobs["state"])
        order = decode_order(asked.blobs["order"], params, memo)
        update, _ = self.trainer(order, self.data, {})
        payload = self.trainer.codec.encode(update, ClientContext(order=order))
        self.answers.append(replace(answered, kind="trained", blobs={"update": payload}))
        return self.answers[-1]
