"""Cross-fitting: clients train against a head that was solved from the other groups' rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deployment import NAMES, FakePost, deployed, make_sites, rehearsal
from federation import Interrupted, StopAfter, World, lines
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.deploy.connect import connect_by
from forefed.federation.folds import FOLDS, Folds, groups_of
from forefed.models.bag_of_words import WORDS
from forefed.run import Config, run
from forefed.run.build import Federation, answers, build, start_at
from forefed.run.callback import Callback
from forefed.run.checkpoint import load_checkpoint
from forefed.run.head_start import _scaled, begin, head_of, params_of
from forefed.run.rebuild import replay_log
from forefed.run.start_questions import Asked
from forefed.run.start_result import Begun, with_start
from forefed.start.answer import TRAINING, targets_of_task
from forefed.start.closed_form import ClosedForm, folds_of
from forefed.start.solver import Solver
from forefed.start.sums import Sums

START = ("start=closed_form", "model.pooling=mean", "model.layers=spread", "start.words=50")
RUN = ("strategy=fedavg", *START, "start.folds=3", "start.regularisation=3")


def begun_of(config: Config, folds: int) -> tuple[Federation, Begun]:
    federation = build(config)
    start = start_at(config, federation.task)
    assert start is not None
    key = Key(config.seed)
    found = begin(
        start,
        federation.task,
        federation.transport,
        None,
        words=50,
        groups=lambda members: (groups_of(members, folds, key), ""),
    )
    return federation, found


def test_groups_are_even_and_drawn_by_the_key() -> None:
    groups = groups_of(range(10), 4, Key(1))
    assert sorted(len(some) for some in groups) == [2, 2, 3, 3]
    assert sorted(c for some in groups for c in some) == [*range(10)]
    assert groups == groups_of([*range(9, -1, -1)], 4, Key(1)) != groups_of(range(10), 4, Key(2))
    assert groups_of([4, 7], 3, Key(0)) in ([[4], [7]], [[7], [4]])
    assert groups_of([], 3, Key(0)) == [[]]


def test_a_group_has_the_head_and_the_words_of_the_others_rows(
    world: World, tmp_path: Path
) -> None:
    federation, alone = begun_of(world.config(tmp_path, *START), 1)
    _, begun = begun_of(world.config(tmp_path, *START), 3)
    task, population = federation.task, federation.data.population
    assert alone.folds is None and begun.folds is not None and begun.words is not None
    assert begun.line["folds"] == [2, 2, 2] and len(begun.notes) == len(alone.notes) + 1
    # what all have is the same, to the bit
    assert all(torch.equal(begun.head[n], x) for n, x in alone.head.items())
    assert alone.words is not None and torch.equal(begun.words.weight, alone.words.weight)
    targets, answering = targets_of_task(task), answers(federation.config, task, None)
    for k, mine in enumerate(groups_of(range(6), 3, Key(0))):
        others = [c for c in range(6) if c not in mine]
        asked = {"rows": torch.tensor(TRAINING)}
        total = Sums.over(answering.sums_of(asked, population.client(c)) for c in others)
        head = head_of(targets, Solver.of(total, targets.unit), begun.line, "counts")
        expected = params_of(task, head)
        assert all(torch.equal(begun.folds.heads[k][n], x) for n, x in expected.items())
        question = Asked(task, federation.transport, None, others)
        (said,) = question.words(begun.words.bag, [total], TRAINING)
        assert torch.equal(begun.folds.words[k], _scaled(said, begun.line).weight)
        assert not torch.equal(begun.folds.words[k], begun.words.weight)


def test_orders_have_the_head_of_the_clients_group(world: World, tmp_path: Path) -> None:
    federation, begun = begun_of(world.config(tmp_path, *RUN, "cohort=6"), 3)
    state, star = with_start(federation.start(), begun), federation.star
    folds = begun.folds
    assert folds is not None
    told = Folds.kept(state.of(FOLDS))
    assert told is not None and [told.group_of(c) for c in (6, 99)] == [-1, -1]
    orders = star.plan(state)
    assert len({id(order.params) for order in orders.values()}) == 3
    for client, order in orders.items():
        k = folds.group_of(client)
        assert client in groups_of(range(6), 3, Key(0))[k]
        for name, x in federation.task.params.items():
            expected = folds.heads[k].get(name, x)
            assert torch.equal(order.params[name], expected)
        assert torch.equal(order.broadcast[f"{WORDS}/weight"], folds.words[k])
    # by which steps are judged
    assert all(torch.equal(state.params[n], x) for n, x in begun.head.items())
    bare = star.plan(with_start(federation.start(), begun_of(federation.config, 1)[1]))
    assert len({id(order.params) for order in bare.values()}) == 1


def test_any_number_of_workers_and_any_stop_give_the_same_bits(
    world: World, tmp_path: Path
) -> None:
    sets = (*RUN, "rounds=2", "guard=none", "start.again=false")
    whole = world.run(tmp_path, *sets, "name=whole")
    assert (
        world.run(tmp_path, *sets, "name=two", "workers=2").summary["digest"]
        == (whole.summary["digest"])
    )
    other = world.run(tmp_path, *sets, "name=one", "start.folds=1")
    assert other.summary["digest"] != whole.summary["digest"]
    losses = [lines(r.folder, "rounds.jsonl")[0]["loss"] for r in (whole, other)]
    assert losses[0] > losses[1]  # of rows that the head has not seen
    for stop in (StopAfter(0, outcomes=1), StopAfter(1, outcomes=1)):
        config = world.config(tmp_path, *sets, f"name=stopped-{stop.rounds}")
        with pytest.raises(Interrupted):
            run(config, watcher=stop)
        assert run(config, resume=True).summary["digest"] == whole.summary["digest"]
        saved = load_checkpoint(config.folder, config, torch.device("cpu"))
        assert saved is not None and Folds.kept(saved.state.of(FOLDS)) is not None


@pytest.mark.parametrize("again", ["true", "false"])
def test_a_run_that_is_over_keeps_no_groups(again: str, world: World, tmp_path: Path) -> None:
    steps = ("rounds=2", "guard={kind='held_out', worth=0}", "client.optimiser.lr=0.02")
    config = world.config(tmp_path, *RUN, *steps, f"start.again={again}")
    line = json.loads((run(config).folder / "start.json").read_text())
    assert line["all_rows"] if again == "true" else not line["steps"]["kept"]
    saved = load_checkpoint(config.folder, config, torch.device("cpu"))
    assert saved is not None and saved.state.of(WORDS) and not saved.state.of(FOLDS)


def test_rates_are_larger_in_groups_unless_a_rate_is_given(world: World, tmp_path: Path) -> None:
    def settings(*more: str) -> tuple[object, object]:
        start = world.config(tmp_path, *more).start
        return getattr(start, "folds", 0), getattr(start, "folds_rate", 0)

    assert settings(*START, "strategy=fedavg") == (1, 1)  # a kind of start was given
    given, times = ("strategy=fedavg", "start=auto"), "start.folds_rate"
    assert settings(*given) == ("auto", 3) == settings(*given, "client.batch_size=4")
    assert settings(*given, "client.optimiser.lr=0.01") == ("auto", 1)
    assert settings(*given, "client.optimiser=sgd") == ("auto", 1)
    assert settings("start=auto") == settings("start=auto", "strategy=fedprox") == (1, 1)
    assert settings("start=auto", "strategy=fedavg_checkpointed") == ("auto", 3)
    sets = (*RUN, "rounds=1", "guard=none", "start.again=false", "start.words=0")
    tripled = world.run(tmp_path, *sets, f"{times}=4", "name=a")
    by_hand = world.run(tmp_path, *sets, "client.optimiser.lr=4e-3", "name=b")
    assert tripled.summary["digest"] == by_hand.summary["digest"]
    few = world.run(tmp_path, *sets, f"{times}=4", "start.folds=1", "name=c")
    one = world.run(tmp_path, *sets, "start.folds=1", "name=d")
    assert few.summary["digest"] == one.summary["digest"] != tripled.summary["digest"]


def test_sites_train_against_the_heads_of_the_rehearsal(world: World, tmp_path: Path) -> None:
    more = (*RUN, "rounds=1", "guard=none", "start.words=20")
    alone = run(rehearsal(world, tmp_path / "a", *more))
    sites = make_sites(world, tmp_path)
    there = run(deployed(world, tmp_path / "b", *more), connect=connect_by(FakePost(sites)))
    assert there.summary["digest"] == alone.summary["digest"]
    assert len(sites) == len(NAMES) == 3
    line = lines(there.folder, "rounds.jsonl")[0]
    assert line["loss"] == lines(alone.folder, "rounds.jsonl")[0]["loss"]


def test_a_secure_sum_of_each_group_gives_the_same_heads(world: World, tmp_path: Path) -> None:
    _, plain = begun_of(world.config(tmp_path, *START), 2)
    hidden = ("channel={kind='secure_sum', min_group=3}", "strategy=fedavg", "start.folds=2")
    said: list[str] = []

    class Listening(Callback):
        def note(self, text: str) -> None:
            said.append(text)

    config = world.config(tmp_path, *START, *hidden, "rounds=1", "guard=none", "start.again=false")
    run(config, callbacks=[Listening()])
    saved = load_checkpoint(config.folder, config, torch.device("cpu"))
    assert saved is not None and plain.folds is not None
    kept = Folds.kept(saved.state.of(FOLDS))
    assert kept is not None and any("in 2 groups of 3, 3" in text for text in said)
    for one, other in zip(plain.folds.heads, kept.heads, strict=True):
        assert all(torch.equal(other[n], x) for n, x in one.items())
    with pytest.raises(UserError, match="of 6 clients a group has 2, below the 3 of a sum"):
        world.run(tmp_path / "b", *START, *hidden, "start.folds=3")


@pytest.mark.parametrize("what", ["tags", "scores", "slopes"])
def test_any_target_and_what_slopes_stand_for(what: str, world: World, tmp_path: Path) -> None:
    sets = {
        "tags": (f"data.source.path='{world.tags}'", "data.task=multilabel", "strategy=fedavg"),
        "scores": (f"data.source.path='{world.scores}'", "data.task=regression"),
        "slopes": ("codec=scalars", "checkpoint_every=9"),
    }
    more = ("rounds=1", "guard=none", "start.folds=2", "start.again=false")
    result = world.run(tmp_path, *START, *more, *sets[what])
    assert json.loads((result.folder / "start.json").read_text())["folds"] == [3, 3]
    if what == "slopes":
        assert replay_log(result.folder).digest == result.summary["digest"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (("start.then=trained",), "a head that is trained in the rounds is one for all"),
        (("rounds=0",), "nobody trains"),
        (("strategy=hiso",), "all clients keep the same parameters"),
        (("strategy=spry", "codec=scalars", "start.folds_rate=2"), "at the clients' own rates"),
        (("sharing=local_labels",), "each client answers by its own model"),
    ],
)
def test_what_cannot_work_is_said_before(
    world: World, tmp_path: Path, settings: tuple[str, ...], match: str
) -> None:
    with pytest.raises(UserError, match=rf"start.folds = 3: .*{match}.*; set it to 1"):
        build(world.config(tmp_path, *RUN, *settings))


def test_auto_takes_groups_where_there_are_clients_for_them(world: World, tmp_path: Path) -> None:
    def folds(clients: int, *more: str) -> tuple[int, str]:
        config = world.config(tmp_path, *RUN, "start.folds=auto", *more)
        assert isinstance(config.start, ClosedForm)
        return folds_of(config.start, config, clients)

    assert folds(50) == folds(20) == (4, "")
    assert folds(19) == (1, "19 clients are too few for 4 groups of 5")
    assert folds(50, "start.then=trained")[0] == folds(50, "rounds=0")[0] == 1
    hidden = "channel={kind='secure_sum', min_group=10}"
    assert folds(39, hidden)[0] == 1 and folds(40, hidden)[0] == 4
    assert folds(2, "start.folds=3") == (2, "")
