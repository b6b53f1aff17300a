"""Held-out rows judge steps by what is right, too: by hand, and as laws of whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from federation import Interrupted, StopAfter, World
from forefed.core.keys import Key
from forefed.core.types import Reply, Transport
from forefed.data.examples import Examples
from forefed.federation.guarding import Held, Jury, guarded
from forefed.federation.state import RunState
from forefed.guard import HeldOut
from forefed.models.objectives import Classes, MultiLabel
from forefed.run import judged, run
from forefed.run.build import build
from forefed.start.answer import Answers, about
from forefed.wire.questions import decode_answer, encode_answer, encode_question

GUARDED = ("start=closed_form", "model.pooling=mean", "strategy=fedavg")
GUARDED += ("guard={kind='held_out', worth=0}", "data.client_test_fraction=0.3")
GUARDED += ("start.then=trained", "start.regularisation=10")  # a head that steps can better


def examples(labels: Any) -> Examples:
    labels = np.array(labels)
    n = len(labels)
    tokens, lengths = np.zeros(n, dtype=np.int32), np.ones(n, dtype=np.int64)
    return Examples(tokens, None, np.arange(n + 1), labels, lengths, 0)


def test_points_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    assert Classes(("a", "b", "c")).points(logits, examples([0, 1, 0]), [2, 1]) == [1, 0]
    marks = examples([[1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]])
    said = torch.tensor([[1.0, -1, -1], [1.0, -1, -1], [-1.0, 0, -1], [-1.0, -1, -1]])
    # one of two labels; a label too many; both ends; rightly nothing
    expected = [2 / 3, 0, 1, 1]
    assert MultiLabel(("a", "b", "c")).points(said, marks, range(4)) == pytest.approx(expected)


def test_a_difference_is_counted_in_its_standard_errors() -> None:
    held = Held(50, [1.0, 0.9, 0.8], [40.0, 43.0, 38.0], [0.0, 9.0, 4.0])
    assert [held.gained(i) for i in range(3)] == [0, 1, -1]
    assert Held(50, [1.0, 0.9]).gained(1) == 0


@pytest.mark.parametrize(
    ("right", "apart", "step"),
    [
        ((40, 40, 40, 40), (0, 2, 2, 2), 1.0),  # as many
        ((40, 38, 39, 40), (0, 4, 3, 2), 1.0),  # fewer by one standard error, not more
        ((40, 37, 39, 40), (0, 3, 3, 2), 0.5),  # whole step: by more
        ((40, 37, 37, 38), (0, 3, 3, 2), 0.0),
    ],
)
def test_a_step_that_costs_right_answers_is_not_taken(
    right: tuple[int, ...], apart: tuple[int, ...], step: float
) -> None:
    state, after = RunState(1, {"w": torch.zeros(2)}), RunState(2, {"w": torch.ones(2)})

    class Fixed:
        """One client of 50 rows, whose loss is the lower the longer the step."""

        def members(self) -> tuple[int, ...]:
            return (0,)

        def tell(self, *_: Any) -> Any:
            numbers = {"loss": (50, 30, 40, 45), "n": 50.0, "right": right, "apart": apart}
            answer = {n: torch.tensor(x, dtype=torch.float64) for n, x in numbers.items()}
            yield Reply(1, 0, encode_answer("loss", "it", answer), 1)

    jury = Jury(cast(Transport, Fixed()), "it", answered=True)
    state, line = guarded(HeldOut(), jury, Key(0), state, after)
    assert line["step"] == step and float(state.params["w"][0]) == step
    assert line["right"] == list(right) and ("reason" in line) == (step == 0)


def test_clients_count_what_is_right_and_what_differs(world: World, tmp_path: Path) -> None:
    federation = build(world.config(tmp_path, *GUARDED))
    task, data = federation.task, federation.data.population.client(0)
    other = {n: x + 0.5 * Key(1).fold(n).normal(tuple(x.shape)) for n, x in task.params.items()}
    asked = {f"0/{n}": x for n, x in task.params.items()} | {f"1/{n}": x for n, x in other.items()}
    told = Answers(task)(encode_question("loss", about(task), asked), data)
    found = decode_answer(told, "loss", about(task))
    hits = []
    for params in (task.params, other):
        sums = task.evaluate(params, data.examples, data.test, 1)
        rows = [task.evaluate(params, data.examples, [i], 1)["confusion"] for i in data.test]
        hits.append(np.array([np.trace(confusion) for confusion in rows]))
        assert hits[-1].sum() == np.trace(sums["confusion"])
    assert found["right"].tolist() == [h.sum() for h in hits]
    assert found["apart"].tolist() == [0, np.abs(hits[1] - hits[0]).sum()] and found["apart"][1] > 0


def test_steps_have_to_be_worth_more_than_the_head() -> None:
    guard, jury = HeldOut(), Jury(cast(Transport, None), "it", answered=True)

    def kept(losses: list[float], right: tuple[float, float], apart: float) -> bool:
        return judged.worth_it(guard, jury, Held(50, losses, [*right], [0.0, apart]))

    assert kept([1.0, 0.9], (40, 43), 9) and not kept([1.0, 0.9], (40, 42), 9)
    assert not kept([1.0, 1.1], (40, 43), 9) and not kept([1.0, 0.9], (40, 40), 0)
    assert judged.worth_it(guard, jury, Held(0, []))
    plain = Jury(cast(Transport, None), "it")
    assert judged.worth_it(guard, plain, Held(50, [1.0, 0.98]))
    assert not judged.worth_it(guard, plain, Held(50, [1.0, 0.995]))
    sure = Jury(cast(Transport, None), "it", classes=True, answered=True)
    assert not judged.worth_it(guard, sure, Held(50, [0.05, 0.01], [49.0, 50.0], [0.0, 1.0]))


def test_a_run_whose_steps_are_left_out_is_the_head_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit that of no rounds, solved from all rows; after a kill as well."""
    alone = world.run(tmp_path / "a", *GUARDED, "rounds=0")
    config = world.config(tmp_path / "b", *GUARDED)
    monkeypatch.setattr(judged, "ERRORS", -1e9)
    kept = run(config)
    monkeypatch.setattr(judged, "ERRORS", 1e9)
    config = world.config(tmp_path / "c", *GUARDED)
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(2))
    left = run(config, resume=True)
    steps = [json.loads((r.folder / "start.json").read_text())["steps"] for r in (kept, left)]
    assert steps[0]["rows"] == steps[1]["rows"] > 0 and steps[0]["loss"] == steps[1]["loss"]
    assert [s["kept"] for s in steps] == [steps[0]["loss"][1] < steps[0]["loss"][0], False]
    assert left.summary["final"]["all_rows"] and "all_rows" not in kept.summary["final"]
    assert left.summary["digest"] == alone.summary["digest"] != kept.summary["digest"]
    one, two = (json.loads((r.folder / "start.json").read_text()) for r in (alone, left))
    assert two["bytes_up"] > one["bytes_up"] and one["examples"] == two["examples"]
