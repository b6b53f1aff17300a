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
from forefed.data.examples import ClientData, Examples
from forefed.federation import guarding
from forefed.federation.guarding import Held, Jury, guarded
from forefed.federation.state import RunState
from forefed.guard import HeldOut
from forefed.models.objectives import Classes, MultiLabel
from forefed.run import guard_decisions, run
from forefed.run.build import build, start_at
from forefed.run.head_start import again, begin, head_of, params_of
from forefed.run.start_result import load_begun
from forefed.start.answer import Answers, about, targets_of_task
from forefed.start.solver import Solver
from forefed.use import predict as use
from forefed.use.forget import forget
from forefed.wire.questions import decode_answer, encode_answer, encode_question

GUARDED = ("start=closed_form", "model.pooling=mean", "strategy=fedavg")
GUARDED += ("guard={kind='held_out', worth=0}", "data.client_test_fraction=0.3")
TRAINED = (*GUARDED, "start.then=trained", "start.regularisation=10")  # steps can better it


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
        return guard_decisions.worth_it(guard, jury, Held(50, losses, [*right], [0.0, apart]))

    assert kept([1.0, 0.9], (40, 43), 9) and not kept([1.0, 0.9], (40, 42), 9)
    assert not kept([1.0, 1.1], (40, 43), 9) and not kept([1.0, 0.9], (40, 40), 0)
    assert guard_decisions.worth_it(guard, jury, Held(0, []))
    plain = Jury(cast(Transport, None), "it")
    assert guard_decisions.worth_it(guard, plain, Held(50, [1.0, 0.98]))
    assert not guard_decisions.worth_it(guard, plain, Held(50, [1.0, 0.995]))
    sure = Jury(cast(Transport, None), "it", classes=True, answered=True)
    assert not guard_decisions.worth_it(
        guard, sure, Held(50, [0.05, 0.01], [49.0, 50.0], [0.0, 1.0])
    )


def record(result: Any) -> Any:
    return json.loads((result.folder / "start.json").read_text())


def test_a_run_whose_steps_are_left_out_is_the_head_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit that of no rounds, solved from all rows; after a kill as well."""
    alone = world.run(tmp_path / "a", *TRAINED, "rounds=0")
    monkeypatch.setattr(guard_decisions, "ERRORS", -1e9)
    kept = world.run(tmp_path / "b", *TRAINED)
    monkeypatch.setattr(guard_decisions, "ERRORS", 1e9)
    config = world.config(tmp_path / "c", *TRAINED)
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(2))
    left = run(config, resume=True)
    steps = [record(r)["steps"] for r in (kept, left)]
    assert steps[0]["rows"] == steps[1]["rows"] > 0 and steps[0]["loss"] == steps[1]["loss"]
    assert [s["kept"] for s in steps] == [steps[0]["loss"][1] < steps[0]["loss"][0], False]
    assert left.summary["final"]["all_rows"] and "all_rows" not in kept.summary["final"]
    assert left.summary["digest"] == alone.summary["digest"] != kept.summary["digest"]
    assert record(left)["bytes_up"] > record(alone)["bytes_up"]
    assert record(left)["examples"] == record(alone)["examples"]


ADAPTED = ("start.regularisation=10", "start.words=64", "client.optimiser.lr=3e-2", "rounds=1")


def test_the_head_is_solved_again_from_the_trained_models_features(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapters' steps taken, and kept or not by what held-out rows say; after a kill as well;
    sums are those of all rows, whoever holds them, and a client can be forgotten."""
    monkeypatch.setattr(guarding, "vouched", lambda rows: -1.0)
    monkeypatch.setattr(HeldOut, "steps", (1.0, -1.0, -0.25))  # one of them lowers the loss
    say = {True: 1.0, False: 2.0}
    monkeypatch.setattr(
        guard_decisions,
        "answers_of",
        lambda line: {"loss": say[bool(line.get("adapted"))], "f": 0.5},
    )
    more = (*GUARDED, *ADAPTED)
    kept, config = world.run(tmp_path / "a", *more), world.config(tmp_path / "a", *more)
    assert record(kept)["steps"] == {
        **{"kept": True, "rows": record(kept)["held_out"], "loss": [2.0, 1.0]},
        **{"measure": "f", "quality": [0.5, 0.5]},
    }
    begun, federation = load_begun(kept.folder), build(config)
    task, saved = use.trained(kept.folder, config)
    assert begun is not None and begun.finished and kept.summary["final"]["all_rows"]
    assert all(torch.equal(saved.params[n], x) for n, x in begun.head.items())
    body = {n: x for n, x in saved.params.items() if n not in task.head}
    assert any(not torch.equal(x, federation.task.params[n]) for n, x in body.items())
    examples = federation.data.population.examples
    clients = [federation.data.population.client(c) for c in range(6)]
    everything = np.sort(np.concatenate([x for c in clients for x in (c.train, c.test)]))
    whole = ClientData(examples, everything, everything[:0])
    expected = Answers(task).sums_of(body, whole)
    assert all(
        torch.equal(x, y)
        for x, y in zip(vars(expected).values(), vars(begun.total).values(), strict=True)
    )
    solver = Solver.of(expected, targets_of_task(task).unit)
    head = head_of(targets_of_task(task), solver, begun.line, "counts")
    assert all(torch.equal(begun.head[n], x) for n, x in params_of(task, head).items())

    say |= {True: 3.0}
    left = world.run(tmp_path / "b", *more)
    alone = world.run(tmp_path / "c", *more, "rounds=0")
    assert record(left)["steps"]["kept"] is False
    assert left.summary["digest"] == alone.summary["digest"] != kept.summary["digest"]

    others = forget(kept.folder, 2)
    rest = [x for i, c in enumerate(clients) if i != 2 for x in (c.train, c.test)]
    without = ClientData(examples, np.sort(np.concatenate(rest)), everything[:0])
    assert torch.equal(others.total.xx, Answers(task).sums_of(body, without).xx)


def test_solved_again_without_a_step_it_is_the_same(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path, *GUARDED, "start.words=64")
    federation = build(config)
    task, transport, start = (
        federation.task,
        federation.transport,
        start_at(config, federation.task),
    )
    assert start is not None
    begun = begin(start, task, transport, None, 64)
    body = {n: x for n, x in task.params.items() if n not in task.head}
    same = again(begun, start, task, transport, None, body)
    assert same.line["adapted"] and same.line["bytes_up"] > begun.line["bytes_up"]
    assert all(torch.equal(same.head[n], x) for n, x in begun.head.items())
    assert guard_decisions.answers_of(same.line) == pytest.approx(
        guard_decisions.answers_of(begun.line)
    )
