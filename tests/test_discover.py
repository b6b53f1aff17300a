"""Local differential privacy: frequency oracles, heavy hitters, and ``forefed discover``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from commands import Command, mistake
from federation import World
from forefed.core.errors import UserError
from forefed.core.keys import Secret
from forefed.privacy import oracles
from forefed.privacy.heavy_hitters import LONGEST, heavy_hitters, spelled
from forefed.privacy.oracles import shares
from forefed.use.discover import discover

SECRET = Secret.rehearsed(0)


def test_unary_answers_are_unbiased_and_vary_as_theory_says() -> None:
    """privacy.md's reference: epsilon 1, 20,000 users, a share of 0.1."""
    items = np.array([0] * 2_000 + [1 + i % 99 for i in range(18_000)])
    found = [shares(items, 100, 1.0, SECRET.fold(i)) for i in range(12)]
    values = np.array([f.values[0] for f in found])
    assert abs(values.mean() - 0.1) < 4 * 0.0140 / math.sqrt(len(values))
    assert 0.5 * 0.01375 < values.std() < 1.7 * 0.01375
    assert found[0].deviation == pytest.approx(0.0136, abs=1e-4)  # of a rare item


@pytest.mark.parametrize("k", [3, 50], ids=["direct", "unary"])
def test_no_answer_is_more_than_e_to_the_epsilon_as_likely(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the probabilities in use: what supports an item, over what does for another one."""
    used = {}
    for name in ("_direct", "_unary"):
        answer = getattr(oracles, name)

        def spy(items, k, p, q, secret, answer=answer, name=name):  # type: ignore[no-untyped-def]
            used[name] = (p, q)
            return answer(items, k, p, q, secret)

        monkeypatch.setattr(oracles, name, spy)
    shares(np.zeros(100, dtype=np.int64), k, 1.0, SECRET)
    ((name, (p, q)),) = used.items()
    assert name == ("_direct" if k == 3 else "_unary")
    worst = p / q if name == "_direct" else (p / q) * ((1 - q) / (1 - p))
    assert worst == pytest.approx(math.e, rel=1e-12)


def test_direct_answers_are_counted_back() -> None:
    items = np.array([0] * 6_000 + [1] * 3_000 + [2] * 1_000)
    values = shares(items, 3, 1.0, SECRET).values
    assert values == pytest.approx([0.6, 0.3, 0.1], abs=0.04) and sum(values) == pytest.approx(1)


def test_heavy_hitters_over_two_parties_and_nobody_answers_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = []
    ask = oracles.shares

    def count(items, *rest):  # type: ignore[no-untyped-def]
        answers.append(len(items))
        return ask(items, *rest)

    monkeypatch.setattr("forefed.privacy.heavy_hitters.shares", count)
    common = ["sepsis"] * 40 + ["stent"] * 25 + ["heparin iv"] * 15
    parties = {
        "a": [spelled(w) for w in common * 80] + [""] * 1_600,
        "b": [spelled(w) for w in common * 30] + ["ward"] * 600,
    }
    for prune in (False, True):
        answers.clear()
        found = heavy_hitters(parties, 4.0, 5, SECRET, prune)
        assert [item.text for item in found][:3] == ["sepsis", "stent", "heparin "]
        assert found[0].share == pytest.approx(0.4, abs=5 * found[0].deviation)
        assert found[2].cut and not found[0].cut
        assert sum(answers) <= sum(map(len, parties.values()))
    again = heavy_hitters(parties, 4.0, 5, SECRET, True)
    assert again == found
    assert heavy_hitters({"a": [""] * 400}, 4.0, 5, SECRET) == []


def test_items_as_they_are_looked_for() -> None:
    assert spelled("Fußödem") == "fussodem" and len(spelled("x" * 50)) == LONGEST
    assert spelled("日\x00") == "??"


def test_the_command(forefed_command: Command, tmp_path: Path) -> None:
    rows = [{"label": "gold" if i % 3 else "tin", "who": i // 2} for i in range(4_000)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    to = tmp_path / "found.json"
    asked = [data, "--of", "labels", "--epsilon", "6", "--user", "who"]
    said = forefed_command("discover", *asked, "--json", to)
    assert said.status == 0, said.err
    assert "gold" in said.out and "2,000 users answered once" in said.out
    found = json.loads(to.read_text())
    assert (
        {item["text"] for item in found["items"]}
        == {"gold", "tin"}
        == {*found["rehearsal"]["true"]}
    )
    assert found["rehearsal"]["f1"] == found["rehearsal"]["ncr"] == 1
    assert found["privacy"]["answers of a user"] == 1
    mistake(forefed_command("discover", data, "--of", "topics", "--epsilon", "1"), "--of 'topics'")
    mistake(forefed_command("discover", data, "--epsilon", "0"), "--epsilon 0")
    mistake(
        forefed_command("discover", *asked[:3], "--epsilon", "1", "--user", "w"), "no column 'w'"
    )


def test_texts_without_a_word_and_more_than_can_be_found(tmp_path: Path, world: World) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "1 2", "label": ["a"]}\n' * 9)
    with pytest.raises(UserError, match="nobody holds an item"):
        discover(rows, 4.0, model=str(world.bert))
    with pytest.raises(UserError, match=r"--top 2000: give how many to find, from 1 to 1,000"):
        discover(rows, 4.0, "labels", top=2000)
    with pytest.raises(UserError, match="holds lists or tables"):
        discover(rows, 4.0, "labels", "label")
