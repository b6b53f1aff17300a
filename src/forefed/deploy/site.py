"""What a site answers: it looks after its model, its data and its memory of what it has done.

What leaves it, and nothing else (``trained``): the tensors that the order assigned, or slopes in
their place; the number of training examples; the metrics that its policy allows; and sums over its
rows that answer the questions which its policy allows. A refusal carries
the reason of the policy; every other fault its kind only, because its text may quote the data.
"""

from __future__ import annotations

import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from forefed.channel.channel import TooFew
from forefed.config.config import Config
from forefed.config.reveals import reveals
from forefed.core import trees
from forefed.core.errors import ProtocolError, UserError
from forefed.core.kept import kept_secret
from forefed.core.keys import Key, Secret
from forefed.core.types import ClientContext, Json, Order, Params
from forefed.data.examples import ClientData
from forefed.data.population import Population
from forefed.data.prepare import load_table
from forefed.data.shares import Assigned
from forefed.data.tasks import Encoded
from forefed.deploy.answers import task_digest
from forefed.deploy.envelope import Envelope
from forefed.deploy.journal import Journal
from forefed.deploy.privacy_budget import of_order, of_question, spend
from forefed.deploy.settings import Refusal, SiteSettings, at_site
from forefed.deploy.weights import model_of
from forefed.federation.inprocess import ClientFn
from forefed.federation.replica import Replica
from forefed.federation.server import Server
from forefed.federation.state import RunState
from forefed.local import Brought, Trainer
from forefed.local.party import Party
from forefed.models.load import check_files
from forefed.models.shell import check_length
from forefed.models.task import Task
from forefed.modifiers.modifier import beside_of
from forefed.run.assemble import make_server, make_trainer, measured
from forefed.run.build import answers, load_model, task_view, whole_length
from forefed.wire.message import check_shapes, frames, kind_of
from forefed.wire.orders import decode_broadcast, decode_order
from forefed.wire.questions import decode_question

log = logging.getLogger("forefed.site")
DETAILS = "the site's log has the details"
NO_SCRIPT = "client.kind = '{}': there is no script here that trains (script, in site.toml)"


@dataclass(frozen=True)
class Ready(ABC):
    """A run's settings, with what this site has for them."""

    config: Config
    trainer: Trainer
    work: ClientFn
    server: Server
    """The server's half, which a site that follows by records does again."""
    party: Party
    """Its half of the channel."""

    @property
    @abstractmethod
    def params(self) -> Params:
        """First values of what is trained."""

    @property
    @abstractmethod
    def weights(self) -> dict[str, str]:
        """What the server compares when this site joins."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Rows that are here."""

    @abstractmethod
    def data(self, client: int) -> ClientData:
        """All rows of this site, as those of this client."""

    def sent(self, round: int, form: int) -> Params:
        """The parameters that come with an order: all but those that clients keep to themselves, in
        this form."""
        sharing = self.trainer.sharing
        private = () if sharing.from_common else self.trainer.private(round)
        here = {n: x for n, x in self.params.items() if n not in private}
        return sharing.sent(here, form)

    def check_sent(self, params: Params, round: int, client: int) -> None:
        """Raises ProtocolError: an order's parameters are not those of the model that is here."""
        form = self.trainer.sharing.form_of(client, params)
        check_shapes(params, self.sent(round, form), "the order's parameters")


@dataclass(frozen=True)
class Prepared(Ready):
    """A run's settings, with this site's model and rows loaded for them."""

    task: Task
    rows: Encoded

    @property
    def params(self) -> Params:
        return self.task.params

    @cached_property
    def weights(self) -> dict[str, str]:
        return model_of(self.task.model, self.config.model, self.task.params)

    @property
    def count(self) -> int:
        return len(self.rows.train)

    def data(self, client: int) -> ClientData:
        """With the same test split as a rehearsal's."""
        examples = self.rows.train
        everything, nothing = np.arange(len(examples)), np.arange(0)
        shares = [everything if c == client else nothing for c in range(client + 1)]
        return Population(
            "sites",
            examples,
            Assigned.of(shares, len(examples)),
            Key(self.config.seed).fold("data").fold("population"),
            self.config.data.client_test_fraction,
            self.rows.label_names,
        ).client(client)


def prepare(config: Config) -> Prepared:
    """Load this site's data and the model.

    Raises:
        UserError: what cannot be loaded, or does not fit.
    """
    if config.client.brought:
        raise UserError(NO_SCRIPT.format(config.client.kind))
    tokenizer = check_files(config.model, config.data.task.head)
    rows = read_rows(config, tokenizer)
    task = load_model(config, rows.label_names)
    longest = int(rows.train.lengths().max())
    check_length(task.model.config, longest, "data.max_length")
    trainer = make_trainer(config, task_view(config, task, None))
    server = make_server(config, task, lambda _: trainer)
    log.info("%s", reveals(config))
    answering = answers(config, task, trainer.task.prefix)
    party = Party(lambda _: trainer, config.channel, answering)
    work = measured(lambda _: trainer)
    return Prepared(config, trainer, work, server, party, task, rows)


def read_rows(config: Config, tokenizer: object) -> Encoded:
    """All rows of this site; the global test set is at the server, so none is held out here."""
    table, _ = load_table(config.data)
    found = config.data.task.encode(
        replace(table, test=table.rows),
        tokenizer,
        config.data.max_length,
        config.data.test_fraction,
        Key(config.seed).fold("data"),
        whole=whole_length(config, tokenizer),
    )
    for note in found.notes:
        log.info("%s", note)
    return found


@dataclass
class Site:
    """Answers envelopes; keeps the model and the data of the last run in memory.

    ``prepare``: what it makes of a run's settings; a script's Trainer is another (``hf/site.py``).
    """

    settings: SiteSettings
    folder: Path
    prepare: Callable[[Config], Ready] = prepare
    brings: bool = False
    """Does it train by a script's own steps?"""
    warm: tuple[str, Ready] | None = None
    """The settings that were prepared last, as they came, and what was made of them."""

    def __call__(self, asked: Envelope) -> Envelope:
        answered = replace(asked, text="", blobs={})
        try:
            prepared = self.prepared(asked.text)
            if asked.kind == "join":
                return replace(answered, kind="joined", text=self.introduction(prepared))
            if asked.kind == "train":
                update = self.train(prepared, asked)
                return replace(answered, kind="trained", blobs={"update": update})
            if asked.kind == "ask":
                answer = self.answer(prepared, asked)
                return replace(answered, kind="answered", blobs={"answer": answer})
            raise ProtocolError(f"a site is not asked '{asked.kind}'")
        except (Refusal, TooFew) as refusal:
            log.warning("refused: %s", refusal)
            return replace(answered, kind="refused", text=str(refusal))
        except UserError as error:  # of this site's own: its settings, its rows, its model
            log.error("%s of round %d: %s", asked.kind, asked.round, error)
            return replace(answered, kind="failed", text=f"UserError; {DETAILS}")
        except Exception as error:
            log.exception("%s of round %d failed", asked.kind, asked.round)
            text = f"{type(error).__name__}; {DETAILS}"
            return replace(answered, kind="failed", text=text)

    def prepared(self, settings: str) -> Ready:
        """What this run needs, loaded once. The policy is asked every time."""
        config = at_site(settings, self.settings, self.folder)
        if config.client.brought and not self.brings:
            raise Refusal(NO_SCRIPT.format(config.client.kind))
        if self.brings and not config.client.brought:
            raise Refusal(f"a script trains here; it takes client.kind = '{Brought.kind_name()}'")
        if self.warm is None or self.warm[0] != settings:
            self.warm = None  # the former model's memory, before the next one is loaded
            log.info("loading %s", config.model.name)
            self.warm = settings, self.prepare(config)
        return self.warm[1]

    def introduction(self, prepared: Ready) -> str:
        """Who this is, on which weights it computes, and in which memory where the run asks."""
        least = self.settings.policy.min_examples
        if prepared.count < least:
            raise Refusal(f"fewer than {least} examples")
        about: Json = {"site": self.settings.name, **prepared.weights}
        if prepared.trainer.sharing.by_memory:
            if self.settings.memory is None:
                raise Refusal("no memory is named here (memory, in site.toml), by which ranks go")
            about["memory"] = self.settings.memory
        return json.dumps(about)

    def answer(self, prepared: Ready, asked: Envelope) -> bytes:
        """Sums over this site's rows; the same bytes when they are asked for again."""
        if asked.blobs.keys() != {"question"} or asked.client < 0:
            raise ProtocolError(f"a question is one blob, not {sorted(asked.blobs)}")
        question = asked.blobs["question"]
        kind = "a phase" if kind_of(question) == "channel" else first_question(question)
        if kind_of(question) != "channel" and kind not in self.settings.policy.questions:
            raise Refusal(f"'{kind}' is not answered here (policy.questions)")
        data = prepared.data(asked.client)
        if len(data.train) < self.settings.policy.min_examples:
            raise Refusal(f"fewer than {self.settings.policy.min_examples} training examples")
        if kind_of(question) != "channel":
            task = task_digest(asked.text.encode(), question)
            made = of_question(prepared.config, kind, self.settings.policy.own_noise)
            spend(self.folder, self.settings.policy, made, asked.round, task)
        journal = Journal(self.folder / "done")
        check_word(asked.run)
        # a new sum has new keys, whatever the server says: nothing of a former one helps
        payload, kept = prepared.party.tell(
            question, asked.client, data, journal.phase(asked.run), Secret.new
        )
        if kept is not None:
            journal.keep_phase(asked.run, kept)
        log.info("answered '%s' of round %d: %d bytes", kind, asked.round, len(payload))
        return payload

    def train(self, prepared: Ready, asked: Envelope) -> bytes:
        """The update of one order; the same bytes when it is asked for again."""
        most = self.settings.policy.max_rounds
        if most is not None and asked.round > most:
            raise Refusal(f"round {asked.round} of a run, at most {most} here")
        started = time.monotonic()
        journal = Journal(self.folder / "done")
        order = read_order(prepared, asked, journal)
        digest = task_digest(asked.text.encode(), *(asked.blobs[n] for n in sorted(asked.blobs)))
        known = journal.find(asked.run, asked.round, digest)
        if known is not None:
            log.info("round %d was done already", asked.round)
            return known
        data = prepared.data(order.client)
        if len(data.train) < self.settings.policy.min_examples:
            raise Refusal(f"fewer than {self.settings.policy.min_examples} training examples")
        policy = self.settings.policy
        spend(
            self.folder,
            policy,
            of_order(prepared.config, policy.own_noise),
            asked.round,
            digest,
        )
        # another order of this round draws other examples, too
        secret = kept_secret(self.folder).fold(asked.run, order.client, order.round, digest)
        update, state = prepared.work(order, data, journal.state(asked.run, asked.round), secret)
        update = replace(update, metrics=self.settings.policy.allowed(update.metrics))
        upload = prepared.party.upload(update, ClientContext(order=order, own=secret))
        encode = upload.encode
        upload = replace(upload, encode=lambda: checked(prepared, order, encode(), self.settings))
        payload, kept = prepared.party.send(upload, order, journal.phase(asked.run), Secret.new)
        if kept is not None:
            journal.keep_phase(asked.run, kept)
        back = prepared.config.checkpoint_every
        journal.keep(asked.run, asked.round, digest, payload, state, back)
        did = (order.round, update.n_examples, len(payload), time.monotonic() - started)
        log.info("round %d: %d examples, %d bytes, %.1f s", *did)
        return payload


def read_order(prepared: Ready, asked: Envelope, journal: Journal) -> Order:
    """The order in an envelope, for the model that is here.

    Raises:
        ProtocolError: damaged, for another task than the header says, or of other shapes.
    """
    held = asked.blobs.keys() - {"order"}
    by_records = prepared.config.download.by_records
    if asked.blobs.keys() - held != {"order"} or held not in ({"state"}, {"missed"}):
        raise ProtocolError(f"an order has a state and a header, not {sorted(asked.blobs)}")
    if held == {"missed"} and not by_records:
        raise ProtocolError("records came, and nobody follows by records in this run")
    check_word(asked.run)
    state, told = receive(prepared, asked, journal)
    order = decode_order(asked.blobs["order"], state.params, told)
    if (order.round, order.client) != (asked.round, asked.client) or order.client < 0:
        raise ProtocolError("the order is not the one that its header announces")
    prepared.check_sent(state.params, asked.round, asked.client)
    if order.digest and trees.digest(state.params)[: len(order.digest)] != order.digest:
        raise ProtocolError("the parameters here are not the server's")
    if by_records:
        journal.keep_followed(asked.run, state)
    return order


def check_word(run: str) -> None:
    """Raises ProtocolError: a run's id that is no word; it names a folder here."""
    if not run or not run.isalnum():
        raise ProtocolError("the run's id is no word")


def first_question(message: bytes) -> str:
    """What is asked, where a channel's message may stand beside it."""
    return decode_question(next(frames(message)))[0]


def receive(prepared: Ready, asked: Envelope, journal: Journal) -> tuple[RunState, Params]:
    """The server's state before this round, as it came or done again from the records of the rounds
    that this site has missed; and what the modifiers tell.

    Raises:
        ProtocolError: records that do not go on from what is kept here to this round.
    """
    replica = Replica(prepared.server)
    if "state" in asked.blobs:
        params, told, carried = decode_broadcast(asked.blobs["state"])
        if not prepared.config.download.by_records:
            return RunState(asked.round - 1, params), told
        replica.receive(asked.round, params, carried)
    else:
        first = prepared.config.download.held(prepared.params)
        replica.state = journal.followed(asked.run) or first
        replica.catch_up(asked.blobs["missed"])
    assert replica.state is not None
    if replica.state.round != asked.round - 1:
        raise ProtocolError(f"for round {asked.round} came records up to {replica.state.round}")
    return replica.state, replica.held()[1]


def checked(prepared: Ready, order: Order, payload: bytes, site: SiteSettings) -> bytes:
    """An update as it travels, read as the server will read it and compared with what may leave.

    Raises:
        ProtocolError: tensors that were not assigned, or a metric that the policy does not allow.
    """
    beside = beside_of(prepared.config.modifiers, order.params, prepared.trainer.task.head)
    update = prepared.config.codec.decode(payload, replace(order, beside=beside))
    held = update.grad if update.grad is not None else update.slopes or {}
    named = set(order.assigned) if update.grad is not None else {"body", "head"}
    metrics = update.metrics.keys() - site.policy.allowed(update.metrics).keys()
    if not held.keys() <= named or metrics:
        extra = sorted(held.keys() - named) + sorted(metrics)
        raise ProtocolError(f"this may not leave the site: {extra}")
    return payload
