"""The client's half: what it answers about its own rows. Only sums leave.

    "sums"   its training rows' sums (``Sums``), for the head in closed form
    "heads"  its held-out rows' losses under several heads on the same features
    "loss"   its held-out rows' losses under several sets of parameters

Held-out rows are the client's own test split (``data.client_test_fraction``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import nll_loss

from forefed.core.errors import ProtocolError
from forefed.core.types import Params
from forefed.data.examples import ClientData, Indices
from forefed.local.summed import Numbers, whole
from forefed.models.task import Around, Task
from forefed.start.closed_form import SCALES
from forefed.start.features import features, names_of_head
from forefed.start.private import within
from forefed.start.sums import STEP, Sums
from forefed.wire.questions import decode_question, encode_answer

Answer = Callable[[bytes, ClientData], bytes]
EVALUATION_BATCH = 32
AT_ONCE = 4096
"""Rows whose features are held at once."""


def about(task: Task) -> str:
    """What sums of this task's features belong to."""
    base = task.model.get_base_model()
    said = (task.base_name, getattr(base, "pooling", ""), getattr(base, "layers", ()), STEP)
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

    def __call__(self, question: bytes, data: ClientData) -> bytes:
        """Raises ProtocolError: a question about another model, or features that are no numbers."""
        kind, tensors = self.asked(question)
        known = {"sums": self.sums, "heads": self.heads, "loss": self.losses}
        return encode_answer(kind, about(self.task), known[kind](tensors, data))

    def whole(self, question: bytes, data: ClientData) -> Numbers:
        """The same as whole numbers that can be summed, in the order of the tensors' names: sums in
        their own units, losses in units of ``local.summed.UNIT``."""
        kind, tensors = self.asked(question)
        if kind == "sums":
            sums = vars(self.sums_of(tensors, data))
            return np.concatenate([sums[n].numpy().ravel() for n in sorted(sums)])
        answer = (self.heads if kind == "heads" else self.losses)(tensors, data)
        return whole(np.concatenate([answer[n].numpy().ravel() for n in sorted(answer)]))

    def asked(self, question: bytes) -> tuple[str, Params]:
        """Kind and tensors of a question about this task.

        Raises:
            ProtocolError: about another one, or of a kind that nobody answers.
        """
        kind, asked, tensors = decode_question(question)
        if asked != about(self.task):
            raise ProtocolError("the question is about another model, or another pooling of it")
        if kind not in ("sums", "heads", "loss"):
            raise ProtocolError(f"a client is not asked '{kind}'")
        return kind, tensors

    def sums(self, tensors: Params, data: ClientData) -> Params:
        return self.sums_of(tensors, data).packed()

    def sums_of(self, tensors: Params, data: ClientData) -> Sums:
        """``tensors``: the parameters of the body; none: the run's first ones."""
        classes = self.task.n_labels
        labels = data.examples.labels[data.train]
        counts = np.bincount(labels, minlength=classes)
        rows = data.train[(counts >= self.min_count)[labels]][: self.max_rows]
        params = {**self.task.params, **tensors}
        total = Sums.zero(classes, self.task.params[names_of_head(self.task)[0]].shape[1])
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            x_ND = features(self.task, params, data.examples, part, self.batch_size)
            if self.radius is not None:
                x_ND = within(x_ND, self.radius)
            labels_N = torch.from_numpy(data.examples.labels[part])
            total = total.plus(Sums.of(x_ND, labels_N, classes))
        return total

    def heads(self, tensors: Params, data: ClientData) -> Params:
        """``weight`` [heads, C, D], ``bias`` [heads, C] -> ``loss`` and ``flat`` [heads, SCALES]
        (of the row's label; the mean over all labels), ``correct`` [heads], ``n``: sums over rows.
        The parameters of the body are as for ``sums``."""
        body = {n: x for n, x in tensors.items() if n not in ("weight", "bias")}
        weight_HCD, bias_HC = tensors["weight"].double(), tensors["bias"].double()
        params = {**self.task.params, **body}
        x_ND = features(self.task, params, data.examples, data.test, EVALUATION_BATCH).double()
        labels_N = torch.from_numpy(data.examples.labels[data.test])
        losses, flat, correct = [], [], []
        for weight_CD, bias_C in zip(weight_HCD, bias_HC, strict=True):
            logits_NC = x_ND @ weight_CD.T + bias_C
            logs = [(s * logits_NC).log_softmax(1) for s in SCALES]
            losses.append(torch.stack([nll_loss(x, labels_N, reduction="sum") for x in logs]))
            flat.append(torch.stack([-x.mean(1).sum() for x in logs]))
            correct.append((logits_NC.argmax(1) == labels_N).sum().double())
        n = torch.tensor(float(len(labels_N)), dtype=torch.float64)
        sums = {"loss": losses, "flat": flat, "correct": correct}
        return {**{name: torch.stack(parts) for name, parts in sums.items()}, "n": n}

    def losses(self, tensors: Params, data: ClientData) -> Params:
        """Parameters "0/name", "1/name", ... -> ``loss`` [sets], ``n`` (terms of the loss). A set
        names what differs from the one before it."""
        losses, weight, params = [], 0.0, self.task.params
        for i in range(1 + max(int(name.split("/")[0]) for name in tensors)):
            prefix = f"{i}/"
            given = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
            rows: Indices = data.test
            params = {**params, **given}
            around = {} if self.around is None else {"around": self.around}
            sums = self.task.evaluate(params, data.examples, rows, EVALUATION_BATCH, **around)
            losses.append(float(sums.get("loss_sum", 0.0)))
            weight = float(sums.get("weight", 0.0))
        double = torch.float64
        return {"loss": torch.tensor(losses, dtype=double), "n": torch.tensor(weight, dtype=double)}
