"""A contribution that stands out is named, and those of clients with few classes are not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from federation import World, lines
from forefed.core.types import Json
from forefed.federation.outliers import outlying
from forefed.local import Trainer
from forefed.run import Callback, run


def told(*contributions: tuple[float | None, float | None]) -> dict[int, str]:
    return outlying(
        [{"client": i, "norm": n, "cosine": c} for i, (n, c) in enumerate(contributions)]
    )


def test_ten_times_as_long_and_against_is_named_and_the_others_are_not() -> None:
    """Nine equal updates u and one of -10 u: the aggregate is -u / 10, so all nine point against
    it; it is the tenth that is named."""
    found = told(*[(1.0, -1.0)] * 9, (10.0, 1.0))
    assert list(found) == [9] and "10 times" in found[9]


def test_one_against_all_is_named() -> None:
    found = told(*[(1.0, 0.9)] * 9, (1.0, -0.9))
    assert list(found) == [9] and "against" in found[9]


@pytest.mark.parametrize("norm", [math.nan, math.inf, None])
def test_what_is_not_finite_is_named_even_among_two(norm: float | None) -> None:
    assert told((1.0, 1.0), (norm, None)) == {1: "is not finite"}


def test_of_three_none_is_called_odd() -> None:
    assert told((1.0, 0.5), (9.0, 0.5), (1.0, -0.9)) == {}


class Notes(Callback):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)


def test_few_classes_are_no_alarm(world: World, tmp_path: Path) -> None:
    skewed = ["partition=dirichlet", "partition.alpha=0.05", "cohort=6", "rounds=3"]
    skewed.append("partition.clients=6")
    notes = Notes()
    run(world.config(tmp_path, "strategy=fedavg", *skewed), callbacks=[notes])
    assert not [text for text in notes.heard if "contribution" in text]


def test_a_client_of_ten_times_its_update_is_named_on_the_terminal_and_in_the_record(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    honest = Trainer.__call__

    def spoilt(self, order, *rest):
        update, state = honest(self, order, *rest)
        if order.client == 2:
            grad = {n: -10 * x for n, x in update.grad.items()}
            update = replace(update, grad=grad)
        return update, state

    monkeypatch.setattr(Trainer, "__call__", spoilt)
    notes = Notes()
    config = world.config(tmp_path, "strategy=fedavg", "cohort=6", "rounds=1")
    result = run(config, callbacks=[notes])
    assert [t for t in notes.heard if "the contribution of client 2 is" in t]
    (line,) = lines(result.folder, "rounds.jsonl")
    by_client: dict[int, Json] = {c["client"]: c for c in line["contributions"]}
    assert len(by_client) == 6
    others = [c["norm"] for client, c in by_client.items() if client != 2]
    assert by_client[2]["norm"] > 3 * max(others)
