"""The audit: the ladder of attacks on messages of the run's own client.

Source: shared measures of gradient leakage (labels, tokens, rows), each by an attack that knows the
configuration, its defences and all keys that are public; nothing is given to it for free but what
is said beside its number. Every number stands beside the rows, the batch size and the steps of the
client that it is of.

Axes: C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
from forefed.audit.subject import Subject, everything, subject_of, summed, sums_of
from forefed.audit.tokens import tokens_of
from forefed.config.config import Config
from forefed.config.reveals import protections, remedy_of, reveals
from forefed.core import trees
from forefed.core.keys import Key, Secret
from forefed.core.types import Json, Order, Params, Update
from forefed.data.examples import Examples
from forefed.models.words import occurrences
from forefed.run.build import answers, start_at
from forefed.start import words_of
from forefed.start.features import features, names_of_head
from forefed.start.sums import STEP

TRIALS = 12
GUESSES = 12
"""Candidates of a guess: the client's own row, near copies of it (one word exchanged), others."""
NEAR = 5
KNOWN = 4
"""Candidates where all other rows are known."""
LIKELY = 2
"""Labels of a candidate that are tried there, by its gradient; none is given."""
PLACES = 32
"""Longest text that the attack on tokens thinks of."""
MOST_GRADIENTS = 40_000_000
"""Numbers of auxiliary gradients that are held."""


@dataclass(frozen=True)
class Audit:
    """What ``forefed audit`` found."""

    config: Config
    about: Json
    findings: tuple[Finding, ...]
    line: str
    notes: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """The worst cases in plain words, one sentence for each size of client."""
        by_client: dict[str, list[Finding]] = {}
        for one in self.findings:
            if one.leaks:
                by_client.setdefault(sender(one), []).append(one)
        return [
            f"{who}: {'; '.join(said(f) for f in sorted(some, key=lambda f: -f.gain))}"
            for who, some in by_client.items()
        ]

    def to_json(self) -> Json:
        return {
            **self.about,
            "reveals": self.line,
            "findings": [f.to_json() for f in self.findings],
            "sentences": self.sentences(),
            "remedy": remedy_of(self.config),
            "notes": list(self.notes),
        }


def audit(
    config: Config,
    run: Path | None = None,
    *,
    trials: int = TRIALS,
    own_rows: bool = False,
    optimise: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Audit:
    """Measure what one client's message tells a server that is honest but curious.

    Args:
        config: whose client, channel and protections.
        run: a run of it; its parameters are then those of the later round.
        trials: messages per attack, size of client and round.
        own_rows: make messages of the configuration's own rows, not of synthetic ones.
        optimise: rebuild texts by optimisation, too (A4; minutes).
        say: told what is being done.

    Raises:
        UserError: a configuration that cannot work.
    """
    subject = subject_of(config, run, own_rows, trials, say)
    findings: list[Finding] = []
    notes: list[str] = []
    aux = Auxiliary.of(subject)
    for rows in subject.sizes:
        say(f"clients with {rows} rows: {trials} messages")
        findings += Bench.of(subject, rows, trials, aux).findings(notes)
    say("what is sent before round 1")
    findings += of_start(subject, trials)
    if optimise:
        from forefed.audit.optimise import of_texts

        findings += of_texts(subject, trials, aux, say)
    made_of = "the configuration's own rows" if own_rows else "synthetic rows"
    lengths = subject.rows.lengths()
    about: Json = {
        "name": config.name,
        "strategy": config.strategy.name,
        "model": config.model.name,
        "rows": made_of,
        "tokens": int(np.median(lengths)),
        "typical_rows": subject.typical,
        "classes": subject.classes,
        "trials": trials,
        "parameters": sum(subject.task.params[n].numel() for n in subject.shared),
        "clients_in_a_message": subject.group,
        "protections": protections(config),
    }
    return Audit(config, about, tuple(findings), reveals(config), tuple(dict.fromkeys(notes)))


@dataclass(frozen=True)
class Guess:
    """One candidate row, as an attacker thinks of it."""

    row: Examples
    right: bool


@dataclass(frozen=True)
class Trial:
    """One client's message and what is to be found out: ``rows`` are all of the client's, ``seen``
    those that the message is made of, ``target`` one of them by its place in ``rows``; ``others``
    are the clients that are in one sum with it."""

    order: Order
    rows: Examples
    seen: Examples
    target: int
    update: Update
    reading: Reading
    key: Key
    others: tuple[tuple[Order, Examples], ...] = ()


@dataclass(frozen=True)
class Auxiliary:
    """The attacker's own rows: their gradients by row and label, and the model's mean
    probabilities of the classes [C] on them."""

    gradients: tuple[tuple[Params, ...], ...] = ()
    chances: Tensor = field(default_factory=lambda: torch.zeros(0))

    @staticmethod
    def of(subject: Subject) -> Auxiliary:
        """Nothing, where rows have no classes."""
        if not subject.classes:
            return Auxiliary()
        params = subject.state.params
        size = sum(subject.task.params[n].numel() for n in subject.shared)
        some = subject.auxiliary[: max(2, MOST_GRADIENTS // max(1, size * subject.classes))]
        gradients = tuple(tuple(g for _, g in subject.by_label(subject.rows, int(i))) for i in some)
        with torch.no_grad():
            logits = subject.task.logits(
                {**subject.task.params, **params}, subject.rows.batch(some)
            )
        return Auxiliary(gradients, logits.double().softmax(1).mean(0).cpu())


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


def client_rows(subject: Subject, count: int, key: Key) -> Examples:
    """The rows of one client: synthetic ones with labels as unlike as clients' are."""
    rows = synthetic.taken(subject.rows, subject.drawn(count, key.fold("rows")))
    if subject.own or not subject.classes:
        return rows
    return synthetic.relabelled(rows, synthetic.skewed(count, subject.classes, key.fold("labels")))


def guesses_at(subject: Subject, rows: Examples, target: int, key: Key) -> list[Guess]:
    """The right row first; the attacker scores all alike."""
    right = synthetic.taken(rows, [target])
    near = [
        Guess(synthetic.near_copy(right, key.fold("near", i), subject.vocabulary), False)
        for i in range(NEAR)
    ]
    inside = {rows.tokens[a:b].tobytes() for a, b in _ends(rows)}
    far: list[Guess] = []
    for i in subject.drawn(len(subject.rows) - len(subject.auxiliary), key.fold("far")):
        if len(far) == GUESSES - NEAR - 1:
            break
        other = synthetic.taken(subject.rows, [int(i)])
        if other.tokens.tobytes() not in inside:
            far.append(Guess(other, False))
    return [Guess(right, True), *near, *far]


def first_alone(values: Sequence[float]) -> float:
    """1 where the first one, which is right, is the largest; a tie is as good as its draw."""
    top = max(values)
    ties = sum(v == top for v in values)
    return 1 / ties if values[0] == top else 0.0


def _ends(rows: Examples) -> Iterator[tuple[int, int]]:
    for i in range(len(rows)):
        yield int(rows.offsets[i]), int(rows.offsets[i + 1])


def embedding_names(subject: Subject) -> list[str]:
    """Parameters that travel and have a row per token of the vocabulary."""
    embeddings: Any = subject.task.model.get_base_model().get_input_embeddings()
    count = embeddings.num_embeddings
    return [
        n for n in subject.shared if "embed" in n and subject.task.params[n].shape[:1] == (count,)
    ]


# What the closed-form start sends.


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


def sender(one: Finding) -> str:
    """Whose message a finding is of."""
    if one.step == "start":
        rows = f"{one.client.rows:,} row{'' if one.client.rows == 1 else 's'}"
        return f"of a client with {rows}, what is sent before round 1 tells"
    return f"of a client with {one.client}, one message tells"


def said(one: Finding) -> str:
    """What was learnt, and how surely."""
    if one.measure == "cosine":
        return f"{one.attack} (cosine {one.value:.2f})"
    return f"{one.attack} ({one.value:.0%} of {one.trials}; a guess {one.chance:.0%})"
