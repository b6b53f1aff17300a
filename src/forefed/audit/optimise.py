"""A4: a text, by optimising one until its gradient is the message's.

Sources: Zhu et al., "Deep leakage from gradients" (arXiv 1906.08935) for the idea; LAMP (Balunovic
et al., arXiv 2202.08827) for text: embeddings are optimised on the cosine with the gradient, and
then tokens are exchanged, where a language model judges them too. Departures: the language model is
one of pairs of tokens, counted in rows of the attacker's own; tokens are exchanged one at a time
from the nearest ones, the likely ones and those that the client's other tokens are.

Nothing is given: the label is that of A0, lengths and special tokens are those of the attacker's
own rows, one per restart, and the restart is chosen by the attacker's own objective.

Axes: S positions, D width of an embedding, V tokens.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from forefed.audit import synthetic
from forefed.audit.bench import Bench
from forefed.audit.finding import Finding, finding
from forefed.audit.subject import Subject
from forefed.audit.trials import Auxiliary, Trial
from forefed.core.keys import Key
from forefed.core.types import Batch, Params

STEPS, RATE, RESTARTS, PRIOR = 300, 0.1, 4, 0.1
RAMP_UP, RAMP_DOWN = 0.05, 0.75
"""Of the steps: in which the rate grows to its value, and in which it falls to 0."""
NEAREST, LIKELY, PASSES = 8, 4, 2
"""Tokens that are tried at a position, and how often all positions are gone through."""
MOST_TRIALS = 12


@dataclass(frozen=True)
class Pairs:
    """How likely a token follows another: a language model of pairs, smoothed by single tokens."""

    pairs: dict[int, Counter[int]]
    single: Counter[int]
    vocabulary: int

    @staticmethod
    def of(rows: Sequence[Sequence[int]], vocabulary: int) -> Pairs:
        pairs: dict[int, Counter[int]] = defaultdict(Counter)
        single: Counter[int] = Counter()
        for tokens in rows:
            single.update(tokens)
            for a, b in pairwise(tokens):
                pairs[a][b] += 1
        return Pairs(dict(pairs), single, vocabulary)

    def surprise(self, tokens: Sequence[int]) -> float:
        """Mean negative log-likelihood of a token, as a share of that of a random one."""
        total = 0.0
        for a, b in pairwise(tokens):
            alone = (self.single[b] + 1) / (self.single.total() + self.vocabulary)
            after = self.pairs.get(a, Counter())
            total -= math.log((after[b] + alone) / (after.total() + 1))
        return total / max(1, len(tokens) - 1) / math.log(self.vocabulary)

    def after(self, token: int, count: int) -> list[int]:
        return [b for b, _ in self.pairs.get(token, Counter()).most_common(count)]


@dataclass(frozen=True)
class Inversion:
    """The attack on one message: ``target`` is the gradient that was read from it."""

    subject: Subject
    target: Params
    label: int
    prior: Pairs
    steps: int = STEPS

    def __post_init__(self) -> None:
        assert self.target, "a message without a number"

    @property
    def embeddings_VD(self) -> Tensor:
        weight: Tensor = self.subject.task.model.get_base_model().get_input_embeddings().weight
        return weight.detach().float()

    def gap(self, x_SD: Tensor, create: bool) -> Tensor:
        """1 - cosine of the gradient of a text with the target."""
        subject = self.subject
        fixed = {**subject.task.params, **subject.state.params}
        leaves = {n: fixed[n].detach().requires_grad_(True) for n in self.target}
        inputs = {"inputs_embeds": x_SD[None], "attention_mask": torch.ones(1, len(x_SD)).long()}
        batch = Batch(inputs, torch.tensor([self.label]))
        loss = subject.task.loss({**fixed, **leaves}, batch)
        grads = torch.autograd.grad(
            loss, list(leaves.values()), create_graph=create, allow_unused=True
        )
        pairs = [
            (g.flatten(), self.target[n].flatten().float())
            for n, g in zip(leaves, grads, strict=True)
            if g is not None
        ]
        dot = torch.stack([torch.dot(g, t) for g, t in pairs]).sum()
        square = torch.stack([torch.dot(g, g) for g, _ in pairs]).sum()
        size = math.sqrt(sum(float(torch.dot(t, t)) for _, t in pairs))
        return 1 - dot / (square.sqrt() * size).clamp_min(1e-20)

    def objective(self, tokens: Sequence[int]) -> float:
        gap = float(self.gap(self.embeddings_VD[list(tokens)], create=False).detach())
        return gap + PRIOR * self.prior.surprise(tokens)

    def continuous(self, template: Sequence[int], free: Sequence[int], key: Key) -> Tensor:
        """Embeddings [S, D] by Adam from those of random tokens; the others stay as they are."""
        e_VD = self.embeddings_VD
        ids = list(template)
        vocabulary = self.subject.vocabulary
        for at, i in zip(free, key.integers(len(free), len(vocabulary)).tolist(), strict=True):
            ids[at] = int(vocabulary[i])
        x_SD = e_VD[ids].clone()
        mask_S1 = torch.zeros(len(ids), 1)
        mask_S1[list(free)] = 1
        usual = float(e_VD.std())
        m, v = torch.zeros_like(x_SD), torch.zeros_like(x_SD)
        for step in range(1, self.steps + 1):
            leaf = x_SD.detach().requires_grad_(True)
            # the fused ways of attention have no second derivative
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                (g,) = torch.autograd.grad(self.gap(leaf, create=True), [leaf])
            g = g * mask_S1
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            move = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-12)
            x_SD = x_SD - _rate(step, self.steps) * usual * move
        return x_SD.detach()

    def discrete(
        self, x_SD: Tensor, template: Sequence[int], free: Sequence[int]
    ) -> tuple[list[int], float]:
        """Tokens near these embeddings, exchanged one by one where the objective falls."""
        ordinary = torch.from_numpy(self.subject.vocabulary)
        e_VD = torch.nn.functional.normalize(self.embeddings_VD[ordinary], dim=1)
        near_SV = torch.nn.functional.normalize(x_SD, dim=1) @ e_VD.T
        nearest = ordinary[near_SV.topk(min(NEAREST, len(ordinary)), dim=1).indices].tolist()
        tokens = [nearest[i][0] if i in free else t for i, t in enumerate(template)]
        best = self.objective(tokens)
        for _ in range(PASSES):
            before = list(tokens)
            for at in free:
                likely = self.prior.after(tokens[at - 1], LIKELY) if at else []
                for token in dict.fromkeys([*nearest[at], *likely, *(tokens[i] for i in free)]):
                    tried = [*tokens[:at], token, *tokens[at + 1 :]]
                    value = self.objective(tried) if token != tokens[at] else best
                    if value < best:
                        tokens, best = tried, value
            if tokens == before:
                break
        return tokens, best

    def rebuilt(self, templates: Sequence[Sequence[int]], key: Key) -> list[int]:
        """The tokens of the best restart; each has the length of one of the templates."""
        ordinary = set(self.subject.vocabulary.tolist())
        found = []
        for number, template in enumerate(templates):
            free = [i for i, token in enumerate(template) if token in ordinary]
            x_SD = self.continuous(template, free, key.fold(number))
            found.append(self.discrete(x_SD, template, free))
        return min(found, key=lambda one: one[1])[0]


def _rate(step: int, steps: int) -> float:
    up = min(1.0, step / max(1.0, RAMP_UP * steps))
    down = min(1.0, (steps - step) / max(1.0, RAMP_DOWN * steps))
    return RATE * up * down


def of_texts(
    subject: Subject,
    trials: int,
    aux: Auxiliary,
    say: Callable[[str], None],
    steps: int = STEPS,
    restarts: int = RESTARTS,
) -> Iterator[Finding]:
    """The share of a client's tokens that are rebuilt, for a client with one row; nothing for tasks
    without classes."""
    if not subject.classes:
        return
    bench = Bench.of(subject, 1, min(trials, MOST_TRIALS), aux)
    ordinary = set(subject.vocabulary.tolist())
    values, blind = [], []
    for number, trial in enumerate(bench.trials, 1):
        say(f"rebuilding text {number} of {len(bench.trials)} by optimisation")
        others = own_rows(subject, trial)
        attack = Inversion(
            subject,
            trial.reading.gradient(trial.update),
            int(bench.mixture(trial).argmax()),
            Pairs.of(others, int(subject.vocabulary.max()) + 1),
            steps,
        )
        tokens = attack.rebuilt(others[:restarts], trial.key.fold("restarts"))
        truth = Counter(t for t in trial.seen.tokens.tolist() if t in ordinary)
        values.append(overlap(Counter(tokens), truth))
        blind.append(float(np.mean([overlap(Counter(row), truth) for row in others])))
    yield finding("A4", "tokens, by optimisation", bench.client, values, float(np.mean(blind)))


def own_rows(subject: Subject, trial: Trial) -> list[list[int]]:
    """Token lists of rows of the attacker's own, none of them the client's."""
    mine = synthetic.taken(subject.rows, subject.auxiliary)
    spare = subject.drawn(len(subject.rows) - len(subject.auxiliary), trial.key.fold("spare"))
    rows = synthetic.joined(mine, synthetic.taken(subject.rows, spare))
    parts = [rows.tokens[a:b] for a, b in pairwise(rows.offsets)]
    theirs = {trial.rows.tokens[a:b].tobytes() for a, b in pairwise(trial.rows.offsets)}
    return [part.tolist() for part in parts if part.tobytes() not in theirs]


def overlap(found: Counter[int], truth: Counter[int]) -> float:
    """Share of the true tokens, each counted as often as it occurs, that were found."""
    return (found & truth).total() / max(1, truth.total())
