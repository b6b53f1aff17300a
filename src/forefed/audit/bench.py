"""The ladder of attacks on the messages of one size of client at one point of a run.

A0 labels, A1 the gradient, A2 and A3 tokens and features, and whether a guessed text is in it.

Axes: C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forefed.audit import labels as a0
from forefed.audit import synthetic
from forefed.audit.finding import Client, Finding, finding
from forefed.audit.layers import TokenLayers
from forefed.audit.membership import SAME, distance, scores
from forefed.audit.reading import Reading
from forefed.audit.rowspace import ranked_right, row_space
from forefed.audit.scalars import cosine
from forefed.audit.subject import Subject, summed
from forefed.audit.tokens import tokens_of
from forefed.audit.trials import (
    GUESSES,
    Auxiliary,
    Guess,
    Trial,
    client_rows,
    first_alone,
    guesses_at,
)
from forefed.core import trees
from forefed.core.keys import Key, Secret
from forefed.data.examples import Examples
from forefed.start.features import features, names_of_head

KNOWN = 4
"""Candidates where all other rows are known."""
LIKELY = 2
"""Labels of a candidate that are tried there, by its gradient; none is given."""
PLACES = 32
"""Longest text that the attack on tokens thinks of."""


@dataclass(frozen=True)
class Bench:
    """All attacks on one size of client at one point of the run."""

    subject: Subject
    client: Client
    trials: tuple[Trial, ...]
    aux: Auxiliary

    @staticmethod
    def of(subject: Subject, rows: int, trials: int, aux: Auxiliary) -> Bench:
        """Messages of one size of client."""
        steps = subject.steps(rows)
        made = []
        for t in range(trials):
            key = Key(subject.config.seed).fold("audit trial", rows, t)
            orders = subject.orders(t)
            order, own = orders[0], client_rows(subject, rows, key)
            others = [
                client_rows(subject, rows, key.fold("other", i)) for i in range(1, len(orders))
            ]
            secret = Secret.new()
            seen = subject.seen(order, own, secret)
            made.append(
                Trial(
                    order=order,
                    rows=own,
                    seen=synthetic.taken(own, seen),
                    target=int(seen[0]),
                    update=subject.seen_by_server(orders, [own, *others], secret),
                    others=tuple(zip(orders[1:], others, strict=True)),
                    reading=Reading.of(subject, order, steps),
                    key=key,
                )
            )
        client = Client(
            rows=rows,
            batch=subject.batch_size(rows),
            steps=steps,
            round=subject.state.round + 1,
            clients=subject.group,
        )
        return Bench(subject, client, tuple(made), aux)

    def findings(self, notes: list[str]) -> Iterator[Finding]:
        guesses = [guesses_at(self.subject, t.rows, t.target, t.key) for t in self.trials]
        if self.subject.classes:
            yield from self.of_labels()
        yield from self.of_gradient()
        yield from self.of_tokens(notes)
        yield from self.of_features()
        yield from self.of_membership(guesses)

    # A0

    def of_labels(self) -> Iterator[Finding]:
        classes, n = self.subject.classes, self.client.rows
        truths = [a0.counted(t.seen.labels.tolist(), classes) for t in self.trials]
        blind = [a0.matched(a0.even(int(truth.sum()), classes), truth) for truth in truths]
        chance = float(np.mean(blind)) if n > 1 else 1 / classes
        by_bias, by_mixture = [], []
        for trial, truth in zip(self.trials, truths, strict=True):
            bias = self.bias_of(trial)
            if bias is not None:
                if n == 1:
                    guess = a0.counted([a0.label_of(bias)], classes)
                else:
                    guess = a0.counts_of_bias(bias, len(trial.seen), self.aux.chances)
                by_bias.append(a0.matched(guess, truth))
            by_mixture.append(a0.matched(self.mixture(trial), truth))
        if by_bias:
            yield finding("A0", "labels, from the head's bias", self.client, by_bias, chance)
        name = "labels, by own rows' gradients"
        yield finding("A0", name, self.client, by_mixture, chance)

    def bias_of(self, trial: Trial) -> Tensor | None:
        """The mean gradient by the head's bias, where it was sent."""
        task = self.subject.task
        names = [n for n in trial.order.assigned if n in task.head and n.endswith(".bias")]
        one = [n for n in names if task.params[n].shape == (self.subject.classes,)]
        return trial.reading.gradient(trial.update)[one[0]].reshape(-1) if one else None

    def mixture(self, trial: Trial) -> a0.Counts:
        """Rows by class, as the mixture of the attacker's rows that is closest."""
        reading = trial.reading
        observed = reading.observed(trial.update)
        means = []
        for c in range(self.subject.classes):
            units = []
            for each in self.aux.gradients:
                x = reading.expected(each[c])
                units.append(x / x.norm().clamp_min(1e-300))
            means.append(torch.stack(units).mean(0))
        mu_CM = torch.stack(means)
        if self.client.rows == 1:
            return a0.counted([int(scores(observed, list(mu_CM)).argmax())], len(mu_CM))
        return a0.counts_of_gradient(mu_CM @ observed, mu_CM @ mu_CM.T, len(trial.seen))

    # A1

    def of_gradient(self) -> Iterator[Finding]:
        values = []
        for trial in self.trials:
            found = trial.reading.gradient(trial.update)
            truth = self.subject.mean_gradient(trial.seen)
            names = [n for n in trial.order.assigned if n in found]
            flat = [trees.flatten(trees.pick(x, names)) for x in (found, truth)]
            values.append(cosine(*flat))
        note = "of the mean gradient at the parameters that were sent"
        yield finding("A1", "gradient", self.client, values, 0.0, "cosine", note)

    # A2 and A3

    def of_tokens(self, notes: list[str]) -> Iterator[Finding]:
        subject = self.subject
        where = embedding_names(subject)
        ordinary = set(subject.vocabulary.tolist())
        truths = [set(t.seen.tokens.tolist()) & ordinary for t in self.trials]
        common = np.bincount(
            synthetic.taken(subject.rows, subject.auxiliary).tokens,
            minlength=int(subject.vocabulary.max()) + 1,
        )
        frequent = torch.from_numpy(common).double()
        others = [i for i in range(len(frequent)) if i not in ordinary]
        frequent[others] = -1
        chance = float(np.mean([ranked_right(frequent, truth) for truth in truths]))
        if where:
            found = []
            for trial, truth in zip(self.trials, truths, strict=True):
                change = trial.update.grad or {}
                sets = [tokens_of(change[n]) for n in where if n in change]
                seen = set().union(*sets) & ordinary
                found.append(len(seen & truth) / max(len(seen | truth), 1))
            yield finding("A2", "tokens, from the embeddings", self.client, found, chance)
        else:
            notes.append("A2: the embeddings are frozen and do not travel: no token is read off")
        names = [n for n in self.trials[0].order.assigned if n in subject.shared]
        layers = TokenLayers.of(subject.task, names)
        if not layers.names:
            notes.append("A3: no matrix that travels reads single tokens")
            return
        bases = []
        for trial in self.trials:
            found_g = trial.reading.gradient(trial.update)
            bases.append(row_space([found_g[n] for n in layers.names]))
        longest = int(np.max(synthetic.taken(subject.rows, subject.auxiliary).lengths()))
        places = min(PLACES, longest)
        by_token = layers.scores(bases, subject.vocabulary, places)
        values = []
        for scores_V, truth in zip(by_token, truths, strict=True):
            right = set(np.flatnonzero(np.isin(subject.vocabulary, list(truth))).tolist())
            values.append(ranked_right(scores_V, right))
        note = f"{max(len(b) for b in bases)} dimensions of {len(layers.names)} matrices"
        yield finding(
            "A3", "tokens, from the first block's rows", self.client, values, chance, note=note
        )

    def of_features(self) -> Iterator[Finding]:
        """The head's input of the one row, from the head's own gradient."""
        subject, head = self.subject, self.subject.task.head
        sent = [n for n in self.trials[0].order.assigned if n in head]
        if self.client.rows > 1 or not subject.classes or len(sent) != 2 or len(head) != 2:
            return
        weight, bias = names_of_head(subject.task)
        values = []
        for trial in self.trials:
            g = trial.reading.gradient(trial.update)
            label = a0.label_of(g[bias])
            found = g[weight][label] / g[bias][label]
            params = {**subject.task.params, **self.subject.state.params}
            truth = features(subject.task, params, trial.rows, np.arange(1), 1)[0]
            values.append(cosine(found, truth))
        yield finding("A3", "features of the head's input", self.client, values, 0.0, "cosine")

    # membership

    def of_membership(self, guesses: list[list[Guess]]) -> Iterator[Finding]:
        subject, n = self.subject, self.client.rows
        by_cosine, by_loss, exact, known = [], [], [], []
        for trial, candidates in zip(self.trials, guesses, strict=True):
            observed = trial.reading.observed(trial.update)
            values, gaps, likely = [], [], []
            for guess in candidates:
                each, losses = self.expected_of(trial, guess.row)
                found = scores(observed, each)
                values.append(float(found.max()))
                likely.append(found.argsort(descending=True)[:LIKELY].tolist())
                told = trial.update.metrics.get("loss")
                if told is not None:
                    gaps.append(min(abs(loss - told) for loss in losses))
            by_cosine.append(first_alone(values))
            if n == 1 and self.client.steps == 1:
                by_loss += [first_alone([-g for g in gaps])] if gaps else []
                hits = []
                for guess, tried in zip(candidates, likely, strict=True):
                    row = self.labelled(guess.row, tried[0])
                    again = subject.guessed(trial.order, row)
                    hits.append(distance(trial.update, again) < SAME)
                exact.append(float(hits[0] and not any(hits[1:])))
            if n > 1 or trial.others:
                known.append(self.with_others_known(trial, candidates, likely))
        chance, client = 1 / GUESSES, self.client
        yield finding("membership", "a guessed text, by its gradient", client, by_cosine, chance)
        if by_loss:
            yield finding("membership", "a guessed text, by the loss", client, by_loss, chance)
        if exact:
            name = "a guessed text, recomputed to the bit"
            yield finding("membership", name, client, exact, 0.0, note="and no other one fits")
        if known:
            name = "a guessed text, all other rows known"
            yield finding("membership", name, client, known, 1 / KNOWN)

    def expected_of(self, trial: Trial, row: Examples) -> tuple[list[Tensor], list[float]]:
        """Of one candidate under every label: the message and the loss that it would give."""
        found = self.subject.by_label(row, 0)
        return [trial.reading.expected(g) for _, g in found], [loss for loss, _ in found]

    def labelled(self, row: Examples, label: int) -> Examples:
        return synthetic.relabelled(row, [label]) if self.subject.classes else row

    def with_others_known(
        self, trial: Trial, candidates: list[Guess], labels: list[list[int]]
    ) -> float:
        """The adversary of DP's definition: all of the client's rows but one are known to it.

        Args:
            labels: of every candidate those that its gradient made likely.
        """
        others = [self.subject.guessed(order, rows) for order, rows in trial.others]
        few = [0, 1, *range(len(candidates) - KNOWN + 2, len(candidates))]
        before = list(range(trial.target))
        after = list(range(trial.target + 1, self.client.rows))
        gaps = []
        for at in few:
            each = []
            for label in labels[at]:
                rows = synthetic.joined(
                    *([synthetic.taken(trial.rows, before)] if before else []),
                    self.labelled(candidates[at].row, label),
                    *([synthetic.taken(trial.rows, after)] if after else []),
                )
                again = summed([self.subject.guessed(trial.order, rows), *others])
                each.append(distance(trial.update, again))
            gaps.append(min(each))
        return first_alone([-g for g in gaps])


def embedding_names(subject: Subject) -> list[str]:
    """Parameters that travel and have a row per token of the vocabulary."""
    embeddings: Any = subject.task.model.get_base_model().get_input_embeddings()
    count = embeddings.num_embeddings
    return [
        n for n in subject.shared if "embed" in n and subject.task.params[n].shape[:1] == (count,)
    ]
