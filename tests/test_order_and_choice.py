"""Which examples come first, who is there, which classes a client answers with; diffGrad."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from federation import World, lines
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import ClientContext, Order, ServerContext
from forefed.data.examples import ClientData
from forefed.gradients.backprop import Backprop
from forefed.local import LocalTraining, Trainer
from forefed.local.samplers import Curriculum, Shuffled
from forefed.optimisers import AdamW, DiffGrad
from forefed.run import configure, run
from forefed.select import Availability
from forefed.sharing import LocalLabels
from forefed.use import predict as use
from forefed.wire import Dense
from toy import toy_clients, toy_params, toy_task

PACES = {
    "linear": (200, 400, 600, 1000, 1000),
    "quadratic": (200, 250, 400, 1000, 1000),
    "root": (200, 600, 766, 1000, 1000),
    "exponential": (200, 200, 205, 1000, 1000),
    "step": (200, 200, 200, 1000, 1000),
}


@pytest.mark.parametrize("pacing", PACES)
def test_sizes_by_hand(pacing: str) -> None:
    """1,000 examples, 100 steps, a = 0.8, b = 0.2."""
    made = Curriculum(pacing=pacing)  # type: ignore[arg-type]
    assert tuple(made.size(1000, s, 100) for s in (0, 20, 40, 80, 99)) == PACES[pacing]
    assert made.size(20, 0, 100) == 20  # never below 32, or all there are


def rows_of(sampler: Curriculum | Shuffled, count: int = 200) -> list[list[int]]:
    (data, *_) = toy_clients()
    data = ClientData(data.examples, np.arange(count), np.arange(0))
    settings = LocalTraining(batch_size=10, group_by_length=False)
    ctx = ClientContext(order=Order(1, 1, 0, (), {}))
    scores = np.arange(count)[::-1].astype(float)  # the last is the easiest
    made = sampler.batches(settings, data, ctx, lambda rows: scores[rows])
    return [[int(i) for i in batch] for batch in made]


def test_easy_examples_come_first_and_all_of_them_in_the_end() -> None:
    easy, hard = rows_of(Curriculum()), rows_of(Curriculum(order="hard"))
    assert len(easy) == len(hard) == 20 and {len(b) for b in easy} == {10}
    assert min(min(b) for b in easy[:2]) >= 160 and max(max(b) for b in hard[:2]) < 40
    assert min(min(b) for b in easy) < 60
    everything = Curriculum(begin=1.0, order="random")
    (data, *_) = toy_clients()
    ctx = ClientContext(order=Order(1, 1, 0, (), {}))
    args = LocalTraining(batch_size=3), data, ctx, lambda rows: np.zeros(len(rows))
    plain = Shuffled().batches(*args)
    assert [list(b) for b in everything.batches(*args)] == [list(b) for b in plain]


def test_scores_are_the_losses_of_single_examples() -> None:
    data, params = toy_clients()[1], toy_params()
    seen: list[np.ndarray] = []

    class Spy(Shuffled):
        def batches(self, settings, data, ctx, losses):  # type: ignore[no-untyped-def]
            seen.append(losses(data.train))
            return super().batches(settings, data, ctx, losses)

    settings = LocalTraining.model_construct(**{**LocalTraining().__dict__, "sampler": Spy()})
    task = toy_task()
    Trainer(settings, Backprop(), Dense(), task).batches(
        Order(1, 1, 1, tuple(params), params), data
    )
    expected = [float(task.loss(params, data.examples.batch([i]))) for i in data.train]
    assert seen[0].tolist() == pytest.approx(expected)


def test_diffgrad_by_hand() -> None:
    """Constant gradient 1: 0.7311 of Adam's first step, then half of each."""
    adam, held = AdamW(lr=1.0, weight_decay=0.0), DiffGrad(lr=1.0)
    start, grad = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    states: list[dict[str, torch.Tensor]] = [{}, {}]
    ends = [start, start]
    for step in range(100):
        for i, optimiser in enumerate((adam, held)):
            states[i], ends[i] = optimiser.step(states[i], ends[i], grad)
        if step == 0:
            assert float(ends[1]["w"] / ends[0]["w"]) == pytest.approx(0.7311, abs=1e-4)
    assert float(ends[1]["w"] / ends[0]["w"]) == pytest.approx(0.5023, abs=1e-4)
    state, _ = held.step({}, start, grad)
    grad["w"].mul_(5)
    assert float(state["before/w"]) == 1.0  # a copy, not the tensor that changes


def test_clients_come_by_the_hour_or_by_a_trace(tmp_path: Path) -> None:
    nights = Availability(part=0.25, day=24)
    days = [[nights.there(c, r) for r in range(1, 49)] for c in range(40)]
    assert all(sum(d[:24]) == 6 and d[:24] == d[24:] for d in days)
    assert len({tuple(d) for d in days}) > 10
    assert (
        len(
            {
                tuple(nights.model_copy(update={"together": 1.0}).there(c, r) for r in range(24))
                for c in range(9)
            }
        )
        == 1
    )
    file = tmp_path / "trace.csv"
    file.write_text("client,from,to\n0,1,2\n2,2,9\n0,5,5\n")
    traced = Availability(trace=file)
    ctx = ServerContext(round=2, key=Key(1))
    assert traced.select(range(4), 3, ctx) == [0, 2]
    assert [r for r in range(1, 8) if traced.there(0, r)] == [1, 2, 5]
    file = tmp_path / "other.csv"
    file.write_text("client,from,to\n0,one,2\n")
    with pytest.raises(UserError, match="line 2"):
        Availability(trace=file).there(0, 1)
    with pytest.raises(UserError, match="cannot be read"):
        Availability(trace=tmp_path / "none.csv").there(0, 1)


def test_a_client_answers_with_its_own_classes_only(world: World, tmp_path: Path) -> None:
    params = {"head.bias": torch.tensor([0.0, 5.0, 1.0]), "head.weight": torch.zeros(3, 2)}
    sharing, head = LocalLabels(), frozenset(params)
    kept = sharing.kept(torch.tensor([2, 0, 2]))
    assert kept["labels"].tolist() == [0, 2]
    assert int(sharing.own(params, kept, head)["head.bias"].argmax()) == 2
    assert sharing.own(params, {}, head) == {}
    sets = ["strategy=fedavg", "sharing=local_labels", "cohort=6", "rounds=1"]
    config = configure(
        sets=world.sets(tmp_path, *sets, "partition=natural", "partition.column=site")
    )
    folder = run(config).folder
    last = {e["split"]: e for e in lines(folder, "evaluations.jsonl") if e["round"] == 1}
    assert last["personal"]["better"] + last["personal"]["worse"] <= last["personal"]["clients"]
    sizes = json.loads((folder / "partition.json").read_text())["sizes"]
    alone = sizes.index(1)  # a single row, so one class
    task, state = use.trained(folder, config, client=alone)
    common = use.trained(folder, config)[1].params
    (bias,) = (n for n in task.head if n.endswith("bias"))
    lowered = state.params[bias] < common[bias] - 100
    assert int(lowered.sum()) == len(lowered) - 1
