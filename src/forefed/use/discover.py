"""``forefed discover``: which labels, or words that a model does not know, many people hold.

A rehearsal on this machine, before anything is trained: every user of a file answers once, at
random (``privacy/heavy_hitters.py``), and what is found stands beside what is true.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from rich.table import Table

from forefed.core.errors import UserError, nearest, several
from forefed.core.files import write_json
from forefed.core.keys import Key, Secret
from forefed.core.terminal import one_line
from forefed.data.chat import plain_tokens
from forefed.data.columns import LABELS, TEXTS, first_named, guess, named
from forefed.data.columns import texts as texts_of
from forefed.data.rows import Rows
from forefed.data.sources import Files
from forefed.models.load import load_tokenizer
from forefed.models.settings import ModelSettings
from forefed.privacy.heavy_hitters import Item, heavy_hitters, smallest_share, spelled

Of = Literal["labels", "words"]
KINDS: tuple[Of, ...] = ("labels", "words")
_WORD = re.compile(r"[^\W\d_]{3,}")
MOST = 50.0
"""Of an epsilon: above it every answer is the truth."""
MOST_ITEMS = 1000
"""To be found: every one is 2 prefixes, which each letter continues."""


@dataclass(frozen=True)
class Discovered:
    """``items``: what was found. ``true``: the shares of the really most frequent ones, as many as
    were asked for. ``smallest``: the least share that could have been found. ``users`` answered,
    ``none`` of whom held nothing."""

    items: list[Item]
    true: dict[str, float]
    smallest: float
    users: int
    none: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall against the true ones."""
        right = len({item.text for item in self.items} & self.true.keys())
        return 2 * right / (len(self.items) + len(self.true)) if self.true else 0.0

    @property
    def ncr(self) -> float:
        """Normalised cumulative rank: what was found counts by its true rank, the first most."""
        k = len(self.true)
        found = {item.text for item in self.items}
        scores = (k - rank for rank, text in enumerate(self.true) if text in found)
        return sum(scores) / (k * (k + 1) / 2) if k else 0.0


def discover(
    data: Path,
    epsilon: float,
    of: str = "words",
    column: str = "",
    user: str = "",
    party: str = "",
    top: int = 10,
    model: str = "minilm",
    prune: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Discovered:
    """What many users hold, found from one random answer of each.

    Args:
        data: a file of rows.
        epsilon: what one answer may tell of its user.
        of: "labels", or "words": those that the model's tokeniser has to cut into pieces.
        column: of labels or texts; empty: guessed.
        user: the column that says whose row it is; empty: every row is another user's. Of several
            items of a user one is taken by lot.
        party: the column of who collects; empty: one party.
        top: how many to find.
        model: whose tokeniser knows words.
        prune: TAPS.
        seed: of a rehearsal's chance.
        say: told what is being done.

    Raises:
        UserError: no such file, column or kind, nobody with an item, or numbers out of range.
    """
    if of not in KINDS:
        raise UserError(f"--of '{of}': {nearest(of, KINDS)}")
    if not 0 < epsilon <= MOST:
        raise UserError(f"--epsilon {epsilon:g}: give a number above 0, of at most {MOST:g}")
    if not 1 <= top <= MOST_ITEMS:
        raise UserError(f"--top {top}: give how many to find, from 1 to {MOST_ITEMS:,}")
    rows = Files(path=data).load().rows
    held = _labels(rows, column) if of == "labels" else _words(rows, column, model, say)
    users = _strings(rows, user, "--user") if user else [str(i) for i in range(len(held))]
    parties = _strings(rows, party, "--party") if party else [""] * len(held)
    say("every user answers once")
    lot = Key(seed).fold("discover")
    items = _one_each(users, parties, held, lot)
    everybody = [item for group in items.values() for item in group]
    counted = Counter(item for item in everybody if item)
    if not counted:
        raise UserError(f"{data}: nobody holds an item ({of}); try another --column, or --of")
    true = {text: n / len(everybody) for text, n in counted.most_common(top)}
    found = heavy_hitters(items, epsilon, top, Secret.rehearsed(seed).fold("discover"), prune)
    none = len(everybody) - counted.total()
    return Discovered(found, true, smallest_share(items, epsilon, top), len(everybody), none)


def table(found: Discovered, epsilon: float, of: str) -> Table:
    """What was found, beside what is true, as both have them."""
    shown = Table(title=f"{of} that many hold, epsilon = {epsilon:g} a user", title_justify="left")
    for name, side in ((of, "left"), ("found, % of users", "right"), ("true", "right")):
        shown.add_column(name, justify=cast(Any, side))
    for item in found.items:
        text = one_line(item.text + ("…" if item.cut else ""), 40)
        estimate = f"{100 * item.share:.1f} ± {100 * item.deviation:.1f}"
        true = found.true.get(item.text)
        shown.add_row(text, estimate, "none of these" if true is None else f"{100 * true:.1f}")
    for text, share in found.true.items():
        if text not in {item.text for item in found.items}:
            shown.add_row(one_line(text, 40), "not found", f"{100 * share:.1f}")
    return shown


def notes(found: Discovered, epsilon: float) -> Iterator[str]:
    """What the table does not say."""
    yield (
        f"{found.users:,} users answered once ({found.none:,} of them held nothing); F1 "
        f"{found.f1:.2f}, NCR {found.ncr:.2f} against the truth, which only a rehearsal knows."
    )
    if found.smallest < 1:
        yield f"A share below about {100 * found.smallest:.1f} % drowns in the noise."
    else:
        yield "With so few users nothing stands out of the noise: more users, or a larger epsilon."
    yield (
        f"Local differential privacy: epsilon = {epsilon:g}, delta = 0, of a user, against "
        "whoever collects the answers. It adds to what training spends on the same users."
    )


def write(found: Discovered, place: Path, epsilon: float, of: str) -> None:
    """The result as JSON, with what was spent and against whom."""
    said: dict[str, Any] = {
        "of": of,
        "privacy": {
            "mechanism": "one randomised answer (k-ary randomised response, OUE)",
            "unit": "user",
            "epsilon": epsilon,
            "delta": 0.0,
            "adversary": "whoever collects the answers",
            "answers of a user": 1,
        },
        "users": found.users,
        "items": [
            {"text": i.text, "share": i.share, "deviation": i.deviation} for i in found.items
        ],
        "rehearsal": {"true": found.true, "f1": found.f1, "ncr": found.ncr},
    }
    write_json(place, said)


def _labels(rows: Rows, column: str) -> list[list[str]]:
    known = [named(rows, column, "--column")] if column else first_named(rows.column_names, LABELS)
    if not known:
        raise UserError(
            "--column: no column of labels is known by its name; columns here: "
            f"{several(rows.column_names)}"
        )
    return [[spelled(x)] if x else [] for x in _strings(rows, known[0], "--column")]


def _words(rows: Rows, column: str, model: str, say: Callable[[str], None]) -> list[list[str]]:
    """Of each row the words that the tokeniser has no token for."""
    chosen = [named(rows, column, "--column")] if column else guess(rows, TEXTS, "--column", [])
    found = [sorted({w.casefold() for w in _WORD.findall(t)}) for t in texts_of(rows, chosen)]
    say(f"looking for words that {model} has to cut into pieces")
    tokenizer = load_tokenizer(ModelSettings(name=model))
    distinct = sorted({word for words in found for word in words})
    # with a blank before: tokenisers of decoders write the beginning of a word into its token
    cut = plain_tokens(tokenizer, [f" {word}" for word in distinct])
    new = {w for w, tokens in zip(distinct, cut, strict=True) if len(tokens) > 1}
    return [[spelled(word) for word in words if word in new] for words in found]


def _strings(rows: Rows, column: str, where: str) -> list[str]:
    values: Sequence[Any] = rows.array(named(rows, column, where)).to_pylist()
    if any(isinstance(x, (list, dict)) for x in values):
        raise UserError(
            f"{where} '{column}': holds lists or tables; name a column of single values"
        )
    return ["" if x is None else str(x) for x in values]


def _one_each(
    users: Sequence[str], parties: Sequence[str], held: Iterable[list[str]], lot: Key
) -> dict[str, list[str]]:
    """By party, one item of each user ("": none). A user of two parties is two users."""
    all_of: dict[tuple[str, str], list[str]] = {}
    for user, party, items in zip(users, parties, held, strict=True):
        all_of.setdefault((party, user), []).extend(items)
    drawn = lot.blocks(0, len(all_of))[:, 0] * 2.0**-32
    chosen: dict[str, list[str]] = {}
    for ((party, _), items), x in zip(all_of.items(), drawn, strict=True):
        item = items[min(math.floor(float(x) * len(items)), len(items) - 1)] if items else ""
        chosen.setdefault(party, []).append(item)
    return chosen
