"""Answers about held-out rows of which some are lies: what is refused, what a trimmed mean leaves,
and that nothing changes where nobody is assumed to lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from federation import World
from forefed.attacks.answers import Lies, lied
from forefed.config.compat import conflicts
from forefed.config.config import configure
from forefed.core.errors import ProtocolError
from forefed.core.keys import Key
from forefed.core.types import Params, Reply, Transport
from forefed.federation.adversary import Adversary
from forefed.federation.guarding import Jury, guarded
from forefed.federation.questions import Question, ask_total
from forefed.federation.state import RunState
from forefed.federation.votes import check, trimmed_of, trimmed_total
from forefed.guard import HeldOut, guard_of
from forefed.run.build import build
from forefed.start.answer import about, targets_of_task
from forefed.wire.questions import encode_answer


def told(n: float, loss: Sequence[float], right: Sequence[float]) -> Params:
    numbers = {"n": n, "loss": loss, "right": right, "apart": [0.0, *right[1:]]}
    return {name: torch.tensor(x, dtype=torch.float64) for name, x in numbers.items()}


def test_the_total_by_hand() -> None:
    """Of a row: losses 1, 2, 9 and differences -1, 0, 8, of which the middle ones are left."""
    some = [told(2, [2, 0], [1, 2]), told(4, [8, 8], [2, 2]), told(2, [18, 34], [0, 0])]
    found = trimmed_total(some, 1)
    assert float(found["n"]) == 8
    assert found["loss"].tolist() == [8 * 2.0, 8 * (2.0 + 0.0)]
    assert found["right"].tolist() == [8 * 0.5, 8 * (0.5 + 0.0)]
    nobody = trimmed_total([told(0, [0, 0], [0, 0])], 1)
    assert float(nobody["n"]) == 0


def test_without_liars_it_is_the_sum() -> None:
    some = [told(n, [n * 1.5, n * (1.0 + i)], [n, 0]) for i, n in enumerate((3, 5, 4))]
    found, plain = trimmed_total(some, 0), {n: sum(s[n] for s in some) for n in some[0]}
    for name, x in plain.items():
        assert torch.allclose(found[name], cast(torch.Tensor, x))


@pytest.mark.parametrize("loud", [-1e12, 1e12, float("nan"), float("inf")])
def test_no_number_of_a_few_decides(loud: float) -> None:
    honest = [told(10, [10.0, 8.0 + i / 10], [5, 6]) for i in range(7)]
    liars = [told(1e9, [0.0, loud * 1e9], [0, 1e9]) for _ in range(3)]
    found = trimmed_total([*honest, *liars], 3)
    assert 0.7 < float(found["loss"][1] / found["loss"][0]) < 0.9
    assert float(found["n"]) == 7 * 10 + 3 * 30  # three medians at most, whatever they claim


def test_as_many_are_trimmed_as_may_have_been_drawn() -> None:
    assert trimmed_of(50, 12, 50) == 12 and trimmed_of(50, 0, 20) == 0
    assert trimmed_of(50, 12, 20) == 8  # more than 8 of 20 with a chance of .4 %; than 7 of 2.4 %
    assert trimmed_of(10, 4, 3) == 1 and trimmed_of(3, 9, 1) == 0


@pytest.mark.parametrize(
    "answer",
    [
        told(2, [-1, 0], [1, 1]),
        told(2, [1, 0], [3, 1]),
        told(2, [1, 0], [-1, 1]),
        told(-1, [1, 0], [0, 0]),
        told(float("nan"), [1, 0], [0, 0]),
    ],
)
def test_answers_that_no_rows_give_are_refused(answer: Params) -> None:
    with pytest.raises(ProtocolError):
        check(answer)


class Judges:
    """Ten clients of ten rows, for whom the step is good; the last three lie."""

    def __init__(self, how: Lies, claims: float):
        self.how, self.claims = how, claims

    def members(self) -> range:
        return range(10)

    def tell(self, messages: Any, round: int, deadline_s: Any) -> Iterator[Reply]:
        for client in messages:
            answer = told(10, [10, 6, 8, 9], [5, 8, 7, 6])
            if client >= 7:
                answer = lied("loss", answer, self.how, self.claims)
            yield Reply(round, client, encode_answer("loss", "it", answer), 1)


@pytest.mark.parametrize(
    ("how", "claims", "believed"),
    [("honest", 1.0, 1.0), ("reversed", 5.0, 0.0), ("drowned", 1.0, 0.0)],
)
def test_a_guard_takes_the_step_whatever_three_of_ten_say(
    how: Lies, claims: float, believed: float
) -> None:
    before, after = RunState(0, {"w": torch.zeros(2)}), RunState(1, {"w": torch.ones(2)})
    jury = Jury(cast(Transport, Judges(how, claims)), "it", answered=True)
    assert guarded(HeldOut(), jury, Key(0), before, after)[1]["step"] == believed
    robust = Jury(cast(Transport, Judges(how, claims)), "it", answered=True, hostile=0.3)
    assert guarded(HeldOut(), robust, Key(0), before, after)[1]["step"] == 1.0


def test_who_lies_is_assumed_as_for_the_rounds_and_only_where_answers_are_seen() -> None:
    def f(*sets: str) -> object:
        guard = guard_of(configure(sets=["strategy=fedavg", *sets]))
        return guard and guard.f

    robust = "aggregator={kind='dnc', f=0.25}"
    assert f() == 0 and f(robust) == 0.25 and f(robust, "guard={kind='held_out', f=2}") == 2
    assert f("channel=secure_sum") == 0
    hidden = configure(
        sets=["strategy=fedavg", "channel=secure_sum", "guard={kind='held_out', f=1}"]
    )
    assert [c for c in conflicts(hidden) if "guard.f" in c]


def test_hostile_clients_lie_in_what_they_are_asked(world: World, tmp_path: Path) -> None:
    """In held-out answers and words' sums, as the attack says; the truth by default."""
    sets = ["strategy=fedavg", "start=closed_form", "model.pooling=mean", "start.f=2"]
    attack = "attack={kind='sign_flip', hostile=2, answers='reversed', claims=2}"
    federation = build(world.config(tmp_path, *sets, attack))
    adversary = federation.transport
    assert isinstance(adversary, Adversary)
    answers = adversary.inner.party.answers
    assert answers is not None
    heads = {"weight": Key(1).normal((2, 3, 48)), "bias": torch.zeros(2, 3)}
    question = Question("heads", about(federation.task), heads, 0, range(6), None)
    shapes = targets_of_task(federation.task).shapes(2, False)
    _, total = ask_total(adversary.inner, question, shapes)
    _, lies = ask_total(adversary, question, shapes)
    assert float(lies["n"]) > float(total["n"]) and not torch.equal(lies["loss"], total["loss"])
    heard, _ = ask_total(adversary, question, shapes, hostile=(2, 6))
    assert len(heard.clients) == 6
