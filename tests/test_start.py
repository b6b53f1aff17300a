"""The closed-form head: exact for every partition, subtractable, chosen by held-out rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import forefed
from deployment import FakePost, deployed, make_sites, rehearsal
from federation import World
from forefed.compare.baselines import baselines
from forefed.core.errors import ProtocolError, UserError
from forefed.core.keys import Key
from forefed.core.types import Params, Reply, Transport
from forefed.deploy.connect import connect_by
from forefed.federation.guarding import Jury, guarded, steps_kept
from forefed.federation.state import RunState
from forefed.guard import HeldOut, guard_of, vouched
from forefed.run import run
from forefed.run.build import answers, build, start_at
from forefed.run.callback import Callback
from forefed.run.head_start import begin, params_of
from forefed.run.start_result import load_begun
from forefed.start.answer import ALL, Answers, about
from forefed.start.closed_form import ClosedForm, start_of
from forefed.start.features import features
from forefed.start.solver import Solver
from forefed.start.sums import STEP, Sums, pack
from forefed.start.targets import SCALES, Classes
from forefed.start.targets.classes import RIDGE
from forefed.use import predict as use
from forefed.use.forget import forget
from forefed.wire.message import unpack, unpack_tensors
from forefed.wire.questions import decode_answer, encode_answer, encode_question

LIE = 100_000 * torch.tensor([[1], [-1], [0]]) * torch.ones(5).long()
"""Added to the features of two classes, which their sum does not show."""
START = ("start=closed_form", "model.pooling=mean", "model.layers=spread")
NAMES = ("a", "b", "c")


def rows(n: int = 40, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(n) % 3
    x = Key(3).normal((n, width)) + torch.nn.functional.one_hot(labels, width).float()
    return x, labels


def sums(x: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...] = NAMES) -> Sums:
    return Sums.of(x, Classes(names).of(labels.numpy()))


def on_grid(x: torch.Tensor) -> np.ndarray[Any, Any]:
    return ((x.double() / STEP).round() * STEP).numpy()


def test_sums_do_not_see_who_holds_what_not_by_a_bit() -> None:
    x, labels = rows()
    whole = sums(x, labels)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    for cuts in ([40], [1, 39], [7, 7, 26], [1] * 40):
        total = Sums.zero(3, 5)
        for part in order.split(cuts):
            total = total.plus(sums(x[part], labels[part]))
        assert all(
            torch.equal(a, b)
            for a, b in zip(vars(total).values(), vars(whole).values(), strict=True)
        )


def test_sums_without_a_site_are_those_of_a_run_without_it() -> None:
    x, labels = rows()
    gone = sums(x[:9], labels[:9])
    left = sums(x, labels).plus(gone, -1)
    again = sums(x[9:], labels[9:])
    assert all(
        torch.equal(a, b) for a, b in zip(vars(left).values(), vars(again).values(), strict=True)
    )


def test_heads_equal_the_pooled_solutions() -> None:
    x, labels = rows()
    n, share = len(x), 0.1
    z, y = on_grid(x), np.eye(3)[labels]
    solver = Solver.of(sums(x, labels))
    mean, scale = z.mean(0), z.std(0)
    s = (z - mean) / scale
    found = Classes(NAMES).head(solver, ("ridge", share), "counts")
    weight = np.linalg.solve(s.T @ s + share * n * np.eye(5), s.T @ (y - y.mean(0))).T
    expected = RIDGE * (s @ weight.T + y.mean(0))
    logits = z @ found.weight_CD.numpy().T + found.bias_C.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-9)

    found = solver.discriminant(share)
    centres = np.stack([s[labels == c].mean(0) for c in range(3)])
    inside = s - centres[labels]
    covariance = inside.T @ inside / n
    covariance += share * np.trace(covariance) / 5 * np.eye(5)
    weight = np.linalg.solve(covariance, centres.T).T
    bias = np.log(y.mean(0)) - (weight * centres).sum(1) / 2
    logits = z @ found.weight_CD.numpy().T + found.bias_C.numpy()
    np.testing.assert_allclose(logits, s @ weight.T + bias, atol=1e-9)


@pytest.mark.parametrize("numbers", [[0], [127, -128], [128], [-129], [2**40, -(2**40)], [-1, 5]])
def test_sums_travel_in_few_bytes_and_come_back(numbers: list[int]) -> None:
    from forefed.start.sums import unpack

    x = torch.tensor(numbers)
    assert torch.equal(unpack(pack(x), x, "x"), x)
    assert pack(torch.tensor([127, -128])).shape == (2, 1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: {**s, "xx": -s["xx"]}, "not positive semidefinite"),
        (lambda s: {**s, "n": 0 * s["n"]}, "sums of no rows"),
        (lambda s: {**s, "n": s["n"] + 1}, "are not those of the rows"),
        (lambda s: {**s, "x": s["x"] + 1}, "contradict each other"),
        (lambda s: {**s, "xy": s["xy"] + LIE}, "do not fit the features by class"),
    ],
)
def test_sums_that_no_rows_can_have_are_refused(change: Any, match: str) -> None:
    parts = change(vars(sums(*rows())))
    with pytest.raises(ProtocolError, match=match):
        told = Sums.unpacked(Sums(**parts).packed(), 3, 5)
        Classes(NAMES).check(told)
        Classes(NAMES).inside(told)
    with pytest.raises(ProtocolError, match="is it the same model"):
        Sums.unpacked(sums(*rows()).packed(), 3, 6)


def test_features_that_are_no_numbers_are_refused() -> None:
    x, labels = rows()
    for value in (torch.nan, torch.inf, 1e9):
        with pytest.raises(ProtocolError, match="not finite, or too large"):
            sums(torch.where(torch.arange(5) == 2, value, x), labels)


def test_rows_from_which_no_head_can_be_made() -> None:
    x, labels = rows()

    def notes(
        x: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...] = NAMES
    ) -> tuple[str, ...]:
        total = sums(x, labels, names)
        return (*Classes(names).usable(total), *Solver.of(total).notes)

    with pytest.raises(UserError, match="one class only"):
        notes(x, 0 * labels, ("a",))
    with pytest.raises(UserError, match="every training row of the clients is of class 'b'"):
        notes(x, 0 * labels + 1)
    with pytest.raises(UserError, match="2 training rows for 3 classes"):
        notes(x[:2], labels[:2])
    with pytest.raises(UserError, match="have the same features"):
        notes(torch.ones_like(x), labels)
    (absent,) = notes(x, labels, (*NAMES, "d", "e"))
    assert absent == "no client has a training row of d, e: the head cannot know them"
    (singular,) = notes(x[:4], labels[:4])
    assert singular.startswith("4 training rows are few for a head that reads 5 features")
    same = sums(torch.where(torch.arange(5) == 2, 1.0, x), labels)
    flat = Solver.of(same).discriminant(0.1)
    assert torch.isfinite(flat.weight_CD).all() and float(flat.weight_CD[:, 2].abs().max()) < 1e-12


class Spoiling:
    """Clients of whom one changes what it answers to one kind of question."""

    def __init__(self, inside: Any, kind: str, change: Callable[[Params], Params]):
        self.inside, self.kind, self.change = inside, kind, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)

    def tell(self, messages: Any, *how: Any) -> Iterator[Any]:
        for outcome in self.inside.tell(messages, *how):
            meta, body = unpack(outcome.payload, "answer")
            if outcome.client == 2 and meta["k"] == self.kind:
                changed = self.change(unpack_tensors(body))
                outcome = replace(outcome, payload=encode_answer(meta["k"], meta["of"], changed))
            yield outcome


def spoilt(**parts: torch.Tensor) -> Callable[[Params], Params]:
    """Sums with other parts in the place of their own."""
    return lambda tensors: {**tensors, **{n: pack(x) for n, x in parts.items()}}


WIDTH = 48  # of the tiny model's features


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("sums", spoilt(xx=-torch.eye(WIDTH).long()[tuple(torch.triu_indices(WIDTH, WIDTH))])),
        ("sums", spoilt(y=torch.tensor([10**6, 0, 0]))),
        ("sums", spoilt(n=torch.tensor(-1))),
        ("sums", spoilt(x=torch.zeros(WIDTH - 1).long())),
        ("sums", lambda tensors: {"x": torch.full((3,), torch.nan)}),
        ("heads", lambda tensors: {n: x[None] for n, x in tensors.items()}),
        ("documents", lambda tensors: {**tensors, "n": torch.tensor(-3)}),
    ],
)
def test_one_site_with_sums_that_no_rows_can_have_is_one_loss(
    kind: str, change: Any, world: World, tmp_path: Path
) -> None:
    sets = ("start.words=50", "start.solver=ridge", "start.regularisation=0.3")
    federation = build(world.config(tmp_path, *START, *sets))
    start = start_at(federation.config, federation.task)
    assert start is not None
    transport = cast(Transport, Spoiling(federation.transport, kind, change))
    begun = begin(start, federation.task, transport, None, words=50)
    assert begun.line["lost"] == {"transport": 1}
    assert begun.line["clients"] == (6 if kind == "heads" else 5)
    for x in begun.head.values():
        assert torch.isfinite(x).all()


def test_sums_of_another_model_or_pooling_are_refused(world: World, tmp_path: Path) -> None:
    known = [
        build(world.config(tmp_path, "start=closed_form", *sets)).task
        for sets in (
            ("model.pooling=mean",),
            ("model.pooling=cls",),
            ("model.pooling=mean", "model.layers=last"),
        )
    ]
    assert len({about(task) for task in known}) == 3
    question = encode_question("sums", about(known[1]), {})
    data = build(world.config(tmp_path, *START)).data.population.client(0)
    with pytest.raises(ProtocolError, match="another model, or another pooling"):
        Answers(known[0])(question, data)
    answer = encode_answer("sums", about(known[1]), {})
    with pytest.raises(ProtocolError, match="another model, or another pooling"):
        decode_answer(answer, "sums", about(known[0]))


def test_a_uniform_prior_drops_the_counts() -> None:
    x, labels = rows()
    solver = Solver.of(sums(x[:-1], labels[:-1]))
    one, other = solver.discriminant(0.1), solver.discriminant(0.1, log_prior=False)
    log_prior = torch.log(torch.tensor([13.0, 13.0, 13.0]) / 39)
    torch.testing.assert_close(one.bias_C - other.bias_C, log_prior.double())


CANDIDATES = [("ridge", 9.0), ("discriminant", 0.1), ("discriminant", 0.3)]


def chosen(correct: list[float], n: float = 16.0, **given: torch.Tensor) -> tuple[int, float, Any]:
    flat = torch.full((3, 1, len(SCALES)), 9.0 * n)
    tried = {"loss": flat, "flat": flat, "correct": torch.tensor(correct)[:, None]}
    found = Classes(NAMES).choose({**tried, "n": torch.tensor(n), **given}, CANDIDATES)
    return found.position, found.scale, found.tried


def test_held_out_rows_choose_the_most_regularised_of_the_best() -> None:
    assert chosen([16, 16, 16])[0] == 2
    assert chosen([16, 16, 14])[0] == 1
    assert chosen([16, 14, 14])[0] == 0
    # 800 of 1,600: a standard error is 20 rows, a quarter of it 5
    assert chosen([790, 800, 796], 1600)[0] == 2 and chosen([790, 800, 794], 1600)[0] == 1
    assert chosen([8, 8, 8])[2][0]["accuracy"] == 0.5


def test_rows_without_an_error_do_not_make_a_head_certain() -> None:
    """What the clients send of 16 rows that every scale answers right."""
    logits = torch.tensor([4.0, 0.0, 0.0]).double()
    logs = [(s * logits).log_softmax(0) for s in SCALES]
    loss = -16 * torch.stack([x[0] for x in logs]).expand(3, 1, -1)
    flat = -16 * torch.stack([x.mean() for x in logs]).expand(3, 1, -1)
    _, scale, _ = chosen([16, 16, 16], loss=loss, flat=flat)
    sure = float((scale * logits).softmax(0)[0])
    assert 0.7 < sure < 0.95


def started(world: World, out: Path, *more: str) -> tuple[Any, Any]:
    result = world.run(out, *START, *more)
    begun = load_begun(result.folder)
    assert begun is not None
    return result, begun


def test_the_head_is_the_same_bits_for_every_partition(world: World, tmp_path: Path) -> None:
    heads = []
    everyone = ("data.client_test_fraction=0", "rounds=0", "start.solver=discriminant")
    for i, clients in enumerate((3, 6, 11)):
        partition = ("partition.kind=dirichlet", "partition.alpha=0.5") if i else ()
        _, begun = started(
            world, tmp_path / str(i), *everyone, *partition, f"partition.clients={clients}"
        )
        heads.append(begun)
    for other in heads[1:]:
        assert other.line["examples"] == heads[0].line["examples"]
        assert all(torch.equal(other.head[n], x) for n, x in heads[0].head.items())
    assert heads[0].notes[-1].startswith("no client holds rows out")


def test_the_model_says_what_its_standardised_features_say(world: World, tmp_path: Path) -> None:
    """Standardisation is folded into the head that the model has."""
    federation = build(world.config(tmp_path, *START))
    task, examples = federation.task, federation.data.population.examples
    some = np.arange(30)
    x_ND = features(task, task.params, examples, some, 1).double()
    solver = Solver.of(Sums.of(x_ND, Classes(NAMES).of(examples.labels[some])))
    head = Classes(NAMES).head(solver, ("ridge", 0.3), "counts")
    with torch.no_grad():
        logits = task.logits({**task.params, **params_of(task, head)}, examples.batch(some))
    z_ND = (x_ND - solver.mean_D) / solver.scale_D
    weight_CD = head.weight_CD * solver.scale_D
    bias_C = RIDGE * solver.mean_target_C  # of centred features
    np.testing.assert_allclose(logits.double(), z_ND @ weight_CD.T + bias_C, atol=1e-5)


def test_zero_rounds_end_with_the_head_alone(world: World, tmp_path: Path) -> None:
    result, begun = started(world, tmp_path, "rounds=0")
    assert result.summary["rounds"] == 0
    assert result.summary["final"]["accuracy"] == result.summary["baseline"]["head alone"]
    assert result.summary["totals"]["bytes_up"] == begun.line["bytes_up"] > 0
    assert begun.line["held_out"] > 0 and len(begun.line["tried"]) == 9
    assert begun.line["clients"] == 6


def test_a_frozen_head_stays_and_a_trained_one_moves(world: World, tmp_path: Path) -> None:
    from forefed.run.checkpoint import load_checkpoint

    for then, moves in (("frozen", False), ("trained", True)):
        result, begun = started(world, tmp_path / then, f"start.then={then}")
        config = world.config(tmp_path / then, *START, f"start.then={then}")
        saved = load_checkpoint(result.folder, config, torch.device("cpu"))
        assert saved is not None
        same = all(torch.equal(saved.state.params[n], x) for n, x in begun.head.items())
        assert same is not moves


@pytest.mark.parametrize("then", ["frozen", "trained"])
def test_sites_solve_the_head_of_the_rehearsal(
    then: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeldOut, "steps", (1.0, -1.0, -0.25))  # one of them lowers the loss
    more = ("strategy=fedavg", *START, "guard={kind='held_out', worth=0}", "rounds=1")
    more += (f"start.then={then}", "start.regularisation=10", "start.words=0")
    alone = run(rehearsal(world, tmp_path / "a", *more))
    sites = make_sites(world, tmp_path)
    there = run(deployed(world, tmp_path / "b", *more), connect=connect_by(FakePost(sites)))
    assert there.summary["digest"] == alone.summary["digest"]
    one, other = (json.loads((r.folder / "start.json").read_text()) for r in (alone, there))
    assert one["tried"] == other["tried"] and one["clients"] == other["clients"] == len(sites)
    assert one["steps"] == other["steps"] and one["steps"]["rows"] > 0  # at the end as well


def test_sites_solve_the_head_of_any_partition_under_a_secure_sum(
    world: World, tmp_path: Path
) -> None:
    everyone = ("strategy=fedavg", *START, "data.client_test_fraction=0", "rounds=0")
    alone = run(rehearsal(world, tmp_path / "a", *everyone, "partition={kind='iid', clients=4}"))
    hidden = ("channel={kind='secure_sum', min_group=3}",)
    sites = make_sites(world, tmp_path, policy={"min_group": 3})
    config = deployed(world, tmp_path / "b", *everyone, *hidden)
    there = run(config, connect=connect_by(FakePost(sites)))
    one, other = load_begun(alone.folder), load_begun(there.folder)
    assert one is not None and other is not None
    assert all(torch.equal(other.head[n], x) for n, x in one.head.items())


def test_a_site_may_keep_its_sums(world: World, tmp_path: Path) -> None:
    sites = make_sites(world, tmp_path, policy={"questions": ["loss"]})
    config = deployed(world, tmp_path / "b", "strategy=fedavg", *START)
    with pytest.raises(UserError, match=r"with sums \(3 error: refused: 'sums' is not .*policy"):
        run(config, connect=connect_by(FakePost(sites)))


def test_the_guard_never_lets_the_held_out_loss_rise(world: World, tmp_path: Path) -> None:
    rates = ("client.optimiser.lr=5.0", "guard=held_out", "guard.patience=2", "rounds=6")
    result, _ = started(world, tmp_path, *rates)
    lines = [json.loads(x)["guard"] for x in (result.folder / "rounds.jsonl").open()]
    assert all(line["after"] <= line["before"] and line["rows"] > 0 for line in lines)
    assert any(line["step"] < 1 and line["whole_step"] > line["after"] for line in lines)
    if result.summary["rounds"] < 6:
        assert [line["step"] for line in lines[-2:]] == [0, 0]


def test_a_run_says_why_it_is_what_it_is_and_what_was_left_out(
    world: World, tmp_path: Path
) -> None:
    said: list[str] = []

    class Listening(Callback):
        def note(self, text: str) -> None:
            said.append(text)

    rates = ("client.optimiser.lr=1e3", "guard=held_out", "guard.patience=2", "rounds=6")
    config = world.config(tmp_path, *START, "strategy=auto", *rates)
    result = run(config, callbacks=[Listening()])
    assert said[0].startswith("strategy fedavg, engine backprop: no memory is named")
    stored = json.loads((result.folder / "config.json").read_text())["strategy"]
    assert stored["name"] == "fedavg" and said[0].endswith(stored["because"])
    steps = [json.loads(x)["guard"]["step"] for x in (result.folder / "rounds.jsonl").open()]
    assert steps == [0, 0] and steps_kept([{"guard": {"step": 0.5}}, {"guard": {"step": 0}}]) == 1
    assert any(text.startswith("the head alone is what these data give") for text in said)


def test_no_step_is_taken_on_a_loss_that_so_few_rows_cannot_vouch_for() -> None:
    state = RunState(1, {"w": torch.zeros(2)})
    after = RunState(2, {"w": torch.ones(2)})

    class Fixed:
        """One client of 72 rows, which likes the whole step best."""

        def __init__(self, before: float):
            self.losses = torch.tensor([before, before / 2, before, before]).double() * 72

        def members(self) -> tuple[int, ...]:
            return (0,)

        def tell(self, *_: Any) -> Any:
            answer = {"loss": self.losses, "n": torch.tensor(72.0)}
            yield Reply(1, 0, encode_answer("loss", "it", answer), 1)

    def step(before: float, classes: bool = True) -> float:
        transport = cast(Transport, Fixed(before))
        said = guarded(HeldOut(), Jury(transport, "it", None, classes), Key(0), state, after)
        return float(said[1]["step"])

    assert vouched(72) == pytest.approx(0.0715, abs=1e-4)
    assert step(0.08) == 1 and step(0.06) == 0
    assert step(0.06, classes=False) == 1


def test_a_step_is_taken_only_where_it_is_worth_another_round() -> None:
    state, after = RunState(1, {"w": torch.zeros(2)}), RunState(2, {"w": torch.ones(2)})

    class Fixed:
        """One client, for whom the whole step lowers the loss of 1 to ``to``."""

        def __init__(self, to: float):
            self.losses = torch.tensor([1.0, to, 1.0, 1.0]).double() * 50

        def members(self) -> tuple[int, ...]:
            return (0,)

        def tell(self, *_: Any) -> Any:
            answer = {"loss": self.losses, "n": torch.tensor(50.0)}
            yield Reply(1, 0, encode_answer("loss", "it", answer), 1)

    def step(to: float, **settings: float) -> float:
        transport = cast(Transport, Fixed(to))
        guard = HeldOut.model_validate(settings)
        said = guarded(guard, Jury(transport, "it", None, True), Key(0), state, after)
        assert ("reason" in said[1]) == (said[1]["step"] == 0)
        return float(said[1]["step"])

    assert step(0.995) == 0 and step(0.985) == 1
    assert step(0.995, worth=0.0) == 1


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (("start.then=frozen", "adapter=head"), r"leaves nothing to train"),
        (("guard=held_out", "data.client_test_fraction=0"), "needs rows that clients hold out"),
        (("start.words=9", "data.client_test_fraction=0"), "say how much words count"),
        (("guard=held_out", "codec=scalars"), "cannot say that a step was shortened"),
    ],
)
def test_what_cannot_work_is_said_before(
    world: World, tmp_path: Path, settings: tuple[str, ...], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        world.run(tmp_path, *START, *settings)


def test_a_language_model_has_no_closed_form(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no head in closed form"):
        world.run(tmp_path, *world.lm, "start=closed_form", "model.pooling=auto")


def test_a_decoder_has_a_solved_head_that_exports(world: World, tmp_path: Path) -> None:
    sets = (f"model.name='{world.llama}'", "start=closed_form", "model.pooling=auto", "rounds=0")
    result = world.run(tmp_path, *sets)
    begun = load_begun(result.folder)
    assert begun is not None and result.summary["baseline"]["head alone"] > 0.5
    texts = ["w5 w6 w7", "w24 w25", "w40 w41 w42 w43 w44"]
    loaded = forefed.load(result.folder / "adapter", base=str(world.llama))
    inputs = loaded.tokenizer(texts, padding=True, truncation=True, max_length=512)
    with torch.no_grad():
        logits = loaded.model(**{n: torch.tensor(x) for n, x in inputs.items()}).logits
    said = np.array([p.chances for p in use.predict(result.folder, texts)])
    np.testing.assert_allclose(logits.softmax(1).numpy(), said, atol=1e-5)


def test_a_decoder_whose_mean_is_too_large_is_refused_with_the_pooling_to_take(
    world: World, tmp_path: Path
) -> None:
    """Many decoders have a first token that is thousands of times as long as the others."""
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path / "large"
    model = AutoModel.from_pretrained(world.llama)
    with torch.no_grad():
        model.embed_tokens.weight[:4] *= 5e4
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(world.llama).save_pretrained(folder)
    mean = (f"model.name='{folder}'", *START, "rounds=0")
    with pytest.raises(UserError, match=r"too large to be summed .*set model.pooling = 'last'"):
        world.run(tmp_path / "a", *mean)
    begun = load_begun(world.run(tmp_path / "b", *mean, "model.pooling=last").folder)
    assert begun is not None and begun.line["clients"] == 5  # one has an empty text


def test_auto_solves_a_head_only_where_there_is_one_to_solve(world: World, tmp_path: Path) -> None:
    def start(*more: str) -> ClosedForm | None:
        return start_of(world.config(tmp_path, "start=auto", *more), "mean")

    solved = start()
    assert solved is not None and solved.then == "frozen"
    alone = start("adapter=head")
    assert alone is not None and alone.then == "trained"
    assert start(*world.lm) is None and start_of(world.config(tmp_path), "mean") is None
    assert start_of(world.config(tmp_path, "start=auto"), "pooler") is None
    assert guard_of(world.config(tmp_path, "guard=auto")) is not None
    assert guard_of(world.config(tmp_path, "guard=auto", "codec=scalars")) is None
    assert guard_of(world.config(tmp_path)) is None


def test_forgetting_a_client_leaves_the_sums_of_the_others(world: World, tmp_path: Path) -> None:
    result, begun = started(world, tmp_path, "rounds=0")
    left = forget(result.folder, 2)
    config = world.config(tmp_path, *START, "rounds=0")
    federation = build(config)
    total = Sums.zero(3, 48)
    for client in (0, 1, 3, 4, 5):
        part = answers(config, federation.task, None)
        own = federation.data.population.client(client)
        total = total.plus(part.sums_of({"rows": torch.tensor(ALL)}, own))
    assert all(
        torch.equal(a, b)
        for a, b in zip(vars(left.total).values(), vars(total).values(), strict=True)
    )
    kept = load_begun(result.folder)
    assert kept is not None and kept.line["forgotten"] == [2]
    assert any(not torch.equal(kept.head[n], x) for n, x in begun.head.items())
    with pytest.raises(UserError, match="forgotten already"):
        forget(result.folder, 2)
    with pytest.raises(UserError, match="clients 0 to 5, not 6"):
        forget(result.folder, 6)


def test_baselines_are_of_the_clients_training_rows(world: World, tmp_path: Path) -> None:
    lines = {x["name"]: x["accuracy"] for x in baselines(world.config(tmp_path, *START))}
    assert list(lines) == ["majority", "tf-idf", "probe", "local", "closed form"]
    result, _ = started(world, tmp_path / "run", "rounds=0")
    assert lines["majority"] == result.summary["baseline"]["majority"]
    assert lines["closed form"] == pytest.approx(result.summary["final"]["accuracy"], abs=0.05)
    assert lines["tf-idf"] > lines["majority"]
    with pytest.raises(UserError, match="they are for classes"):
        baselines(world.config(tmp_path, *world.lm))
