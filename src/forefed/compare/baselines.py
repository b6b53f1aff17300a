"""``forefed baselines``: what a run has to beat, on the same test rows.

    majority       the most frequent class of the clients' training rows
    tf-idf         logistic regression on TF-IDF of the model's tokens (one and two in a row)
    probe          logistic regression on the frozen model's standardised features, rows pooled
    local          the same at every client alone; the mean over clients
    closed form    the head that a run begins with (``start``), federated

Pooled ones see the same rows as the federation: the clients' training rows (all but the
``data.client_test_fraction`` that they hold out).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from forefed.config.config import Config, configure
from forefed.core.errors import UserError
from forefed.core.files import read_table, write_json
from forefed.core.types import Json
from forefed.data.examples import Examples, Indices
from forefed.federation.questions import Way
from forefed.run.build import build, words_at
from forefed.run.checkpoint import config_digest
from forefed.run.evaluate import evaluate_global
from forefed.run.head_start import begin
from forefed.start import Auto, ClosedForm
from forefed.start.features import features

BASELINES = "baselines.json"
LOCAL = 50
"""Clients whose own models are trained and averaged over."""
ITERATIONS = 300


def baselines(config: Config, say: Callable[[str], None] = lambda _: None) -> list[Json]:
    """One line each: "name", "accuracy", "about".

    Args:
        say: told what is being computed.

    Raises:
        UserError: no classes are learned; or as ``run``.
    """
    if config.data.task.head != "classification":
        raise UserError(
            "baselines: they are for classes; data.task.kind = "
            f"'{config.data.task.kind}' learns none"
        )
    linear = _logistic()
    start = config.start if isinstance(config.start, ClosedForm) else Auto()
    start = start.model_copy(update={"batch_size": 32})
    config = config.model_copy(update={"cohort": 1, "start": start})
    federation = build(config, say)
    population, test, task = federation.data.population, federation.data.test, federation.task
    examples = population.examples
    clients = [population.client(c).train for c in range(population.size)]
    rows = np.concatenate(clients)
    labels, truth = examples.labels, test.labels
    everything = np.arange(len(test))
    lines: list[Json] = []

    def found(name: str, accuracy: float, about: str) -> None:
        lines.append({"name": name, "accuracy": float(accuracy), "about": about})
        say(f"{name}: {accuracy:.3f}")

    frequent = int(np.bincount(labels[rows]).argmax())
    found("majority", float((truth == frequent).mean()), task.label_names[frequent])
    say("TF-IDF")
    counted, tested = _tf_idf(examples, rows, test)
    found(
        "tf-idf",
        linear(10.0).fit(counted, labels[rows]).score(tested, truth),
        "logistic regression on TF-IDF of the model's tokens, rows pooled",
    )
    say("features")
    x_ND = features(task, task.params, examples, rows, 32).numpy()
    z_ND = features(task, task.params, test, everything, 32).numpy()
    mean, scale = x_ND.mean(0), x_ND.std(0) + 1e-9
    x_ND, z_ND = (x_ND - mean) / scale, (z_ND - mean) / scale
    found(
        "probe",
        linear(1.0).fit(x_ND, labels[rows]).score(z_ND, truth),
        "logistic regression on frozen features, rows pooled",
    )
    ends = np.cumsum([len(c) for c in clients])
    scores = []
    for stop, own in list(zip(ends, clients, strict=True))[:LOCAL]:
        y = labels[own]
        if len(set(y.tolist())) > 1:
            alone = linear(1.0).fit(x_ND[stop - len(own) : stop], y)
            scores.append(alone.score(z_ND, truth))
        elif len(y):
            scores.append(float((truth == y[0]).mean()))
    found("local", float(np.mean(scores)), f"the probe at {len(scores)} clients alone, their mean")
    columns = federation.data.provenance["columns"]
    way, most = Way.of(federation.star), words_at(config, columns)
    begun = begin(start, task, federation.transport, config.deadline_s, most, way=way)
    params = {**task.params, **begun.head}
    size = config.evaluate.batch_size
    line, _ = evaluate_global(task, params, test, size, words=begun.words)
    found("closed form", line["accuracy"], "the head from the clients' sums, federated")
    return lines


def _tf_idf(examples: Examples, rows: Indices, test: Examples) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    def words(of: Examples, row: int) -> list[str]:
        return [str(t) for t in of.tokens[of.offsets[row] : of.offsets[row + 1]]]

    vectorizer = TfidfVectorizer(analyzer=_one_and_two, sublinear_tf=True)
    counted = vectorizer.fit_transform([words(examples, int(i)) for i in rows])
    return counted, vectorizer.transform([words(test, i) for i in range(len(test))])


def _one_and_two(words: list[str]) -> list[str]:
    return [*words, *(f"{a} {b}" for a, b in pairwise(words))]


def keep(config: Config, found: Sequence[Json]) -> None:
    """Into the folder of the run of this configuration, where there is one, for its report."""
    path = config.folder / "config.json"
    if path.exists() and config_digest(configure(base=read_table(path))) == config_digest(config):
        write_json(config.folder / BASELINES, {"lines": list(found)})


def _logistic() -> Callable[[float], Any]:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError(
            "baselines: they need scikit-learn: pip install 'forefed[baselines]'"
        ) from None

    def of(c: float) -> Any:
        return _Quiet(LogisticRegression(C=c, max_iter=ITERATIONS))

    return of


class _Quiet:
    """An estimator that does not warn of its iterations, which are as many as are paid for."""

    def __init__(self, inner: Any):
        self.inner = inner

    def fit(self, x: Any, y: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.inner.fit(x, y)
