"""`python -m benchmarks.robust_words`: what lies in words' sums cost, and what bounds leave of it.

TREC: features of ``benchmarks.robust`` and the words of 5,452 training rows, less 500 held out that
choose how much words count (honest, as what is measured is the sums); 50 clients, Dirichlet 1.0,
of whom 12 lie about words and nothing else. "Believed": all sums are added up. "Bounded": whoever
tells what no rows have (``start.word_scores``) is left out, with its features. Three seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.first_model import read
from benchmarks.robust import CLIENTS, SEEDS, rows
from benchmarks.robust_start import CLASSES, HOSTILE, sums
from benchmarks.table import markdown
from forefed.core.errors import ProtocolError
from forefed.core.keys import Key
from forefed.data.encoding import encode_texts
from forefed.data.partition import Dirichlet
from forefed.models.bag_of_words import Words, occurrences
from forefed.models.load import load_tokenizer
from forefed.models.settings import ModelSettings
from forefed.start.solver import Solver
from forefed.start.sums import Sums
from forefed.start.word_scores import (
    Descent,
    by_target,
    check_products,
    check_words,
    documents_of,
    kept,
    products,
    solved,
)

Lie = Callable[[str, Tensor], Tensor]
HELD = 500


def turned(times: int) -> Lie:
    """What is true of a target is told of the next one, so many times."""

    def lie(kind: str, told: Tensor) -> Tensor:
        targets = told[:, :6].roll(1, 1)
        return times * torch.cat([targets, told[:, 6:]], 1)

    return lie


LIES: dict[str, Lie] = {
    "none": lambda kind, told: told,
    "the next class's": turned(1),
    "the next class's, times 1,000": turned(1000),
    "products times -1,000": lambda kind, told: told * (-1000 if kind == "products" else 1),
    "half a thousand words of one class": lambda kind, told: flooded(kind, told),
}


def flooded(kind: str, told: Tensor) -> Tensor:
    """Every fifth of 500 words stands in 10,000 rows of the first class."""
    if kind == "words":
        told = told.clone()
        told[:500, 0] += 10_000 * 2**10
        told[:500, 6] += 10_000 * 2**10
    return told


def cell(lie: Lie, bounded: bool, seed: int) -> tuple[float, float, int]:
    """Accuracy of head and words, of the head alone, and how many were left out."""
    train, test = rows("train"), rows("test")
    settings = ModelSettings(pooling="mean", layers="last", dtype="float32")
    tokenizer = load_tokenizer(settings)
    texts, others = (
        encode_texts(tokenizer, [t[0] for t, _ in read(f"trec/{part}", ("text",), "label")], 64)
        for part in ("train", "test")
    )
    order = Key(seed).fold("held out").permutation(len(train["y"]))
    held, used = np.sort(order[:HELD]), np.sort(order[HELD:])
    shares = Dirichlet(clients=CLIENTS, alpha=1.0, min_size=10).split(
        train["y"].numpy()[used], None, Key(seed).fold("clients")
    )
    mine = {c: used[np.asarray(shares.rows(c))] for c in range(CLIENTS)}
    documents = documents_of(*occurrences(*texts.tokens_of(used))[:2])[:, 0]
    bag = kept(documents, len(used), 16_384)
    entries = {c: bag.entries(*texts.tokens_of(r)) for c, r in mine.items()}
    left: set[int] = set()

    def said_by(c: int, kind: str, told: Tensor, check: Callable[[Tensor], None]) -> Tensor:
        told = lie(kind, told) if c < HOSTILE else told
        if bounded:
            try:
                check(told)
            except ProtocolError:
                left.add(c)
        return told

    def words() -> tuple[Tensor, Sums]:
        """Solved anew without whoever was found."""
        while True:
            here, found = [c for c in mine if c not in left], len(left)
            total = Sums.over(sums(train["x"][mine[c]], train["y"][mine[c]]) for c in here)
            first = sum_of(
                said_by(
                    c,
                    "words",
                    by_target(entries[c], CLASSES.of(train["y"][mine[c]].numpy()), len(bag)),
                    lambda told, c=c: check_words(told, len(mine[c]), CLASSES),  # type: ignore
                )
                for c in here
            )

            def images(sent: Any, here: list[int] = here) -> list[Tensor]:
                return [
                    sum_of(
                        said_by(
                            c,
                            "products",
                            products(entries[c], len(mine[c]), p),
                            lambda told, c=c, p=p: check_products(told, p, len(mine[c])),  # type: ignore
                        )
                        for c in here
                    )
                    for p in sent
                ]

            (weight,) = solved([Descent.of(first, total.mean_target(), 1.0)], images)
            if len(left) == found:
                return weight, total

    weight, total = words()
    head = Solver.of(total).discriminant(0.1)
    bag_says = Words(bag, weight.nan_to_num(0, 0, 0).float())

    def logits(x: Tensor, which: Any, tokens: Any) -> tuple[Tensor, Tensor]:
        return x.double() @ head.weight_CD.T + head.bias_C, bag_says.logits(*tokens, len(which))

    own, more = logits(train["x"][held], held, texts.tokens_of(held))
    _, share = min(
        (float(torch.nn.functional.cross_entropy(t * (own + s * more), train["y"][held])), s)
        for t in (0.25, 0.5, 1.0, 2.0)
        for s in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
    )
    tested = np.arange(len(test["y"]))
    own, more = logits(test["x"], tested, others.tokens_of(tested))
    right = [float((x.argmax(1) == test["y"]).double().mean()) for x in (own + share * more, own)]
    return right[0], right[1], len(left)


def sum_of(parts: Any) -> Tensor:
    total: Tensor = sum(parts, torch.zeros((), dtype=torch.int64))
    return total


def main() -> None:
    body = []
    for name, lie in LIES.items():
        line: list[object] = [name]
        for bounded in (False, True):
            found = [cell(lie, bounded, seed) for seed in range(SEEDS)]
            print(name, bounded, found, flush=True)
            with_words, alone, out = np.mean(found, 0)
            line.append(f"{with_words:.3f}, {alone:.3f} ({out:.1f} left out)".replace("0.", ".", 2))
        body.append(line)
    print(markdown(["lie", "believed: with words, head alone", "bounded"], body))


if __name__ == "__main__":
    main()
