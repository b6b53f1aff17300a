"""The client's half: what it answers about its own rows. Only sums leave.

    "documents"  in how many of its training rows each word is
    "words"      what its training rows have of each word, by target
    "sums"       its training rows' sums (``Sums``), for the head in closed form
    "products"   its training rows' products with a direction, for what the words say
    "heads"      its held-out rows' losses under several heads on the same features and words
    "loss"       its held-out rows' losses, and how many it gets right, under several sets of
                 parameters

Held-out rows are the client's own test split (``data.client_test_fraction``). A question may ask
for sums of them, or of all rows, in the place of the training rows (``rows``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from forefed.channel.channel import Numbers
from forefed.channel.summands import whole as in_units
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret
from forefed.core.states import below
from forefed.core.types import Params
from forefed.data.examples import ClientData, Indices
from forefed.models.bag_of_words import BUCKETS, WORDS, Bag, Words, occurrences
from forefed.models.task import Around, Task, nothing_around
from forefed.start.features import features, names_of_head
from forefed.start.private import within
from forefed.start.shares import Shares
from forefed.start.sums import STEP, Sums
from forefed.start.targets import Targets, targets_of
from forefed.start.word_scores import Entries, by_target, documents_of, products, sparse
from forefed.wire.questions import decode_question, encode_answer

Answer = Callable[[bytes, ClientData], bytes]
EVALUATION_BATCH = 32
AT_ONCE = 4096
"""Rows whose features are held at once."""
REMEMBERED = 100_000
"""Rows whose features and words are kept between questions."""
LAYOUT = 2
"""Of the sums; both sides must have the same."""
TRAINING, HELD_OUT, ALL = 0, 1, 2
"""Which rows a question is about (``rows``)."""


def targets_of_task(task: Task) -> Targets:
    """What a head of a task is fitted to."""
    return targets_of(task.objective.head, task.label_names)


def about(task: Task) -> str:
    """What sums of this task's features belong to."""
    base = task.model.get_base_model()
    body = (task.base_name, getattr(base, "pooling", ""), getattr(base, "layers", ()))
    said = (*body, task.objective.head, STEP, LAYOUT)
    return hashlib.blake2b(repr((said, task.label_names)).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Answers:
    """Answers of any client of one task."""

    task: Task
    batch_size: int = 1
    min_count: int = 1
    around: Around | None = None
    """What need not be computed again when held-out rows are tested (``Task.evaluate``)."""
    radius: float | None = None
    """Longer features are cut to this length before they are summed."""
    max_rows: int | None = None
    """So many rows are summed at most."""
    shares: Shares | None = None
    """Of noise, that this client adds to its sums."""
    memory: dict[bytes, tuple[int, Entries]] = field(default_factory=dict, repr=False)
    """Of rows that were asked about: how many, and what was computed of them."""
    same: dict[int, bool] = field(default_factory=dict, repr=False)
    """By length: are rows together the same bits as alone (``features``)?"""
    same_moved: dict[int, bool] = field(default_factory=dict, repr=False)
    """The same with adapters that have moved."""

    def __call__(self, question: bytes, data: ClientData) -> bytes:
        """Raises ProtocolError: a question about another model, or features that are no numbers."""
        kind, tensors = self.asked(question)
        if kind == "sums":
            if self.shares is not None:
                raise ProtocolError("sums are asked for by themselves, and have a share of noise")
            answer = self.sums_of(tensors, data).packed()
        elif kind in COUNTED:
            numbers = self.numbers(kind, tensors, data)
            answer = {"n": numbers.pop("n")} if "n" in numbers else {}
            answer |= {n: x for name, of in numbers.items() for n, x in sparse(of, name).items()}
        else:
            answer = (self.heads if kind == "heads" else self.losses)(tensors, data)
        return encode_answer(kind, about(self.task), answer)

    def whole(self, question: bytes, data: ClientData, secret: Secret) -> Numbers:
        """The same as whole numbers that can be summed, in the order of the tensors' names: sums in
        their own units, losses in units of ``channel.summands.UNIT``.

        Args:
            secret: of this exchange, from which a share of noise is drawn.
        """
        kind, tensors = self.asked(question)
        if kind == "sums" or kind in COUNTED:
            if kind in COUNTED:
                sums = self.numbers(kind, tensors, data)
            elif self.shares is not None:
                sums = self.shares.added(self.sums_of(tensors, data), self.targets, secret)
            else:
                sums = vars(self.sums_of(tensors, data))
            return np.concatenate([sums[n].numpy().ravel() for n in sorted(sums)])
        answer = (self.heads if kind == "heads" else self.losses)(tensors, data)
        return in_units(np.concatenate([answer[n].numpy().ravel() for n in sorted(answer)]))

    def asked(self, question: bytes) -> tuple[str, Params]:
        """Kind and tensors of a question about this task.

        Raises:
            ProtocolError: about another one, or of a kind that nobody answers.
        """
        kind, asked, tensors = decode_question(question)
        if asked != about(self.task):
            raise ProtocolError("the question is about another model, or another pooling of it")
        if kind not in ("sums", *COUNTED, "heads", "loss"):
            raise ProtocolError(f"a client is not asked '{kind}'")
        return kind, tensors

    def numbers(self, kind: str, tensors: Params, data: ClientData) -> Params:
        """Whole numbers about the words of these rows, int64.

        documents: -> ``documents`` [BUCKETS, 1], in how many rows each is, and ``n``, of how many.
        words: a bag (``buckets``, ``idf``) -> ``words`` [F, C + 1] (``by_target``).
        products: a bag and ``p`` [F, C], or several such side by side -> ``products`` like it.
        """
        rows, columns = self.rows_of(tensors, data), self.targets.columns
        if kind == "documents":
            row_E, bucket_E, _ = occurrences(*data.examples.tokens_of(rows))
            return {"documents": documents_of(row_E, bucket_E), "n": torch.tensor(len(rows))}
        bag, p_FC = _bag(tensors), tensors.get("p")
        entries = self.entries(bag, data, rows)
        if kind == "words":
            y_NC = self.targets.of(data.examples.labels[rows])
            return {"words": by_target(entries, y_NC, len(bag))}
        fits = p_FC is not None and p_FC.dim() == 2 and len(p_FC) == len(bag)
        if p_FC is None or not fits or not p_FC.shape[1] or p_FC.shape[1] % columns:
            raise ProtocolError("products are asked for of other words, or of other targets")
        return {"products": products(entries, len(rows), p_FC)}

    def sums_of(self, tensors: Params, data: ClientData) -> Sums:
        """``tensors``: the parameters of the body; none: the run's first ones."""
        targets, rows = self.targets, self.rows_of(tensors, data)
        body = _body(tensors)
        params, same = {**self.task.params, **body}, self.same_moved if body else self.same
        total = Sums.zero(targets.columns, self.task.params[names_of_head(self.task)[0]].shape[1])
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            x_ND = features(self.task, params, data.examples, part, self.batch_size, same)
            if self.radius is not None:
                x_ND = within(x_ND, self.radius)
            total = total.plus(Sums.of(x_ND, targets.of(data.examples.labels[part])))
        return total

    @property
    def targets(self) -> Targets:
        """What a head of this task is fitted to."""
        return targets_of_task(self.task)

    def heads(self, tensors: Params, data: ClientData) -> Params:
        """``weight`` [heads, C, D], ``bias`` [heads, C], perhaps a bag and what it says
        (``said`` [F, C]) -> what held-out rows say of them (``Targets.tried``). The parameters of
        the body are as for ``sums``."""
        weight_HCD, bias_HC = tensors["weight"].double(), tensors["bias"].double()
        params = {**self.task.params, **_body(tensors)}
        x_ND = features(self.task, params, data.examples, data.test, EVALUATION_BATCH).double()
        said_NC: torch.Tensor | None = None
        if "buckets" in tensors:
            tokens = data.examples.tokens_of(data.test)
            said_NC = Words(_bag(tensors), tensors["said"]).logits(*tokens, len(data.test))
        pairs = zip(weight_HCD, bias_HC, strict=True)
        logits = [x_ND @ weight_CD.T + bias_C for weight_CD, bias_C in pairs]
        return self.targets.tried(logits, said_NC, data.examples.labels[data.test])

    def rows_of(self, tensors: Params, data: ClientData) -> Indices:
        """The rows that a question is about, but for those of a class with too few."""
        which = int(tensors["rows"]) if "rows" in tensors else TRAINING
        if which not in (TRAINING, HELD_OUT, ALL):
            raise ProtocolError(f"there are no rows {which}")
        rows = {TRAINING: data.train, HELD_OUT: data.test}.get(which)
        rows = np.sort(np.concatenate([data.train, data.test])) if rows is None else rows
        if self.min_count > 1:
            rows = rows[self.targets.enough(data.examples.labels[rows], self.min_count)]
        if self.max_rows is not None and len(rows) > self.max_rows:
            rows = rows[np.arange(self.max_rows) * len(rows) // self.max_rows]
        return rows

    def entries(self, bag: Bag, data: ClientData, rows: Indices) -> Entries:
        """The bag's words in these rows; computed once."""
        key = hashlib.blake2b(rows.tobytes() + bag.buckets.numpy().tobytes()).digest()
        found = self.memory.get(key)
        if found is None:
            made = bag.entries(*data.examples.tokens_of(rows))
            if sum(n for n, _ in self.memory.values()) + len(rows) > REMEMBERED:
                self.memory.clear()
            found = self.memory[key] = (len(rows), made)
        return found[1]

    def losses(self, tensors: Params, data: ClientData) -> Params:
        """Parameters "0/name", "1/name", ... -> ``loss`` [sets], ``n`` (terms of the loss); where
        rows are right or wrong (``Objective.points``), too, ``right`` [sets], how many are, and
        ``apart`` [sets], by how many squares this differs row by row from the first set's. A set
        names what differs from the one before it. "words/...": what words add to the logits."""
        losses, points, weight, params = [], [], 0.0, self.task.params
        answered = self.task.objective.answered
        words = Words.told(below(tensors, WORDS))
        numbers = [int(n) for n in (name.split("/")[0] for name in tensors) if n != WORDS]
        for i in range(1 + max(numbers)):
            prefix = f"{i}/"
            given = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
            rows: Indices = data.test
            params = {**params, **given}
            around = nothing_around if self.around is None else self.around
            sums = self.task.evaluate(
                params, data.examples, rows, EVALUATION_BATCH, around, words, answered
            )
            losses.append(float(sums.get("loss_sum", 0.0)))
            weight = float(sums.get("weight", 0.0))
            points.append(torch.tensor(sums.get("points", []), dtype=torch.float64))
        double = torch.float64
        found = {"loss": torch.tensor(losses, dtype=double)}
        if answered:
            found["right"] = torch.stack([p.sum() for p in points])
            found["apart"] = torch.stack([((p - points[0]) ** 2).sum() for p in points])
        return {**found, "n": torch.tensor(weight, dtype=double)}


COUNTED = ("documents", "words", "products")
"""Questions about words, answered by whole numbers."""
_ASKED = ("weight", "bias", "buckets", "idf", "p", "said", "rows")


def _body(tensors: Params) -> Params:
    """Of a question's tensors, the parameters of the body."""
    return {n: x for n, x in tensors.items() if n not in _ASKED}


def _bag(tensors: Params) -> Bag:
    """Raises ProtocolError: a bag that is none."""
    buckets, idf = tensors.get("buckets"), tensors.get("idf")
    fits = (
        buckets is not None
        and idf is not None
        and buckets.dtype == torch.int32
        and buckets.dim() == 1
        and buckets.shape == idf.shape
        and not bool((buckets < 0).any() | (buckets >= BUCKETS).any())
    )
    if not fits:
        raise ProtocolError("these words are none")
    assert buckets is not None and idf is not None
    return Bag(buckets, idf)
