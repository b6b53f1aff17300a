"""Attacks on what is sent before round 1: the sums of the closed-form start, counts of words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from forefed.audit import labels as a0
from forefed.audit.finding import Client, Finding, finding
from forefed.audit.subject import Subject, everything, sums_of
from forefed.audit.trials import GUESSES, client_rows, first_alone, guesses_at
from forefed.core.keys import Key
from forefed.models.bag_of_words import occurrences
from forefed.run.build import answers, start_at
from forefed.start import words_of
from forefed.start.features import features
from forefed.start.sums import STEP


def of_start(subject: Subject, trials: int) -> Iterator[Finding]:
    """The sums of one client, asked before round 1."""
    start = start_at(subject.config, subject.task)
    if start is None or not subject.classes:
        return
    params = subject.task.params
    for n in subject.sizes:
        client = Client(rows=n, batch=n, steps=0, round=0, clients=subject.group)
        counts, alone, span = [], [], []
        blind = []
        for t in range(trials):
            key = Key(subject.config.seed).fold("audit start", n, t)
            rows = client_rows(subject, n, key)
            also = [client_rows(subject, n, key.fold("other", i)) for i in range(1, subject.group)]
            sums = sums_of(subject, [rows, *also])
            truth = a0.counted(rows.labels.tolist(), subject.classes)
            read = sums.y.numpy()
            counts.append(a0.matched(a0.rounded(read.astype(float), n), truth))
            blind.append(a0.matched(a0.even(n, subject.classes), truth))
            guesses = guesses_at(subject, rows, 0, key)
            x_ND = torch.cat(
                [features(subject.task, params, g.row, np.arange(1), 1) for g in guesses]
            ).double()
            lonely = np.flatnonzero(read == 1)
            of_own = [c for c in lonely if c in rows.labels]
            if of_own:
                at = int(np.flatnonzero(rows.labels == of_own[0])[0])
                own = features(subject.task, params, rows, np.array([at]), 1).double()
                told = sums.real()[1][of_own[0]]
                tried_ND = (torch.cat([own, x_ND[1:]]) / STEP).round() * STEP
                gaps = (tried_ND - told).norm(dim=1)
                alone.append(first_alone((-gaps).tolist()))
            rounded_ND = (x_ND / STEP).round() * STEP
            span.append(first_alone((-residuals(sums.real()[2], rounded_ND)).tolist()))
        chance = float(np.mean(blind)) if n > 1 else 1 / subject.classes
        yield finding("start", "labels, from the counts", client, counts, chance)
        if alone:
            name = "a guessed text alone in its class, by its features"
            note = f"some row is alone in {len(alone)} of {trials} clients"
            yield finding("start", name, client, alone, 1 / GUESSES, note=note)
        name = "a guessed text, by the span of the features"
        yield finding("start", name, client, span, 1 / GUESSES)
        if words_of(subject.config, pooling_of(subject)):
            yield of_words(subject, client, trials)


def pooling_of(subject: Subject) -> str:
    return str(getattr(subject.task.model.get_base_model(), "pooling", "pooler"))


def of_words(subject: Subject, client: Client, trials: int) -> Finding:
    """The tokens of a client, from the counts of words: each token of the vocabulary has a bucket,
    and where nobody counted in it, it does not occur."""
    answer = answers(subject.config, subject.task, None)
    ids = torch.from_numpy(subject.vocabulary)
    _, bucket_V, _ = occurrences(torch.arange(len(ids)), ids)
    values, blind = [], []
    for t in range(trials):
        key = Key(subject.config.seed).fold("audit words", client.rows, t)
        rows = client_rows(subject, client.rows, key)
        others = [
            client_rows(subject, client.rows, key.fold("other", i)) for i in range(1, subject.group)
        ]
        counts = torch.stack(
            [
                answer.numbers("documents", {}, everything(some))["documents"][:, 0]
                for some in (rows, *others)
            ]
        ).sum(0)
        found = set(ids[counts[bucket_V] > 0].tolist())
        stranger = client_rows(subject, client.rows, key.fold("stranger"))
        truth, guess = (set(r.tokens.tolist()) & set(ids.tolist()) for r in (rows, stranger))
        values.append(len(found & truth) / max(1, len(found | truth)))
        blind.append(len(guess & truth) / max(1, len(guess | truth)))
    note = "share of the tokens found or there that are both"
    name = "tokens, from the counts of words"
    return finding("start", name, client, values, float(np.mean(blind)), note=note)


def residuals(xx_DD: Tensor, x_ND: Tensor) -> Tensor:
    """How much of each candidate lies outside of what the sums of products span: [N], 0 to 1."""
    values, vectors = torch.linalg.eigh(xx_DD)
    spanned = vectors[:, values > 1e-6 * values.max().clamp_min(1e-300)]
    if spanned.shape[1] == 0:
        return torch.zeros(len(x_ND), dtype=torch.float64)
    left = x_ND - x_ND @ spanned @ spanned.T
    return left.norm(dim=1) / x_ND.norm(dim=1).clamp_min(1e-300)
