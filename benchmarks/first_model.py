"""`python -m benchmarks first_model`: heads in closed form against a probe and a bag of words.

Sets of FOREFED_DATA, at most 3,000 training and 1,000 test texts, 64 tokens, MiniLM. The head sees
80 % of the training rows and chooses by the rest, three seeds of that split; TF-IDF (one and two
words, C = 10, whole texts) and the probe (mean-pooled, standardised) have all of them. Sums do not
see the partition, so a Dirichlet concentration would change nothing but who holds which row out.
"""

from __future__ import annotations

import gzip
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import nll_loss

from benchmarks.table import markdown
from forefed.core.keys import Key
from forefed.data.encoding import encode_texts
from forefed.models.adapters import HeadOnly
from forefed.models.load import load_task
from forefed.models.settings import ModelSettings
from forefed.start import ClosedForm
from forefed.start.closed_form import SCALES, Solver, choose
from forefed.start.features import features
from forefed.start.sums import Sums

SETS: dict[str, tuple[str, str | None, tuple[str, ...], str]] = {
    "trec": ("trec/train", "trec/test", ("text",), "label"),
    "trec, fine": ("trec/train", "trec/test", ("text",), "fine"),
    "sst2": ("sst2/train", "sst2/test", ("text",), "label"),
    "sick": ("sick/train", "sick/test", ("text1", "text2"), "label"),
    "ag_news": ("ag_news/test_7600", None, ("title", "description"), "label"),
    "newsgroups20": ("newsgroups20/train", "newsgroups20/test", ("subject", "text"), "label"),
    "medquad, type": ("medquad/qa", None, ("prompt",), "type"),
    "medquad, source": ("medquad/qa", None, ("text",), "source"),
    "shakespeare, play": ("shakespeare/speeches", None, ("text",), "play"),
}
"""Training file, test file (None: other rows of the same), texts, label."""
TRAIN, TEST, SEEDS = 3000, 1000, 3


def tables() -> Iterator[tuple[str, str]]:
    rows = [[name, *(f"{x:.3f}" for x in measured(name))] for name in SETS]
    means = np.mean([[float(x) for x in row[1:]] for row in rows], axis=0)
    rows.append(["mean", *(f"{x:.3f}" for x in means)])
    head = ["set", "majority", "TF-IDF", "probe", "head, last layer", "head, spread"]
    yield "A first model: accuracy without an adapter", markdown(head, rows)


def measured(name: str) -> list[float]:
    """Test accuracies of majority, TF-IDF, probe, and the head on the last or on three layers."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    warnings.simplefilter("ignore")
    train, test = parts(name)
    first, second = (["\n".join(t) for t, _ in p] for p in (train, test))
    classes = sorted({label for _, label in (*train, *test)})
    y, truth = (np.array([classes.index(label) for _, label in p]) for p in (train, test))
    counts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    bag = LogisticRegression(C=10, max_iter=500).fit(counts.fit_transform(first), y)
    found = [float((truth == np.bincount(y).argmax()).mean())]
    found.append(float(bag.score(counts.transform(second), truth)))
    for layers in ("last", "spread"):
        x, z = (pooled(p, layers, name == "sick") for p in (train, test))
        if layers == "last":
            mean, scale = x.mean(0), x.std(0)
            probe = LogisticRegression(max_iter=300).fit(((x - mean) / scale).numpy(), y)
            found.append(float(probe.score(((z - mean) / scale).numpy(), truth)))
        found.append(np.mean([solved(x, y, z, truth, len(classes), s) for s in range(SEEDS)]))
    return found


def parts(name: str) -> list[list[tuple[tuple[str, ...], str]]]:
    """(texts, label) of the training and the test rows."""
    files = SETS[name]
    first, second = (None if f is None else read(f, files[2], files[3]) for f in files[:2])
    assert first is not None
    if second is None:
        order = np.random.default_rng(1).permutation(len(first))
        first, second = [first[i] for i in order[:6000]], [first[i] for i in order[6000:8000]]
    draw = np.random.default_rng(0)
    return [
        [p[i] for i in draw.permutation(len(p))[:most]]
        for p, most in ((first, TRAIN), (second, TEST))
    ]


def read(file: str, texts: Sequence[str], label: str) -> list[tuple[tuple[str, ...], str]]:
    path = Path(os.environ["FOREFED_DATA"]) / f"{file}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [(tuple(str(row[t]) for t in texts), str(row[label])) for row in rows]


def pooled(rows: list[tuple[tuple[str, ...], str]], layers: Any, pairs: bool) -> torch.Tensor:
    settings = ModelSettings(pooling="mean", layers=layers, dtype="float32")
    task, words = load_task(settings, HeadOnly(), Key(0), ("a", "b"))
    if pairs:
        given = [[t[0] for t, _ in rows], [t[1] for t, _ in rows]]
    else:
        given = [["\n".join(t) for t, _ in rows]]
    examples = encode_texts(words, given[0], 64, *given[1:])
    return features(task, task.params, examples, np.arange(len(examples)), 32)


def solved(x: torch.Tensor, y: Any, z: torch.Tensor, truth: Any, classes: int, seed: int) -> float:
    """Test accuracy of the head that the held-out fifth prefers."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    labels, fifth = torch.from_numpy(y), len(y) // 5
    held, kept = order[:fifth], order[fifth:]
    solver = Solver.of(
        Sums.of(x[kept], labels[kept], classes), tuple(str(c) for c in range(classes))
    )
    candidates = ClosedForm().candidates()
    heads = [solver.solve(kind, share) for kind, share in candidates]
    logits = [x[held].double() @ h.weight_CD.T + h.bias_C for h in heads]
    logs = [[(s * one).log_softmax(1) for s in SCALES] for one in logits]
    right = [[nll_loss(x, labels[held], reduction="sum") for x in each] for each in logs]
    tried = {
        "loss": torch.tensor(right),
        "flat": torch.tensor([[-x.mean(1).sum() for x in each] for each in logs]),
        "correct": torch.stack([(one.argmax(1) == labels[held]).sum().double() for one in logits]),
        "n": torch.tensor(float(fifth)),
        "classes": torch.tensor(float(classes)),
    }
    best = heads[choose(tried, candidates)[0]]
    said = (z.double() @ best.weight_CD.T + best.bias_C).argmax(1).numpy()
    return float((said == truth).mean())
