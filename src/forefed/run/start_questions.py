"""The questions of one start: who still answers, and what they have cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from forefed.aggregate.aggregator import share_of
from forefed.core.errors import ProtocolError, UserError
from forefed.core.types import Params, Transport
from forefed.federation.folds import Groups, sets_of
from forefed.federation.questions import PLAIN, Heard, Question, Way, ask, ask_total
from forefed.models.bag_of_words import BUCKETS, Bag, Words
from forefed.models.task import Task
from forefed.start.answer import TRAINING, about, targets_of_task
from forefed.start.contradicting import contradicting
from forefed.start.features import names_of_head
from forefed.start.shares import Shares
from forefed.start.sums import Sums
from forefed.start.targets import Targets
from forefed.start.word_scores import (
    STEPS,
    Descent,
    check_products,
    check_words,
    kept,
    solved,
    whole,
)

Say = Callable[[str, int, int], None]
"""Told what is done, how many clients have answered, and of how many."""


@dataclass
class Asked:
    """Questions of one start: who still answers, and what they have cost."""

    task: Task
    transport: Transport
    deadline_s: float | None
    members: Sequence[int]
    say: Say = lambda what, done, of: None
    way: Way = PLAIN
    bytes_up: int = 0
    bytes_down: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    why: str = ""
    """What the first of these said of it."""
    reason: str = ""
    """Why a sum was abandoned."""
    when: str = "start"
    body: Params = field(default_factory=dict)
    """Parameters of the body that features are read with; none: the run's first ones."""
    check: Callable[[Sums, int], None] = lambda sums, clients: None
    """Raises ProtocolError: sums of so many clients that pass the start's bounds."""
    hostile: int | float = 0
    """Clients that may lie, a number or a share of those that answer; 0: nobody."""
    left_out: Sequence[int] = ()
    """Whose sums contradicted the others', or were of words that no rows have."""
    told: dict[int, Params] = field(default_factory=dict)
    """Sums of features by client as they came, where somebody may lie, until words are solved."""
    rows: dict[int, int] = field(default_factory=dict)
    """Of each client, where somebody may lie."""
    groups: Groups = ()
    """Sums are of each of these; none: of everybody."""
    questions: int = 0

    @property
    def targets(self) -> Targets:
        return targets_of_task(self.task)

    def total(
        self,
        kind: str,
        what: str,
        tensors: Params,
        shapes: dict[str, tuple[int, ...]],
        read: Callable[[Params], Params],
        keep: Callable[[int, Params], None] = lambda client, answer: None,
        groups: Groups = (),
    ) -> tuple[tuple[int, ...], list[Params]]:
        """Put a question to those who have answered so far.

        Args:
            what: is being done, for whoever waits.
            shapes: of the answer's whole numbers.
            read: these numbers, of one answer as it travels.
            keep: given every answer that was read.
            groups: whose sums are wanted apart; none: the sum of all.

        Returns:
            Who has answered, and the sum of every group.
        """
        there = {*self.members}
        groups = [[c for c in some if c in there] for some in groups] or [list(self.members)]
        group_of = {c: i for i, some in enumerate(groups) for c in some}
        none = {n: torch.zeros(shape, dtype=torch.int64) for n, shape in shapes.items()}
        totals, done, members = [none for _ in groups], 0, list(self.members)

        def take(client: int, answer: Params) -> None:
            nonlocal done
            numbers, i = read(answer), group_of[client]
            keep(client, answer)
            totals[i] = {n: x + numbers[n] for n, x in totals[i].items()}
            done += 1
            self.say(what, done, len(members))

        question = self._question(kind, tensors)
        heard = ask(self.transport, question, take, shapes, self._anew(), groups)
        if self.way.channel.sums:
            totals = [found or none for found in heard.totals]
            self.reason = heard.reason
            self.say(what, len(heard.clients), len(members))
        self._spent(heard)
        return heard.clients, totals

    def losses(
        self, tensors: Params, what: str, shapes: dict[str, tuple[int, ...]]
    ) -> tuple[tuple[int, ...], Params]:
        """The sum of held-out losses under heads, float64, and who has answered; no tensors where
        nobody did."""
        of = len(self.members)
        # none is trimmed: of few rows a client, losses of a head are skewed, and a trimmed mean of
        # them chooses another (docs/LOG.md); ranges are checked, and rows are capped
        liars = (0, of) if self.hostile else None
        heard, total = ask_total(
            self.transport,
            self._question("heads", {**tensors, **self.body}),
            shapes,
            self._anew(),
            lambda done: self.say(what, done, of),
            liars,
        )
        self._spent(heard)
        return heard.clients, total

    def bag(self, most: int) -> Bag:
        """The words that count."""

        def read(answer: Params) -> Params:
            n = answer.get("n", torch.tensor(-1))
            if n.numel() != 1 or int(n) < 0:
                raise ProtocolError("rows were not counted")
            documents = whole(answer, "documents", BUCKETS, 1)
            if not bool(((documents >= 0) & (documents <= n.long())).all()):
                raise ProtocolError("words of more rows than there are")
            return {"documents": documents, "n": n.long().reshape(())}

        def keep(client: int, answer: Params) -> None:
            if self.hostile:
                self.rows[client] = int(answer["n"])

        shapes = {"documents": (BUCKETS, 1), "n": ()}
        self.members, (found,) = self.total("documents", "counting words", {}, shapes, read, keep)
        return kept(found["documents"][:, 0], int(found["n"]), most)

    def sums(self, rows: int, judge: bool = False) -> list[Sums]:
        """Sums of features, of every group.

        Args:
            judge: leave out clients whose sums contradict the others' (``left_out``), at most
                ``hostile``.

        Raises:
            UserError: a sum over several clients that no rows can have.
        """
        targets, width = self.targets, self.task.params[names_of_head(self.task)[0]].shape[1]
        shapes = {n: tuple(x.shape) for n, x in vars(Sums.zero(targets.columns, width)).items()}

        def read(answer: Params) -> Params:
            sums = Sums.unpacked(answer, targets.columns, width)
            targets.check(sums)
            targets.inside(sums)
            self.check(sums, 1)
            return vars(sums)

        def keep(client: int, answer: Params) -> None:
            if judge and self.hostile:
                found = int(Sums.unpacked(answer, targets.columns, width).n)
                if self.rows.setdefault(client, found) != found:
                    raise ProtocolError("words were counted in other rows than features are of")
                self.told[client] = answer

        asked = {"rows": torch.tensor(rows), **self.body}
        self.members, found = self.total(
            "sums", "reading texts", asked, shapes, read, keep, self.groups
        )
        parts = [Sums(**each_found) for each_found in found]
        total = Sums.over(parts)
        try:
            total.check()
            targets.check(total)
            targets.inside(total)
            self.check(total, len(self.members))
        except ProtocolError as error:
            raise UserError(
                f"start: the sum over {len(self.members)} clients is none that rows can have "
                f"({error}); one of them lies or is broken, and this channel hides which; set "
                "start.kind = 'none'"
            ) from None
        if self.told:
            there = [c for c in self.members if self.rows[c]]
            self._without(contradicting(there, self._sums_of, targets, self._most), parts)
        return parts

    def _sums_of(self, client: int) -> Sums:
        """Of features, of a client that has told them."""
        width = self.task.params[names_of_head(self.task)[0]].shape[1]
        return Sums.unpacked(self.told[client], self.targets.columns, width)

    @property
    def _most(self) -> int:
        """Clients that may be left out."""
        return share_of(self.hostile, sum(self.rows[c] > 0 for c in self.told))

    def _without(self, liars: Sequence[int], parts: list[Sums]) -> bool:
        """Leave these clients out, of ``parts`` too; False: their sums are not known, or they are
        more than may lie."""
        if not self.told.keys() >= {*liars} or len(self.left_out) + len(liars) > self._most:
            return False
        group_of = {c: i for i, some in enumerate(self.groups) for c in some}
        for client in liars:
            i = group_of.get(client, 0)
            parts[i] = parts[i].plus(self._sums_of(client), -1)
        self.left_out = sorted([*self.left_out, *liars])
        self.members = [c for c in self.members if c not in liars]
        return True

    def noisy(self, rows: int, shares: Shares) -> Params:
        """Sums of features, int64, to which every client has added its share of the noise: they are
        none of rows, and cannot be compared with what rows can have."""
        targets, width = self.targets, self.task.params[names_of_head(self.task)[0]].shape[1]
        shapes, asked = shares.shapes(targets, width), {"rows": torch.tensor(rows), **self.body}
        self.members, (found,) = self.total("sums", "reading texts", asked, shapes, dict)
        return found

    def words(self, bag: Bag, parts: list[Sums], rows: int) -> list[Words]:
        """What the bag says of each target: to all, and where there are several groups, to each
        what the others' rows say. It ends early where somebody is lost; nothing: there is no word,
        or not everybody answers.

        Where somebody may lie, who tells of words what no rows can have is left out, of ``parts``
        too, and all is asked anew; where that cannot be done, no word counts.

        Args:
            parts: sums of features of every group.
        """
        liars: list[int] = []
        said = self._words(bag, parts, rows, liars)
        if not liars:
            self.told.clear()
            return said
        return self.words(bag, parts, rows) if self._without(liars, parts) else []

    def _words(self, bag: Bag, parts: Sequence[Sums], rows: int, liars: list[int]) -> list[Words]:
        """``words``, once; ``liars``: who told what no rows can have is added."""
        sets = sets_of(len(parts))
        means = [Sums.over(parts[j] for j in some).mean_target() for some in sets]
        asked = {**packed_bag(bag), "rows": torch.tensor(rows)}
        everybody = Sums.over(parts).rows

        def summed(
            kind: str,
            what: str,
            tensors: Params,
            columns: int,
            check: Callable[[Tensor, int], None],
        ) -> list[Tensor] | None:
            size = (len(bag), columns)

            def read(answer: Params) -> Params:
                return {kind: whole(answer, kind, *size)}

            def keep(client: int, answer: Params) -> None:
                if self.hostile:
                    try:
                        # rows of the training only are known of each
                        of = self.rows.get(client, everybody) if rows == TRAINING else everybody
                        check(read(answer)[kind], of)
                    except ProtocolError:
                        liars.append(client)
                        raise

            clients, found = self.total(
                kind, what, tensors, {kind: size}, read, keep, groups=self.groups
            )
            return [x[kind] for x in found] if set(clients) == set(self.members) else None

        def words(told: Tensor, of: int) -> None:
            check_words(told, of, self.targets)

        first = None
        if len(bag):
            first = summed("words", "summing words", asked, len(means[0]) + 1, words)
        if first is None:
            return []
        step = 0

        def images(sent: Sequence[Tensor]) -> list[Tensor] | None:
            nonlocal step
            step += 1
            what, p = f"weighing words, pass {step}/{STEPS}", torch.cat([*sent], 1)
            found = summed(
                "products",
                what,
                {**asked, "p": p},
                p.shape[1],
                lambda told, of: check_products(told, p, of),
            )
            if found is None:
                return None
            cut = [x.split(len(means[0]), 1) for x in found]  # by group, then by set
            return [_sum(cut[j][i] for j in some) for i, some in enumerate(sets)]

        descents = [
            Descent.of(_sum(first[j] for j in some), mean, self.targets.unit)
            for some, mean in zip(sets, means, strict=True)
        ]
        return [Words(bag, weight.float()) for weight in solved(descents, images)]

    def _question(self, kind: str, tensors: Params) -> Question:
        return Question(kind, about(self.task), tensors, 0, list(self.members), self.deadline_s)

    def _anew(self) -> Way:
        self.questions += 1
        return self.way.anew(self.when, self.questions)

    def _spent(self, heard: Heard) -> None:
        self.bytes_up += heard.bytes_up
        self.bytes_down += heard.bytes_down
        self.why = self.why or heard.why
        self.lost |= {r: self.lost.get(r, 0) + n for r, n in heard.lost.items()}


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


def packed_bag(bag: Bag) -> Params:
    """As a question carries it."""
    return {"buckets": bag.buckets, "idf": bag.idf}
