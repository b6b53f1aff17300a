"""The settings of the head in one round, solved from sums that clients send.

Exact for any partition: sums do not see who holds what. Forward passes only. ``solver.py`` has the
algebra, ``targets`` what heads are fitted to: classes, labels, numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from forefed.aggregate.aggregator import Hostile
from forefed.core.errors import ProtocolError, UserError
from forefed.start.private import troubles
from forefed.start.start import Start
from forefed.start.sums import Sums
from forefed.start.targets import TARGETS

WORDS = 16_384
"""That are kept by default."""


class ClosedForm(Start):
    """The head by ridge regression or discriminant from the clients' sums, in one exact round.

    For a class, labels or a number of a text or a pair of texts. The kind of head, its
    regularisation and its temperature are chosen by the clients' held-out rows: they try all
    candidates in one pass and send sums of losses.
    """

    kind: Literal["closed_form"] = "closed_form"
    solver: Literal["auto", "ridge", "discriminant"] = "auto"
    """``auto``: what the clients' held-out rows prefer, for classes; labels have a discriminant
    each, numbers are ridge regression."""
    regularisation: Annotated[float, Field(gt=0)] | Literal["held_out"] = "held_out"
    """A share of the features' mean variance; "held_out": what the held-out rows prefer."""
    prior: Literal["counts", "uniform"] = "counts"
    """Of the classes: as frequent as in the training rows, or equal (for balanced accuracy)."""
    then: Literal["frozen", "trained"] = "frozen"
    """The head in the rounds that follow."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Rows of one forward pass. 1: a row's features are the same bits whoever holds it, so the head
    is, too; more is faster on an accelerator, and rounding then depends on the partition."""
    min_count: Annotated[int, Field(ge=1)] = 1
    """A client leaves out its rows of a class of which it has fewer: a sum of one is the row."""
    words: Annotated[int, Field(ge=0, le=30_000)] | Literal["auto"] = "auto"
    """Words and pairs of neighbours whose presence counts beside the features, most frequent first
    (0: none). Solved by ridge regression in six passes of sums over rows, without the model. For
    one text a row, as long as ``words_length``; not for pairs. Sums of one
    site tell which words its texts have, so "auto" is 16,384, and between machines 0 unless
    ``channel.kind = "secure_sum"``."""
    words_length: Annotated[int, Field(ge=4)] = 512
    """Tokens of a text that are looked at for words; the model reads ``data.max_length``."""
    again: bool = True
    """Solve once more at the end, from all rows, where no adapter has moved: the rows that were
    held out to choose by have then nothing left to judge."""

    folds: Annotated[int, Field(ge=1, le=100)] | Literal["auto"] = 1
    """Groups of clients, drawn by the seed: each trains its adapters against the head, and what
    words say, that were solved from the other groups' rows, as the head of all knows the rows it is
    trained on (federation/folds.py). Costs no question more; "products" and their answers are
    1 + ``folds`` times as large. "auto": 4 where every group has 5 clients or more, else 1. 1: all
    train against the head of all."""
    folds_rate: Annotated[float, Field(gt=0, le=1e3)] = 1.0
    """Times the clients' learning rates, where they train in several groups: their loss is then as
    large as it is on other rows. FedAvg: 3, as long as nobody sets ``client.optimiser.lr``."""

    noise_multiplier: Annotated[float, Field(ge=0)] | None = None
    """With noise on the sums (start/private.py): its standard deviation over what one unit adds."""
    target_epsilon: Annotated[float, Field(gt=0)] | None = None
    """In its place: what these sums may cost."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    unit: Literal["example", "client"] = "example"
    """What the noise hides."""
    noise_by: Literal["server", "clients"] = "server"
    """Who adds it: the server, to a sum that it has seen; or under ``channel.kind = "secure_sum"``
    every client its share, so that nobody sees a sum without (start/shares.py). Shares are as large
    as ``channel.min_group`` less ``colluding`` clients need; each beyond adds noise for nothing."""
    colluding: Annotated[int, Field(ge=0)] = 1
    """With noise by clients: so many of them may tell the server all they know, or add none."""
    radius: Annotated[float, Field(gt=0)] | None = None
    """With noise: longer features are cut to this length. About their usual one on public texts."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Of each client so many rows count at most, evenly chosen. A bound on what one can move: in
    the plain channel the server refuses more, under a secure sum clients keep it by themselves.
    Noise that hides clients needs it."""
    f: Hostile | Literal["auto"] = "auto"
    """Clients that may lie in their sums: a number, or a share of those that answer. At most so
    many are left out whose sums contradict the others' (start/contradicting.py). "auto": as the
    aggregator assumes, where it assumes any and single sums are seen."""

    @property
    def private(self) -> bool:
        return bool(self.noise_multiplier) or self.target_epsilon is not None

    def check(self, sums: Sums, clients: int) -> None:
        """Do sums of so many clients keep the bounds?

        Raises:
            ProtocolError: more rows than they may have, or longer features.
        """
        if self.max_rows is not None and sums.rows > clients * self.max_rows:
            raise ProtocolError(f"sums of {sums.rows} rows, at most {clients * self.max_rows}")
        if self.private and self.radius is not None:
            length = float(sums.real()[2].diagonal().sum())
            if length > sums.rows * self.radius**2:
                raise ProtocolError(f"features longer than {self.radius:g}")

    def conflicts(self, config: Any) -> Iterator[str]:
        if self.private:
            yield from (f"start: {trouble}" for trouble in troubles(self, config))
        if config.data.task.head not in TARGETS:
            yield (
                "start.kind = 'closed_form': spans and next tokens have no head in closed form; "
                "set start.kind = 'none'"
            )
        yield from _unfit(self, config)
        yield from _conflicts(self, config)
        yield from _unfolded(self, config)


class Auto(ClosedForm):
    """closed_form where classes, labels or a number are read by one linear map, none elsewhere."""

    kind: Literal["auto"] = "auto"  # type: ignore[assignment]

    def conflicts(self, config: Any) -> Iterator[str]:
        if self.private:
            yield from (f"start: {trouble}" for trouble in troubles(self, config))
        yield from _unfit(self, config)
        yield from _unfolded(self, config)


def start_of(config: Any, pooling: str) -> ClosedForm | None:
    """How a configuration's head is solved; None: it begins as the model has it.

    Args:
        config: the whole configuration.
        pooling: of the model (``models/pooling.py``); "pooler" is the way of its own class.
    """
    start = config.start
    if not isinstance(start, ClosedForm):
        return None
    if start.f == "auto":
        seen = not (config.channel.sums or start.private)
        start = start.model_copy(update={"f": getattr(config.aggregator, "f", 0) if seen else 0})
    if not isinstance(start, Auto):
        return start
    solvable = config.data.task.head in TARGETS and pooling != "pooler"
    if not solvable or config.download.by_sums or config.sharing.keeps_trained:
        return None
    if not config.topology.central or config.client.brought:
        return None  # nobody adds up; a script's Trainer answers no questions
    if any(m.private for m in config.modifiers) and not start.private:
        return None  # sums without noise would be a release that nobody accounts for
    alone = config.adapter.kind == "head"
    return start.model_copy(update={"then": "trained"}) if alone else start


FOLDS, OF_EACH = 4, 5
"""``folds = "auto"``: so many groups, of so many clients at least."""


def one_fold(start: ClosedForm, config: Any) -> Iterator[str]:
    """Why clients of a configuration can train against the head of all only."""
    if not config.rounds:
        yield "nobody trains"
    if start.then == "trained" or config.adapter.kind == "head":
        yield "a head that is trained in the rounds is one for all"
    if start.private:
        yield "every group's sums would need noise of their own, and that of all so much more"
    if config.download.by_records or config.download.by_sums:
        yield (
            f"with download.kind = '{config.download.kind}' all clients keep the same parameters, "
            "and groups have heads of their own"
        )
    if config.codec.sends_slopes and start.folds_rate != 1:
        yield (
            "what slopes stand for is made again at the clients' own rates, and not at "
            f"start.folds_rate = {start.folds_rate:g}"
        )
    if config.sharing.personal:
        yield f"with sharing.kind = '{config.sharing.kind}' each client answers by its own model"
    if not config.topology.central:
        yield f"with topology.kind = '{config.topology.kind}' nobody adds up"


def folds_of(start: ClosedForm, config: Any, clients: int) -> tuple[int, str]:
    """In how many groups clients train, and where that was left open ("auto"), why not in several.

    Args:
        clients: that are there.

    Raises:
        UserError: groups that are too small for a secure sum.
    """
    least = config.channel.least
    if start.folds != "auto":
        folds = min(start.folds, clients)
        if folds > 1 and clients // folds < least:
            raise UserError(
                f"start.folds = {start.folds}: of {clients} clients a group has "
                f"{clients // folds}, below the {least} of a sum (channel.min_group); set it lower"
            )
        return folds, ""
    why = next(one_fold(start, config), "")
    each = max(OF_EACH, least)
    if not why and clients < FOLDS * each:
        why = f"{clients} clients are too few for {FOLDS} groups of {each}"
    return (1, why) if why else (FOLDS, "")


def words_of(config: Any, pooling: str) -> int:
    """How many words count beside the features of a configuration's head; 0: none."""
    start = start_of(config, pooling)
    if start is None or start.private or not one_text(config.data.task):
        return 0
    if start.words != "auto":
        return start.words
    if config.data.client_test_fraction == 0:
        return 0  # nobody could say how much they should count
    seen = config.partition.kind == "sites" and not config.channel.hides
    return 0 if seen else WORDS


def one_text(task: Any) -> bool:
    """Does a row have one text, as far as the settings tell? Columns may be guessed."""
    return task.kind != "pairs" and getattr(task, "text1", None) is None


def _unfolded(start: ClosedForm, config: Any) -> Iterator[str]:
    """Several groups, where clients can train against one head only."""
    if start.folds not in (1, "auto"):
        yield from (
            f"start.folds = {start.folds}: {why}; set it to 1" for why in one_fold(start, config)
        )


def _unfit(start: ClosedForm, config: Any) -> Iterator[str]:
    """Settings that say nothing about the task's targets."""
    targets, kind = TARGETS.get(config.data.task.head), config.data.task.kind
    if targets is None:
        return
    if start.solver not in ("auto", *targets.solvers):
        yield (
            f"start.solver = '{start.solver}' is not for data.task.kind = '{kind}'; set "
            f"start.solver = '{targets.solvers[0]}'"
        )
    if start.words not in ("auto", 0) and config.data.client_test_fraction == 0:
        yield (
            "start.words: rows that clients hold out say how much words count, and there are none; "
            "set data.client_test_fraction, for example 0.2, or start.words = 0"
        )
    if start.f not in ("auto", 0) and config.channel.sums:
        yield (
            "start.f: who lies is found by looking at single sums, and channel.kind = "
            f"'{config.channel.kind}' shows none; leave it out, and bound them by start.max_rows"
        )
    if start.noise_by == "clients" and not start.private:
        yield (
            "start.noise_by = 'clients': there is no noise; set start.target_epsilon, or leave "
            "noise_by out"
        )
    if start.prior == "uniform" and not targets.named:
        yield (
            f"start.prior = 'uniform' is for classes and labels; data.task.kind = '{kind}' has "
            "none, so set start.prior = 'counts'"
        )


def _conflicts(start: ClosedForm, config: Any) -> Iterator[str]:
    if config.download.by_sums:
        yield (
            "start: with download.kind = 'pool' clients begin at the seed's own values, so no head "
            "can be solved before; set start.kind = 'none'"
        )
    if start.then == "frozen" and config.adapter.kind == "head" and config.rounds:
        yield (
            "start.then = 'frozen' with adapter.kind = 'head' leaves nothing to train; set "
            "start.then = 'trained', or rounds = 0 for the solved head alone"
        )
