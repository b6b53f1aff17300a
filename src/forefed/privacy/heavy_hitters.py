"""Which items many users hold, found letter by letter under local differential privacy.

TAP and TAPS: Zhang, Ye, Hu, "Federated heavy hitter analytics with local differential privacy"
(arXiv 2412.14832). The users of every party are split into groups, one for each letter of an item:
a user answers *once*, with the whole epsilon, whether the item continues a prefix that others have
found. The first letters are decided by all parties together; then each party goes on with prefixes
of its own (those above twice their standard deviation, which is our rule), and at the end shares
count by the parties' sizes. With ``prune`` (TAPS) the parties go one after the other, the largest
first, and none follows a prefix of which an earlier one found less than nothing (our rule).

Items are words: of 64 letters, as many as there are groups.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from forefed.core.keys import Secret
from forefed.privacy.oracles import Shares, shares

END, OTHER = "\0", "?"
LETTERS = END + "abcdefghijklmnopqrstuvwxyz0123456789 -_'./+&%#@:,()=<>*!$" + OTHER
LONGEST = 8
"""Letters of an item that are found; longer ones are known by their beginning."""
SHARED = 2
"""Letters that all parties decide together."""
KEPT = 2.0
"""Standard deviations above which a party follows a prefix."""
SURE = 0.05
"""Chance that a party names an item which nobody holds: of all that it asked for at the end."""


@dataclass(frozen=True)
class Item:
    """``share`` of all users, estimated; ``deviation``: its standard deviation, by users' chance
    and by who was asked for which letter."""

    text: str
    share: float
    deviation: float

    @property
    def cut(self) -> bool:
        """Did it fill all letters, so that it may be the beginning of a longer one?"""
        return len(self.text) == LONGEST


def spelled(text: str) -> str:
    """An item as it is looked for: lower case, no accents, at most ``LONGEST`` letters."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    letters = (c for c in plain if not unicodedata.combining(c))
    return "".join(c if c in LETTERS[1:] else OTHER for c in letters)[:LONGEST]


def heavy_hitters(
    parties: Mapping[str, Sequence[str]],
    epsilon: float,
    top: int,
    secret: Secret,
    prune: bool = False,
) -> list[Item]:
    """The items that most users hold, the most frequent first.

    Args:
        parties: by name, the item of each user (``spelled``; empty: the user has none).
        epsilon: of each user, who answers once.
        top: how many to find at most.
        secret: of the users' chance.
        prune: TAPS.

    Returns:
        At most ``top``; fewer, where no more stand out of the noise.
    """
    order = sorted(parties, key=lambda name: (-len(parties[name]), name))
    ask = {name: _Party(parties[name], epsilon, secret.fold(name)) for name in order}
    prefixes = _together([ask[name] for name in order], top)
    everybody = sum(map(len, parties.values()))
    total: dict[str, float] = {}
    spread: dict[str, float] = {}
    rare: set[str] = set()
    for name in order:
        part = len(parties[name]) / everybody
        found, unseen = _alone(ask[name], prefixes, rare, top)
        rare |= unseen if prune else set()
        for text, (value, deviation) in found.items():
            total[text] = total.get(text, 0.0) + part * value
            spread[text] = spread.get(text, 0.0) + (part * deviation) ** 2
    items = [Item(t, v, math.sqrt(spread[t])) for t, v in total.items() if t]
    return sorted(items, key=lambda item: (-item.share, item.text))[:top]


class _Party:
    """A party's users, every one in one group, by lot: group i answers for letter i."""

    def __init__(self, items: Sequence[str], epsilon: float, secret: Secret):
        words = secret.fold("groups").blocks(0, -(-len(items) // 4)).reshape(-1)[: len(items)]
        order = np.argsort(words, kind="stable")
        self.groups = [[items[i] for i in order[level::LONGEST]] for level in range(LONGEST)]
        self.epsilon, self.secret = epsilon, secret

    def __call__(self, asked: Sequence[str]) -> Shares:
        """One answer of each user of a group: which of these prefixes, or none of them."""
        number, length = {prefix: i for i, prefix in enumerate(asked)}, len(asked[0])
        padded = (item.ljust(LONGEST, END)[:length] for item in self.groups[length - 1])
        held: NDArray[np.int64] = np.array([number.get(p, len(asked)) for p in padded], np.int64)
        return shares(held, len(asked) + 1, self.epsilon, self.secret.fold("answer", length))


def _together(parties: Sequence[_Party], top: int) -> list[str]:
    """Phase I: the beginnings that all parties' users have most."""
    prefixes = [""]
    for _ in range(SHARED):
        asked = _continued(prefixes)
        if not asked:
            return []
        told = [party(asked) for party in parties]
        users = max(1, sum(t.users for t in told))
        values = np.sum([t.values * (t.users / users) for t in told], axis=0)
        best = np.argsort(-values[: len(asked)], kind="stable")[: 2 * top]
        prefixes = [asked[i] for i in best if values[i] > 0]
    return prefixes


def _alone(
    party: _Party, prefixes: Sequence[str], rare: set[str], top: int
) -> tuple[dict[str, tuple[float, float]], set[str]]:
    """Phase II: whole items with their shares and deviations, and prefixes that nobody seems to
    hold."""
    own, unseen = [*prefixes], set[str]()
    found: dict[str, tuple[float, float]] = {}
    for level in range(SHARED, LONGEST):
        asked = [p for p in _continued(own) if p not in rare]
        if not asked:
            return {}, unseen
        told = party(asked)
        best = np.argsort(-told.values[: len(asked)], kind="stable")
        kept = [i for i in best if told.values[i] > KEPT * told.deviation][: 2 * top]
        unseen |= {asked[i] for i in best if told.values[i] < 0}
        if level == LONGEST - 1:
            kept = [i for i in kept if told.chance[i] < SURE / len(asked)]
        own = [asked[i] for i in kept]
        found = {
            asked[i].rstrip(END): (float(told.values[i]), float(told.deviations[i])) for i in kept
        }
    return found, unseen


def smallest_share(parties: Mapping[str, Sequence[str]], epsilon: float, top: int) -> float:
    """Of the largest party's users: what an item needs to stand out of the noise of one letter's
    group, where ``top`` prefixes go on (unary answers)."""
    n, candidates = max(map(len, parties.values()), default=0) // LONGEST, 2 * top * len(LETTERS)
    q = 1 / (math.exp(epsilon) + 1)
    return (binom.isf(SURE / candidates, n, q) / n - q) / (0.5 - q) if n else math.inf


def _continued(prefixes: Sequence[str]) -> list[str]:
    """By every letter; what has ended stays."""
    return [
        p + c for p in prefixes for c in (END if p.endswith(END) else LETTERS if p else LETTERS[1:])
    ]
