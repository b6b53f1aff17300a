"""Rules for low-rank updates: exact where they say so, in the model's own forward pass."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

import forefed
from forefed.aggregate import (
    AGGREGATORS,
    Aggregator,
    FedEx,
    FedKrso,
    FedSvd,
    FlexLora,
    Flora,
    HetLora,
    Mean,
)
from forefed.aggregate.factored import missed
from forefed.aggregate.hetlora import weights_of
from forefed.config.compat import conflicts
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.lora import core_svd, factors_of, is_a, is_b, is_folded
from forefed.core.types import Contribution, Params, ServerContext
from forefed.models.adapters import Lora, LoraSb
from forefed.models.export import save_adapter
from forefed.sharing import FedSaLora, FfaLora, Ranks, RoLora
from tiny import moved, tiny_examples, tiny_model, tiny_task

O, I, R = 12, 9, 4
NAMES = ("m.lora_A.w", "m.lora_B.w", "m.folded")


def params(rank: int = R) -> Params:
    key = Key(3)
    shapes = ((rank, I), (O, rank), (O, I))
    values = [key.fold(n).normal(s) for n, s in zip(NAMES, shapes, strict=True)]
    return dict(zip(NAMES, values, strict=True))


def contributions(
    start: Params, ranks: Sequence[int] = (R, R, R), only_b: bool = False
) -> list[Contribution]:
    """Clients of unequal sizes that have moved at random."""
    found = []
    for i, r in enumerate(ranks):
        key = Key(4).fold(i)
        a, b = start[NAMES[0]][:r], start[NAMES[1]][:, :r]
        delta = {NAMES[0]: key.fold("a").normal(a.shape), NAMES[1]: key.fold("b").normal(b.shape)}
        if only_b:
            del delta[NAMES[0]]
        found.append(Contribution(i, 1.0 + i, delta))
    return found


def products(start: Params, cs: Sequence[Contribution]) -> Tensor:
    """sum_i p_i B_i A_i, by hand, float64."""
    whole, total = sum(c.weight for c in cs), torch.zeros(O, I, dtype=torch.float64)
    for c in cs:
        b_change = c.delta[NAMES[1]].double()
        r = b_change.shape[1]
        a = start[NAMES[0]].double()[:r] - c.delta.get(NAMES[0], torch.zeros(r, I)).double()
        b = start[NAMES[1]].double()[:, :r] - b_change
        total = total + c.weight / whole * b @ a
    return total


def after(rule: Aggregator, start: Params, cs: Sequence[Contribution]) -> Params:
    ctx = ServerContext(round=1, key=Key(7), params=start)
    total, _, _ = rule(cs, {}, ctx)
    return {n: x - total[n] if n in total else x for n, x in start.items()}


def whole(p: Params, start: Params) -> Tensor:
    """B A and what was added to the matrix itself, float64."""
    a, b, dense = (p[n].double() for n in NAMES)
    return b @ a + dense - start[NAMES[2]].double()


@pytest.mark.parametrize(
    ("rule", "ranks"),
    [(FedEx(), (4, 4, 4)), (Flora(), (4, 4, 4)), (Flora(), (2, 4, 3))],
    ids=["fedex", "flora", "flora of three ranks"],
)
def test_folding_rules_are_exact(rule: Aggregator, ranks: tuple[int, ...]) -> None:
    start = params()
    cs = contributions(start, ranks)
    expected = products(start, cs)
    found = whole(after(rule, start, cs), start)
    assert float((found - expected).norm() / expected.norm()) < 1e-6


def test_flexlora_is_exact_up_to_its_truncation() -> None:
    """Rank 4 out of 12: what is missing is the tail of the singular values; at rank 9 nothing."""
    for rank, ranks in ((4, (4, 4, 4)), (9, (2, 4, 3))):
        start = params(rank)
        cs = contributions(start, ranks)
        expected = products(start, cs)
        tail = float(torch.linalg.svdvals(expected)[rank:].norm())
        new = after(FlexLora(), start, cs)
        error = float((whole(new, start) - expected).norm())
        assert error == pytest.approx(tail, rel=1e-5, abs=1e-5)
        # the first rows are the best approximation of their rank
        best = float(torch.linalg.svdvals(expected)[2:].norm())
        two = new[NAMES[1]].double()[:, :2] @ new[NAMES[0]].double()[:2]
        assert float((two - expected).norm()) == pytest.approx(best, rel=1e-5)


def test_flexlora_leaves_something_to_learn_where_nothing_is() -> None:
    start = params()
    start[NAMES[1]] = torch.zeros(O, R)
    cs = [Contribution(0, 1.0, {n: torch.zeros_like(start[n]) for n in NAMES[:2]})]
    new = after(FlexLora(), start, cs)
    assert not new[NAMES[1]].any() and bool(new[NAMES[0]].any(1).all())


def test_fedsvd_keeps_the_product_and_makes_the_rows_of_a_orthonormal() -> None:
    start = params()
    cs = contributions(start, only_b=True)
    new = after(FedSvd(), start, cs)
    torch.testing.assert_close(whole(new, start).float(), products(start, cs).float())
    torch.testing.assert_close(new[NAMES[0]] @ new[NAMES[0]].T, torch.eye(R), atol=1e-6, rtol=0)
    still = {**start, NAMES[1]: torch.zeros(O, R)}
    none = [Contribution(0, 1.0, {NAMES[1]: torch.zeros(O, R)})]
    assert torch.equal(after(FedSvd(), still, none)[NAMES[0]], start[NAMES[0]])


def test_fedkrso_moves_inside_one_of_k_subspaces() -> None:
    """Exact, and the next subspace is one of K = 2 with E[P^T P] = I."""
    start, rule = params(), FedKrso(seeds=2)
    cs = contributions(start, only_b=True)
    found = after(rule, start, cs)
    expected = products(start, cs)
    assert float((whole(found, start) - expected).norm() / expected.norm()) < 1e-6
    assert not found[NAMES[1]].any()
    (at,) = factors_of(NAMES)
    drawn = []
    for number in range(400):
        ctx = ServerContext(round=number, key=Key(number), params=start)
        drawn.append(FedKrso(seeds=10**6).subspace(start[NAMES[0]], at, ctx))
    mean = torch.stack([p.T @ p for p in drawn]).mean(0)
    torch.testing.assert_close(mean, torch.eye(I), atol=0.15, rtol=0)
    some = {
        tuple(rule.subspace(start[NAMES[0]], at, ServerContext(round=n, key=Key(n)))[0].tolist())
        for n in range(12)
    }
    assert len(some) == 2


def test_core_svd_is_the_svd() -> None:
    a, b = (x.double() for x in (Key(1).normal((5, I)), Key(2).normal((O, 5))))
    u, s, vt = core_svd(b, a)
    torch.testing.assert_close(s, torch.linalg.svdvals(b @ a)[:5], atol=1e-12, rtol=0)
    torch.testing.assert_close(u * s @ vt, b @ a, atol=1e-12, rtol=0)


def test_hetlora_weighs_by_the_product_and_no_client_takes_over() -> None:
    assert weights_of([1.0, 3.0], [0.5, 0.5]) == [0.25, 0.75]
    assert weights_of([0.0, 0.0], [0.2, 0.8]) == [0.2, 0.8]
    # 0.98 is cut to 3 x 0.1: (0.01, 0.01, 0.3) made to sum to 1
    assert weights_of([1.0, 1.0, 98.0], [0.45, 0.45, 0.1]) == pytest.approx(
        [0.03125, 0.03125, 0.9375]
    )
    start = params()
    (c,) = contributions(start, (2,))
    new = after(HetLora(), start, [c])
    torch.testing.assert_close(new[NAMES[0]][:2], start[NAMES[0]][:2] - c.delta[NAMES[0]])
    assert not new[NAMES[0]][2:].any() and not new[NAMES[1]][:, 2:].any()


@pytest.mark.parametrize(
    "rule", [FedEx(), Flora(), FlexLora(), HetLora(), FedSvd()], ids=lambda r: r.kind
)
def test_one_client_is_its_own_product_and_order_changes_nothing(rule: Aggregator) -> None:
    start = params()
    some = contributions(start, only_b=rule.kind == "fedsvd")
    expected = products(start, some[1:2])
    torch.testing.assert_close(
        whole(after(rule, start, some[1:2]), start), expected, atol=1e-5, rtol=1e-5
    )
    one, other = after(rule, start, some), after(rule, start, some[::-1])
    torch.testing.assert_close(whole(one, start), whole(other, start), atol=1e-5, rtol=1e-5)


def test_what_plain_averaging_misses_is_the_covariance() -> None:
    """Two clients of equal weight at (A, B) and (-A, -B), from (0, 0): the means are 0, the mean of
    the products is B A, so all of it is missed. FedEx misses nothing, and B alone neither."""
    zero = {n: torch.zeros_like(x) for n, x in params().items()}
    p = params()
    cs = [
        Contribution(i, 1.0, {n: sign * p[n] for n in NAMES[:2]}) for i, sign in enumerate((1, -1))
    ]
    ctx = ServerContext(round=1, key=Key(7), params=zero)
    assert missed(cs, Mean()(cs, {}, ctx)[0], ctx) == pytest.approx(1.0)
    assert missed(cs, FedEx()(cs, {}, ctx)[0], ctx) == pytest.approx(0.0, abs=1e-6)
    alone = [Contribution(i, 1.0, {NAMES[1]: p[NAMES[1]] * i}) for i in (1, 2)]
    assert missed(alone, Mean()(alone, {}, ctx)[0], ctx) is None


@pytest.mark.parametrize(
    "adapter",
    [
        Lora(r=2, alpha=1.0, fold=True, targets="all-linear"),
        Lora(r=2, alpha=4.0, fold=True, targets="all-linear"),
        Lora(r=2, alpha=4.0, rslora=True, fold=True, targets="all-linear"),
    ],
    ids=["0.5", "2", "rslora"],
)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_exact_in_the_models_own_forward_pass(family: str, adapter: Lora) -> None:
    """FedEx and FLoRA against a model whose weights hold W + s sum_i p_i B_i A_i (GPT-2's matrices
    are stored transposed, feed-forward ones are not square)."""
    task = tiny_task(family, adapter, dtype=torch.float32)
    start = moved(task.params, scale=0.1)
    start = {n: torch.zeros_like(x) if is_folded(n) else x for n, x in start.items()}
    ends = [moved(start, Key(20).fold(i), 0.2) for i in range(3)]
    cs = [
        Contribution(i, 1.0 + i, {n: start[n] - e[n] for n in start if is_a(n) or is_b(n)})
        for i, e in enumerate(ends)
    ]
    batch = tiny_examples(5, types=family == "bert").batch(range(5))
    expected = {n: torch.zeros_like(x) if is_b(n) else x for n, x in start.items()}
    for at in factors_of(start):
        product = sum(
            c.weight / 6 * e[at.b].double() @ e[at.a].double()
            for c, e in zip(cs, ends, strict=True)
        )
        expected[at.folded] = torch.as_tensor(product).float()
    with torch.no_grad():
        logits = task.logits(expected, batch)
        for rule in (FedEx(), Flora()):
            found = task.logits(after(rule, start, cs), batch)
            torch.testing.assert_close(found, logits, atol=2e-6, rtol=1e-5)
        s = adapter.alpha / (2**0.5 if adapter.rslora else 2)
        assert adapter.scale == pytest.approx(s)
        module = next(m for m in task.model.modules() if hasattr(m, "folded"))
        assert module.scaling["default"] == pytest.approx(s)


def test_splits_of_factors_by_hand() -> None:
    task = tiny_task("bert", Lora(r=2))
    for sharing, odd, even in (
        (FfaLora(), is_a, is_a),
        (RoLora(), is_a, is_b),
        (FedSaLora(), is_b, is_b),
    ):
        for number, rests in ((1, odd), (2, even)):
            split = sharing.split(task.units, number)
            apart = split.frozen | split.private
            assert apart == {n for n in task.params if rests(n)} and len(apart) == 4
            assert split.shared == task.params.keys() - apart


def least_squares(p: Params, batch: forefed.run.simulate.Rows) -> Tensor:
    y = batch["x"] @ (p["m.lora_B.w"] @ p["m.lora_A.w"]).T
    return ((y - batch["y"]) ** 2).sum(1).mean()


def clients(signs: Sequence[float]) -> list[forefed.run.simulate.Rows]:
    """Least squares with targets +-M x of rank 2."""
    target = Key(1).normal((O, 2)) @ Key(2).normal((2, I)) / 3
    found = []
    for i, sign in enumerate(signs):
        x = Key(5).fold(i).normal((40, I))
        found.append({"x": x, "y": sign * x @ target.T})
    return found


def played(strategy: str, signs: Sequence[float], rounds: int, **more: object) -> object:
    start = {"m.lora_A.w": Key(6).normal((R, I)) / 3, "m.lora_B.w": torch.zeros(O, R)}
    client = {
        "max_steps": 5,
        "epochs": 5,
        "batch_size": "all",
        "optimiser": {"kind": "sgd", "lr": 0.1, "head_lr": None},
    }
    return forefed.simulate(
        least_squares,
        start,
        clients(signs),
        strategy=strategy,
        rounds=rounds,
        units=[("m.lora_A.w", "m.lora_B.w")],
        client=client,
        **more,
    )


def test_fedsa_fits_clients_of_opposite_targets_and_one_adapter_for_all_cannot() -> None:
    signs = (1.0, -1.0)
    common, own = played("fedavg", signs, 60), played("fedsa_lora", signs, 60)
    for i, rows in enumerate(clients(signs)):
        size = float((rows["y"] ** 2).sum(1).mean())
        assert float(least_squares(common.params, rows)) > 0.9 * size
        assert float(least_squares(own.own(i), rows)) < 0.06 * size
    assert torch.equal(own.params["m.lora_B.w"], torch.zeros(O, R))  # no B has travelled
    assert all(u.grad.keys() == {"m.lora_A.w"} for u in own.reports[-1].updates)


def test_rolora_learns_in_its_first_round_and_rests_one_factor() -> None:
    first, second = played("rolora", (1.0, 1.0), 1), played("rolora", (1.0, 1.0), 2)
    assert torch.equal(first.params["m.lora_A.w"], Key(6).normal((R, I)) / 3)
    assert first.params["m.lora_B.w"].any()
    assert torch.equal(second.params["m.lora_B.w"], first.params["m.lora_B.w"])
    assert not torch.equal(second.params["m.lora_A.w"], first.params["m.lora_A.w"])


@pytest.mark.parametrize("strategy", ["rolora", "fedsa_lora", "ffa_lora"])
def test_no_client_goes_on_from_what_another_has_trained(strategy: str) -> None:
    """In the opposite order the same bytes come from each, in round 2 (RoLoRA's A)."""
    said = []
    for step in (1, -1):
        result = played(strategy, (1.0, -1.0, 1.0), 1)
        orders = list(result.star.plan(result.state).values())[::step]
        came = result.star.transport.exchange(orders, None)
        said.append({reply.client: reply.payload for reply in came})
    assert said[0] == said[1] and len(set(said[0].values())) == 3


def test_a_b_of_a_clients_own_survives_rounds_that_it_skips() -> None:
    """Byte for byte; and it is its own that it goes on from, not the last one's."""
    kept, cohorts = [], []

    def after_round(state: object, report: object) -> None:
        cohorts.append(report.cohort)  # type: ignore[attr-defined]

    for rounds in (3, 4, 5):
        cohorts.clear()
        result = played("fedsa_lora", (1.0, -1.0, 1.0), rounds, cohort=1, on_round=after_round)
        kept.append([result.star.transport.store.private(c) for c in range(3)])
    for i, at_work in enumerate(cohorts[3:]):
        for c in range(3):
            same = all(torch.equal(x, kept[i + 1][c][n]) for n, x in kept[i][c].items())
            assert same == (c not in at_work or not kept[i][c])
    assert sum(bool(x) for x in kept[-1]) >= 2, "several have worked by turns"


def test_clients_of_lower_rank_send_and_receive_less() -> None:
    result = played("flexlora", (1.0, 1.0, 1.0), 30, sharing={"kind": "ranks", "ranks": [1, 2, 4]})
    orders = result.star.plan(result.state)
    shapes = [tuple(orders[c].params["m.lora_A.w"].shape) for c in range(3)]
    assert shapes == [(1, I), (2, I), (4, I)]
    assert [u.grad["m.lora_B.w"].shape for u in result.reports[0].updates] == [
        (O, 1),
        (O, 2),
        (O, 4),
    ]
    rows = clients((1.0,))[0]
    assert float(least_squares(result.params, rows)) < 0.1 * float((rows["y"] ** 2).sum(1).mean())
    error = result.reports[-1].metrics["lora_error"]
    assert 0 <= error < 5


def test_a_rank_above_the_servers_is_refused() -> None:
    with pytest.raises(UserError, match="8 is more than"):
        played("flexlora", (1.0,), 1)


def test_the_rules_are_registered_with_what_they_take() -> None:
    taking = {k for k in AGGREGATORS.kinds() if AGGREGATORS[k].any_rank}
    assert taking == {"flora", "flexlora", "hetlora"}
    assert Ranks(ranks=(2, 8)).form(3) == 8


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_fed_sb_trains_the_core_between_resting_factors(family: str, tmp_path: Path) -> None:
    """W + s B R A by hand, and the same from plain PEFT; the factors are W's singular vectors."""
    adapter = LoraSb(r=3, alpha=6.0, targets="all-linear")
    task = tiny_task(family, adapter, dtype=torch.float32)
    cores = {n for n in task.params if n not in task.head}
    assert all(task.params[n].shape == (3, 3) for n in cores) and len(cores) > 4
    params = moved(task.params)
    batch = tiny_examples(5, types=family == "bert").batch(range(5))
    layer = next(m for m in task.model.modules() if hasattr(m, "core"))
    a, b = (getattr(layer, f"lora_{x}")["default"].weight for x in "AB")
    torch.testing.assert_close(a @ a.T, torch.eye(3), atol=1e-5, rtol=0)
    base = layer.get_base_layer().weight
    base = base.T if layer.fan_in_fan_out else base
    strengths = torch.linalg.svdvals(base)[:3]
    torch.testing.assert_close((b.T @ base @ a.T).diagonal(), strengths, atol=1e-4, rtol=1e-4)
    save_adapter(task, params, tmp_path / "adapter", "# card")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = task.logits(params, batch)
        assert float((ours - task.logits(task.params, batch)).abs().max()) > 1e-3
        model = tiny_model(family, dtype=torch.float32)
        plain = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
        inputs = task.logits.inputs(batch)
        torch.testing.assert_close(ours, plain(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", ["fedsvd", "fedkrso"])
def test_rules_that_leave_a_at_rest_are_refused_where_it_moves(rule: str) -> None:
    sets = ["strategy=fedavg", "adapter.fold=true", f"aggregator={rule}"]
    about = "averages B with A at rest"
    assert any(about in x for x in conflicts(forefed.configure(sets=sets)))
    still = [*sets, "sharing=ffa_lora"]
    assert not any(about in x for x in conflicts(forefed.configure(sets=still)))
