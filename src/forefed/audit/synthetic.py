"""Rows that nobody's privacy depends on: public docstrings, with labels drawn at random.

The first line of a docstring is a sentence of some ten words. Where the model's vocabulary does not
know them, rows are random words of the vocabulary itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from forefed.core.keys import Key
from forefed.data import pydocs
from forefed.data.encoding import Texts, tokenise
from forefed.data.examples import Examples, Indices
from forefed.data.tasks import TextTask

UNKNOWN = 0.2
"""Share of unknown tokens from which the vocabulary's own words are taken."""
ENGLISH = "Return the name of the file that was read, or None where there is no such file."
SHORTEST, LONGEST = 4, 16
"""Words of a row."""


def sentences(count: int, key: Key, tokenizer: Any, cache_dir: Path | None = None) -> list[str]:
    """Distinct short texts, as many as asked for."""
    docs = pydocs.read_docstrings(cache_dir=cache_dir) if _known([ENGLISH], tokenizer) else []
    lines = list(dict.fromkeys(" ".join(d.text.split("\n\n")[0].split()[:LONGEST]) for d in docs))
    lines = [line for line in lines if len(line.split()) >= SHORTEST]
    chosen = [lines[i] for i in key.fold("lines").permutation(len(lines))[:count]]
    if len(chosen) == count:
        return chosen
    special = set(tokenizer.all_special_ids)
    ids = sorted(i for i in tokenizer.get_vocab().values() if i not in special)
    found: dict[str, None] = {}
    for number in range(10 * count):
        draw = key.fold("words", number)
        length = SHORTEST + int(draw.fold("length").integers(1, LONGEST - SHORTEST + 1)[0])
        some = [ids[i] for i in draw.integers(length, len(ids)).tolist()]
        found[str(tokenizer.decode(some))] = None
        if len(found) == count:
            break
    return list(found)


def _known(texts: Sequence[str], tokenizer: Any) -> bool:
    ids = [i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    unknown = sum(i == tokenizer.unk_token_id for i in ids)
    return bool(ids) and unknown <= UNKNOWN * len(ids)


def rows(
    task: TextTask,
    classes: int,
    count: int,
    key: Key,
    tokenizer: Any,
    longest: int,
    cache_dir: Path | None = None,
) -> Examples:
    """Examples of the task on synthetic texts.

    Args:
        classes: outputs of the head (0: none).
        longest: tokens of a row.
    """
    texts = sentences(count if task.head != "spans" else 2 * count, key, tokenizer, cache_dir)
    count = len(texts) if task.head != "spans" else len(texts) // 2
    drawn = key.fold("labels")
    if task.writes and not classes:
        return tokenise(Texts([""] * count, texts, None), tokenizer, longest).examples
    if task.head == "spans":
        examples = task.unlabelled(tokenizer, [texts[:count], texts[count:]], longest)
        ends = examples.lengths() - 2
        examples.labels[:] = np.stack([ends, ends], axis=1)
        return examples
    labels: Any = drawn.integers(count, max(1, classes))
    if task.head == "multilabel":
        labels = drawn.integers(count * classes, 2).reshape(count, classes)
    elif task.head == "regression":
        labels = drawn.normal((count,)).double().numpy()
    two = len(task.asked({"text": [], "text1": [], "text2": []})) > 1
    second = texts[1:] + texts[:1] if two else None
    found = tokenise(Texts(texts, second, labels), tokenizer, longest).examples
    # Which words stand for the classes does not matter to an attack.
    return replace(found, choices=tuple(range(3, 3 + classes))) if task.head == "choice" else found


def taken(examples: Examples, indices: Sequence[int] | Indices) -> Examples:
    """These rows alone, in their order."""
    parts = [slice(examples.offsets[i], examples.offsets[i + 1]) for i in indices]
    where = np.asarray(indices, dtype=np.int64)
    types = examples.types
    return replace(
        examples,
        tokens=np.concatenate([examples.tokens[part] for part in parts]),
        types=None if types is None else np.concatenate([types[part] for part in parts]),
        offsets=_offsets([part.stop - part.start for part in parts]),
        labels=examples.labels[where],
        n_bytes=examples.n_bytes[where],
        learned=None
        if examples.learned is None
        else np.concatenate([examples.learned[part] for part in parts]),
        chars=None,
        passages=None,
    )


def joined(*parts: Examples) -> Examples:
    """One after the other."""
    types = [part.types for part in parts if part.types is not None]
    learned = [part.learned for part in parts if part.learned is not None]
    return replace(
        parts[0],
        tokens=np.concatenate([part.tokens for part in parts]),
        types=np.concatenate(types) if types else None,
        offsets=_offsets(np.concatenate([part.lengths() for part in parts])),
        labels=np.concatenate([part.labels for part in parts]),
        n_bytes=np.concatenate([part.n_bytes for part in parts]),
        learned=np.concatenate(learned) if learned else None,
        chars=None,
        passages=None,
    )


def _offsets(lengths: Sequence[int] | Indices) -> Indices:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def near_copy(one: Examples, key: Key, vocabulary: Indices) -> Examples:
    """A row with one of its inner tokens exchanged for another of the vocabulary.

    Args:
        one: a single row.
        vocabulary: ordinary tokens.
    """
    tokens = one.tokens.copy()
    inner = np.flatnonzero(np.isin(tokens, vocabulary))
    if len(inner):
        at = inner[int(key.fold("place").integers(1, len(inner))[0])]
        others = vocabulary[vocabulary != tokens[at]]
        tokens[at] = others[int(key.fold("token").integers(1, len(others))[0])]
    return replace(one, tokens=tokens)


def relabelled(examples: Examples, labels: Any) -> Examples:
    """The same texts with other labels."""
    return replace(examples, labels=np.asarray(labels, dtype=examples.labels.dtype))


def skewed(rows: int, classes: int, key: Key) -> Any:
    """Labels [rows] of one client, whose classes are as unlike as Dirichlet's law with alpha = 1
    makes them."""
    weights = -np.log(key.fold("classes").uniform((classes,)).double().numpy() + 1e-12)
    ends = np.cumsum(weights / weights.sum())
    drawn = key.fold("rows").uniform((rows,)).double().numpy()
    return np.minimum(np.searchsorted(ends, drawn), classes - 1)
