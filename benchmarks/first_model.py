"""`python -m benchmarks first_model`: whole default runs against a probe and a bag of words.

Nine sets of FOREFED_DATA, 1,000 training and 300 test texts each, drawn anew for every seed; 50
clients, Dirichlet 1.0 and 0.1; of what decides quality nothing else is set. TF-IDF (whole texts,
one and two words, C = 10) and the probe (mean-pooled last layer of 64 tokens, standardised, C = 1)
have all training rows in one place. Differences are paired by seed.

FIRST_MODEL_SETS names other sets: fewer of the nine, or those of NATURAL, whose clients are the
authors, sources or speakers themselves (the 50 with the most rows; test rows are others of theirs).
FIRST_MODEL_NAME=smollm2 takes a decoder in the place of MiniLM, with 32 tokens a row.

A row's features do not depend on what it is computed with, so runs of the same rows share them here
(FIRST_MODEL_SEEDS and FIRST_MODEL_ALPHAS name fewer of both, FIRST_MODEL_TRAIN fewer rows).
FIRST_MODEL_POOLED=1 trains LoRA on all training rows in one place instead: ten passes, an untrained
head, AdamW, rates that fall linearly, nothing held out and nothing guarded.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.table import markdown
from forefed.core.types import Params
from forefed.data.examples import Examples, Indices
from forefed.models.task import Task
from forefed.report.comparison.results import interval
from forefed.run import configure, run
from forefed.start import answer
from forefed.start.features import features

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
NATURAL: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "newsgroups20, by author": ("newsgroups20/train", ("subject", "text"), "label", "author"),
    "medquad, type, by source": ("medquad/qa", ("text",), "type", "source"),
    "shakespeare, play, by speaker": ("shakespeare/speeches", ("text",), "play", "character"),
}
"""File, texts, label, owner."""
OWNERS = 50
TRAIN, TEST = 3000, 1000
"""Rows of which a seed draws."""
OF_TRAIN, OF_TEST = int(os.environ.get("FIRST_MODEL_TRAIN", "1000")), 300
ALPHAS = [float(a) for a in os.environ.get("FIRST_MODEL_ALPHAS", "1.0 0.1").split()]
NAME = os.environ.get("FIRST_MODEL_NAME", "minilm")
DECODER = (f"model.name={NAME}", "model.dtype=bfloat16", "data.max_length=32")
MODEL = ("model.dtype=float32",) if NAME == "minilm" else DECODER


class Row(NamedTuple):
    texts: tuple[str, ...]
    label: str
    owner: str = ""


def tables() -> Iterator[tuple[str, str]]:
    names = os.environ.get("FIRST_MODEL_SETS", ";".join(SETS)).split(";")
    seeds = [int(s) for s in os.environ.get("FIRST_MODEL_SEEDS", "0 1 2").split()]
    pooled_only = bool(os.environ.get("FIRST_MODEL_POOLED"))
    one = pooled_lora if pooled_only else measured
    found = {name: [one(name, seed) for seed in seeds] for name in names}
    if pooled_only:
        yield "A first model: LoRA on all rows in one place", pooled_page(found)
    else:
        yield "A first model: whole default runs", page(found)


POOLED = (
    "partition.clients=1",
    "cohort=1",
    "start=none",
    "guard=none",
    "strategy=fedavg",
    "client.keep_optimiser=true",
    "client.optimiser.schedule=['linear']",
    "client.optimiser.lr=1e-3",
    "evaluate.every=10",
)


def pooled_lora(name: str, seed: int) -> dict[str, float]:
    """Test accuracy of LoRA that has all training rows in one place."""
    train, test = drawn(name, seed)
    with tempfile.TemporaryDirectory() as folder:
        sets = [*sets_of(Path(folder), name, train, test, 1.0, seed), *POOLED]
        accuracy = run(configure(sets=sets)).summary["final"]["accuracy"]
    print(json.dumps({"set": name, "seed": seed, "pooled LoRA": accuracy}), flush=True)
    return {"pooled LoRA": accuracy}


def pooled_page(found: dict[str, list[dict[str, float]]]) -> str:
    rows = [
        [name, *(f"{line['pooled LoRA']:.3f}" for line in lines)] for name, lines in found.items()
    ]
    return markdown(["set", *("by seed" for _ in next(iter(found.values())))], rows)


def page(found: dict[str, list[dict[str, float]]]) -> str:
    """The table of what was measured, by set and seed."""
    columns = ["majority", "TF-IDF", "probe", "head alone", "default"]
    skewed = all("default 0.1" in line for lines in found.values() for line in lines)
    columns += ["default 0.1"] if skewed else []
    rows = []
    for name, lines in found.items():
        means = [float(np.mean([line[c] for line in lines])) for c in columns]
        better = [max(line["TF-IDF"], line["probe"]) for line in lines]
        ahead = [100 * (line["default"] - b) for line, b in zip(lines, better, strict=True)]
        rows.append([name, *(f"{m:.3f}" for m in means), paired(ahead)])
        if skewed:
            skew = [100 * (line["default 0.1"] - line["default"]) for line in lines]
            rows[-1].append(paired(skew))
    means = [
        float(np.mean([np.mean([line[c] for line in lines]) for lines in found.values()]))
        for c in columns
    ]
    rows.append(["mean", *(f"{m:.3f}" for m in means), *([""] * (1 + skewed))])
    head = ["set", *columns, "default less the better of TF-IDF and probe"]
    return markdown([*head, *(["0.1 less 1.0"] if skewed else [])], rows)


def paired(differences: Sequence[float]) -> str:
    """Mean and half of a 95 % interval, in points."""
    found = interval(differences)
    assert found
    return f"{found.mean:+.1f}" + ("" if found.half is None else f" ± {found.half:.1f}")


def measured(name: str, seed: int) -> dict[str, float]:
    """Test accuracies of the baselines, and of default runs and their heads."""
    train, test = drawn(name, seed)
    found = baselines(name, train, test)
    for alpha in [1.0] if name in NATURAL else ALPHAS:
        with tempfile.TemporaryDirectory() as folder:
            line = default_run(Path(folder), name, train, test, alpha, seed)
        ending = "" if alpha == 1 else f" {alpha:g}"
        found |= {f"{what}{ending}": x for what, x in line.items()}
    print(json.dumps({"set": name, "seed": seed, **found}), flush=True)
    return found


def baselines(name: str, train: list[Row], test: list[Row]) -> dict[str, float]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    warnings.simplefilter("ignore")
    first, second = (["\n".join(row.texts) for row in p] for p in (train, test))
    y, truth = ([row.label for row in p] for p in (train, test))
    counts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    bag = LogisticRegression(C=10, max_iter=300).fit(counts.fit_transform(first), y)
    x, z = (pooled(p, name == "sick") for p in (train, test))
    mean, scale = x.mean(0), x.std(0) + 1e-9
    probe = LogisticRegression(max_iter=300).fit((x - mean) / scale, y)
    frequent = max(sorted(set(y)), key=y.count)
    return {
        "majority": float(np.mean([t == frequent for t in truth])),
        "TF-IDF": float(bag.score(counts.transform(second), truth)),
        "probe": float(probe.score((z - mean) / scale, truth)),
    }


def default_run(
    folder: Path, name: str, train: list[Row], test: list[Row], alpha: float, seed: int
) -> dict[str, float]:
    """What a default run ends with, and what it began with."""
    sets = sets_of(folder, name, train, test, alpha, seed)
    kept = answer.features
    answer.features = remembered  # type: ignore[assignment]
    try:
        result = run(configure(sets=sets))
    finally:
        answer.features = kept
    summary = result.summary
    return {
        "default": summary["final"]["accuracy"],
        "head alone": summary["baseline"]["head alone"],
        "rounds": summary["rounds"],
        "forwards": summary["totals"]["forwards"],
        "up": summary["totals"]["bytes_up"],
        "down": summary["totals"]["bytes_down"],
        "seconds": summary["totals"]["seconds"],
    }


def sets_of(
    folder: Path, name: str, train: list[Row], test: list[Row], alpha: float, seed: int
) -> list[str]:
    """The settings of a run over these rows, which are written below ``folder``."""
    sets = [f"out='{folder}'", "data.source.kind=files", f"seed={seed}"]
    for part, rows in (("path", train), ("test", test)):
        path = folder / f"{part}.jsonl"
        path.write_text(
            "".join(json.dumps(as_row(row, name)) + "\n" for row in rows), encoding="utf-8"
        )
        sets.append(f"data.source.{part}='{path}'")
    sets += ["data.task.kind=pairs"] if name == "sick" else []
    known, asked = ({row.label for row in rows} for rows in (train, test))
    if not asked <= known:  # a class of test rows that no training row has
        sets.append(f"data.task.labels={json.dumps(sorted(known | asked))}")
    if name in NATURAL:
        cohort = min(10, len({row.owner for row in train}))
        sets += ["partition.kind=natural", "partition.column=owner", f"cohort={cohort}"]
        return [*sets, *MODEL]
    return [*sets, *MODEL, "partition.clients=50", f"partition.alpha={alpha}"]


def as_row(row: Row, name: str) -> dict[str, str]:
    if name == "sick":
        return {"text1": row.texts[0], "text2": row.texts[1], "label": row.label}
    found = {"text": "\n".join(row.texts), "label": row.label}
    return {**found, "owner": row.owner} if name in NATURAL else found


LAYERS = 3
"""That ``model.layers`` pools by default, one after the other, the last one last."""
MEMORY: dict[bytes, torch.Tensor] = {}
"""By a row's tokens: its features at the first parameters."""


def remembered(
    task: Task,
    params: Params,
    examples: Examples,
    rows: Indices,
    batch_size: int,
    same: dict[int, bool] | None = None,
) -> torch.Tensor:
    """``features``, each row once."""
    keys = [examples.batch([i]).inputs["input_ids"].numpy().astype("<i8").tobytes() for i in rows]
    body = [n for n in task.params if n not in task.head]
    if any(not torch.equal(params[n], task.params[n]) for n in body):
        return features(task, params, examples, rows, batch_size, same)
    new = [i for i, key in enumerate(keys) if key not in MEMORY]
    if new:
        computed = features(task, params, examples, rows[new], 1, same)
        MEMORY.update((keys[i], x) for i, x in zip(new, computed, strict=True))
    width = sum(p.shape[1] for n, p in task.params.items() if n in task.head and p.dim() == 2)
    return torch.stack([MEMORY[key] for key in keys]) if keys else torch.zeros(0, width)


def pooled(rows: list[Row], pairs: bool) -> Any:
    """The last layer of 64 tokens (decoder: 32), mean-pooled (its last token), [N, D]."""
    from forefed.core.keys import Key
    from forefed.data.encoding import encode_texts
    from forefed.models.adapters import HeadOnly
    from forefed.models.load import load_task
    from forefed.models.settings import ModelSettings

    small = NAME == "minilm"
    settings = ModelSettings(name=NAME, dtype="float32" if small else "bfloat16")
    task, words = load_task(settings, HeadOnly(), Key(0), ("a", "b"))
    if pairs:
        given = [[row.texts[i] for row in rows] for i in range(2)]
    else:
        given = [["\n".join(row.texts) for row in rows]]
    examples = encode_texts(words, given[0], 64 if small else 32, *given[1:])
    every = remembered(task, task.params, examples, np.arange(len(examples)), 1)
    return every[:, -(every.shape[1] // LAYERS) :].float().numpy()


def drawn(name: str, seed: int) -> list[list[Row]]:
    """Training and test rows of a seed."""
    draw = np.random.default_rng(seed)
    sizes = (OF_TRAIN, OF_TEST)
    both = zip(parts(name), sizes, strict=True)
    return [[p[i] for i in draw.permutation(len(p))[:n]] for p, n in both]


def parts(name: str) -> list[list[Row]]:
    """Training and test rows."""
    if name in NATURAL:
        return owned(*NATURAL[name])
    files = SETS[name]
    first, second = (
        None if f is None else [Row(*row) for row in read(f, files[2], files[3])] for f in files[:2]
    )
    assert first is not None
    if second is None:
        order = np.random.default_rng(1).permutation(len(first))
        first, second = [first[i] for i in order[:6000]], [first[i] for i in order[6000:8000]]
    draw = np.random.default_rng(0)
    return [
        [p[i] for i in draw.permutation(len(p))[:most]]
        for p, most in ((first, TRAIN), (second, TEST))
    ]


def owned(file: str, texts: tuple[str, ...], label: str, owner: str) -> list[list[Row]]:
    """Rows of the OWNERS with the most of them, three in four to train on."""
    every = [Row(t[1:], y, t[0]) for t, y in read(file, (owner, *texts), label)]
    most = {who for who, _ in Counter(row.owner for row in every).most_common(OWNERS)}
    some = [row for row in every if row.owner in most]
    order = np.random.default_rng(1).permutation(len(some))
    cut = 3 * len(some) // 4
    return [[some[i] for i in order[:cut]][:TRAIN], [some[i] for i in order[cut:]][:TEST]]


def read(file: str, texts: Sequence[str], label: str) -> list[Row]:
    path = Path(os.environ["FOREFED_DATA"]) / f"{file}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [(tuple(str(row[t]) for t in texts), str(row[label])) for row in rows]
