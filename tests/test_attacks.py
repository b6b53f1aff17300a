"""Attacks: their vectors by hand, what bounds them, and what a run under attack says of itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import forefed
from federation import Interrupted, StopAfter, World, lines, without_clock
from forefed.aggregate import AGGREGATORS, Krum, Mean, Median, TrimmedMean
from forefed.aggregate.vectors import distances
from forefed.attacks import (
    ATTACKS,
    AttackContext,
    Crafted,
    DynOpt,
    Extreme,
    Hostile,
    InnerProduct,
    LabelFlip,
    Lie,
    Mimic,
    MinMax,
    MinSum,
    Mpaf,
    Noise,
    ScaledFlip,
    SignFlip,
    StatOpt,
)
from forefed.attacks.simple import by_formula, by_table
from forefed.config.compat import check
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Params, Update
from forefed.federation.adversary import Adversary
from forefed.run import run
from test_simulate import PLAIN, START, clients, squared

BENIGN = Key(7).normal((12, 30)).double() + 0.5
KINDS = [k for k in ATTACKS.kinds() if k not in ("none", "label_flip")]


def context(aggregator: Any = Mean(), **more: Any) -> AttackContext:  # noqa: B008 (frozen)
    at = {"params": {"x": torch.zeros(30)}, "first": {"x": torch.zeros(30)}, **more}
    return AttackContext(round=2, key=Key(1), aggregator=aggregator, **at)


def crafted(attack: Hostile, known: Tensor, f: int = 3, ctx: AttackContext | None = None) -> Tensor:
    """What f clients send whose honest updates are those of the first f benign ones."""
    honest = [Update(10 + i, 4, {"x": x}) for i, x in enumerate(known)]
    own = [Update(i, 4, {"x": known[i]}) for i in range(f)]
    made = attack.craft(honest, own, ctx or context())
    assert [u.client for u in made] == list(range(f))
    return torch.stack([u.grad["x"] for u in made]) if made else torch.zeros(0)


COLUMN = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)  # mean 3, std sqrt(14/3)


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (SignFlip(scale=10), [-10, -20]),
        (ScaledFlip(), [-3 * 3 / 2] * 2),
        (InnerProduct(epsilon=0.5), [-1.5] * 2),
        (Extreme(), [-6] * 2),
        (Extreme(bound=2.5), [-2.5] * 2),
        (Mimic(), [1] * 2),
        (Lie(z=0.3), [3 + 0.3 * math.sqrt(14 / 3)] * 2),
        (MinMax(), [1] * 2),  # one number: the whole benign range is 5, and 6 - 5 = 1
        (MinMax(direction="unit"), [1] * 2),
        # min_i sum_j: of 2, 1 + 16 = 17; sum (m - u)^2 = 14 + 3 (m - 3)^2
        (MinSum(), [2] * 2),
    ],
    ids=repr,
)
def test_by_hand(attack: Hostile, expected: list[float]) -> None:
    small = context(params={"x": torch.zeros(1)}, first={"x": torch.zeros(1)})
    assert crafted(attack, COLUMN, 2, small).flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_a_scaled_flip_cancels_the_mean() -> None:
    m_FD = crafted(ScaledFlip(), BENIGN)
    assert torch.cat([BENIGN, m_FD]).mean(0).abs().max() < 1e-12


def test_the_deviations_of_lie() -> None:
    assert [by_table(50, f) for f in (3, 5, 8, 10, 12)] == [0.698, 0.705, 0.719, 0.726, 0.739]
    assert by_table(100, 13) == pytest.approx(0.705 + (6.5 - 5) / (8 - 5) * 0.014)
    found = [by_formula(50, f) for f in (3, 5, 8, 10, 12)]
    assert found == pytest.approx([0.027, 0.084, 0.180, 0.253, 0.336], abs=1e-3)


@pytest.mark.parametrize("direction", ["unit", "sign", "std"])
def test_min_max_and_min_sum_go_as_far_as_they_may(direction: Any) -> None:
    mean = BENIGN.mean(0)
    squares = distances(BENIGN).square()
    for attack, size, bound in (
        (
            MinMax(direction=direction),
            lambda m: (BENIGN - m).norm(dim=1).max(),
            squares.max() ** 0.5,
        ),
        (MinSum(direction=direction), lambda m: (BENIGN - m).square().sum(), squares.sum(1).min()),
    ):
        m = crafted(attack, BENIGN)[0]
        assert 0 <= 1 - float(size(m) / bound) < 1e-4
        assert size(mean + 2 * (m - mean)) > bound


def test_stat_opt_lies_beyond_all_benign_values_and_moves_the_trimmed_mean_its_way() -> None:
    shifted = BENIGN + torch.linspace(-3, 3, 30)  # extremes on either side of 0
    rule = TrimmedMean(f=3)
    m_FD = crafted(StatOpt(), shifted, ctx=context(rule))
    up = shifted.mean(0) < 0
    assert bool((m_FD[:, up] > shifted.amax(0)[up]).all())
    assert bool((m_FD[:, ~up] < shifted.amin(0)[~up]).all()) and bool((m_FD != 0).all())
    attacked, _ = rule.combine(torch.cat([shifted, m_FD]), *NOTHING)
    benign, _ = TrimmedMean(f=0).combine(shifted, *NOTHING)
    assert bool(((attacked - benign).sign() == torch.where(up, 1.0, -1.0)).all())


NOTHING: Any = (torch.ones(0), None, {}, None)


def test_stat_opt_is_what_krum_selects() -> None:
    rule = Krum(f=3)
    m_FD = crafted(StatOpt(), BENIGN, ctx=context(rule))
    found, _ = rule.combine(torch.cat([BENIGN, m_FD]), *NOTHING)
    assert torch.equal(found, m_FD[0])
    assert torch.equal(m_FD.sign()[0], -BENIGN.mean(0).sign())


def test_dyn_opt_moves_a_rule_farther_than_fixed_attacks() -> None:
    rule, mean = Median(), BENIGN.mean(0)

    def moved(attack: Hostile) -> float:
        x_ND = torch.cat([BENIGN, crafted(attack, BENIGN, ctx=context(rule))])
        return float((rule.combine(x_ND, *NOTHING)[0] - mean).norm())

    fixed = [moved(a) for a in (InnerProduct(epsilon=0.1), InnerProduct(epsilon=0.5), ScaledFlip())]
    assert moved(DynOpt()) > max(fixed)


@pytest.mark.parametrize("kind", KINDS)
def test_functions_of_what_is_known_and_the_key(kind: str) -> None:
    attack = ATTACKS.parse(kind)
    once, again = crafted(attack, BENIGN), crafted(attack, BENIGN)
    assert torch.equal(once, again) and bool(torch.isfinite(once).all())
    assert attack.craft([Update(1, 2, {"x": BENIGN[0]})], [], context()) == []  # f = 0: nothing


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_known_is_not_used(kind: str) -> None:
    """Partial knowledge is blind to the honest updates; none is blind to its own ones, too."""
    other = BENIGN.clone()
    other[3:] += 5.0  # honest alone: own ones are copies of the first three
    partial = ATTACKS.parse({"kind": kind, "knowledge": "partial"})
    assert torch.equal(crafted(partial, BENIGN), crafted(partial, other))
    blind = ATTACKS.parse({"kind": kind, "knowledge": "none"})
    moved = context(params={"x": torch.ones(30)})
    found = crafted(blind, BENIGN, ctx=moved)
    assert torch.equal(found, crafted(blind, -2 * BENIGN, ctx=moved))
    assert bool(torch.isfinite(crafted(blind, BENIGN)).all())  # the model has not moved yet


def test_mpaf_pulls_to_one_model_of_its_own() -> None:
    at = {"x": torch.linspace(1, 2, 30)}
    base = [
        at["x"].double() - m[0] / s
        for s in (1, 10)
        for m in [crafted(Mpaf(scale=s), BENIGN, ctx=context(params=at))]
    ]
    torch.testing.assert_close(base[0], base[1])


def test_noise_has_the_size_that_is_said() -> None:
    known = torch.zeros(12, 4000, dtype=torch.float64)
    ctx = context(params={"x": torch.zeros(4000)}, first={})
    m_FD = crafted(Noise(sigma=0.05), known, ctx=ctx)
    assert float(m_FD.std()) == pytest.approx(0.05, rel=0.05)
    assert not torch.equal(m_FD[0], m_FD[1])


def test_clients_that_train_different_units_are_attacked_unit_by_unit() -> None:
    a, b = BENIGN[:, :10], BENIGN[:, 10:]
    honest = [Update(10 + i, 4, {"a": a[i]}) for i in range(3)]
    honest += [Update(20 + i, 4, {"b": b[i]}) for i in range(4)]
    own = [Update(0, 4, {"a": a[8]}), Update(1, 4, {"b": b[8]})]
    made = InnerProduct(epsilon=1).craft(honest, own, context(params={}, first={}))
    torch.testing.assert_close(made[0].grad["a"], -a[:3].mean(0))
    torch.testing.assert_close(made[1].grad["b"], -b[:4].mean(0))
    assert [u.grad.keys() for u in made] == [{"a"}, {"b"}]


def test_claims_are_of_examples() -> None:
    (made,) = SignFlip(claims=2.5).craft([], [Update(0, 4, {"x": BENIGN[0]})], context())
    assert made.n_examples == 10


def test_who_is_hostile_is_a_number_or_a_share() -> None:
    key = Key(3)
    assert len(SignFlip(hostile=0.3).who(50, key)) == 15
    assert SignFlip(hostile=4).who(50, key) == SignFlip(hostile=4).who(50, key)
    assert SignFlip(hostile=4).who(50, Key(4)) != SignFlip(hostile=4).who(50, key)


# runs under attack


def simulated(**settings: Any) -> Any:
    sets = {"client": PLAIN, "rounds": 3, **settings}
    return forefed.simulate(squared, START, clients(*[6] * 10), **sets)


def test_the_server_sees_what_the_attack_makes_of_honest_answers() -> None:
    honest = simulated(rounds=1).reports[0].updates
    attacked = simulated(rounds=1, attack={"kind": "sign_flip", "scale": 10, "hostile": 1})
    (liar,) = attacked.star.transport.who
    for before, after in zip(honest, attacked.reports[0].updates, strict=True):
        factor = -10 if after.client == liar else 1
        for name, x in after.grad.items():
            torch.testing.assert_close(x, factor * before.grad[name])
    assert attacked.own(liar).keys() == START.keys()


def test_the_measured_case_and_what_a_rule_makes_of_it() -> None:
    """One of ten sends -10 times its update, which turns the mean round."""
    attack = {"kind": "sign_flip", "scale": 10, "hostile": 1}
    clean = simulated(rounds=15).losses[-1]
    broken = simulated(rounds=15, attack=attack).losses[-1]
    robust = simulated(rounds=15, attack=attack, aggregator="trimmed_mean").losses[-1]
    assert broken > 10_000 * clean and robust < 10 * clean


@pytest.mark.parametrize("kind", [k for k in ATTACKS.kinds() if k not in ("label_flip", "mpaf")])
def test_attacks_on_slopes_along_shared_directions(kind: str) -> None:
    engine = {
        "engine": {"kind": "forward"},
        "directions": {"kind": "fresh", "k": 4, "shared": True},
    }
    sets = {"strategy": "decomfl", **engine, "aggregator": "median", "rounds": 2}
    plain = simulated(**sets, client={"optimiser": {"kind": "sgd", "lr": 0.05}, "max_steps": 2})
    under = simulated(
        **sets,
        client={"optimiser": {"kind": "sgd", "lr": 0.05}, "max_steps": 2},
        attack={"kind": kind, "hostile": 2} if kind != "none" else "none",
    )
    same = trees.digest(plain.params) == trees.digest(under.params)
    assert same is (kind == "none")


def test_label_flips_are_in_the_data_of_hostile_clients_only() -> None:
    def loss(params: Params, batch: Any) -> Tensor:
        return torch.nn.functional.cross_entropy(batch["x"] @ params["w"], batch["y"])

    key = Key(2)
    shares = [
        {"x": key.fold(i).normal((5, 3)), "y": torch.tensor([0, 1, 2, 2, 0])} for i in range(4)
    ]
    seen = []
    for attack in ({"kind": "label_flip", "hostile": 1}, "none"):
        result = forefed.simulate(loss, {"w": torch.zeros(3, 3)}, shares, rounds=1, attack=attack)
        seen.append({u.client: trees.digest(u.grad) for u in result.reports[0].updates})
    different = {c for c in seen[0] if seen[0][c] != seen[1][c]}
    assert len(different) == 1
    assert LabelFlip().flip(torch.tensor([0, 1, 2]).numpy(), 3).tolist() == [2, 1, 0]
    assert LabelFlip(flipped=1, into=2).flip(torch.tensor([0, 1]).numpy(), 3).tolist() == [0, 2]


def test_fake_clients_train_on_rows_like_those_of_a_compromised_one(
    world: World, tmp_path: Path
) -> None:
    """The hybrid adversary: with all of them compromised it is the one with partial knowledge, and
    with synthetic rows its proxy is worse than with real ones, but no noise."""
    key, w = Key(2), Key(3).normal((8, 3))
    shares = []
    for i in range(10):
        x = key.fold(i).normal((60, 8))
        shares.append({"x": x, "y": (x @ w).argmax(1)})

    def loss(params: Params, batch: Any) -> Tensor:
        return torch.nn.functional.cross_entropy(batch["x"] @ params["w"], batch["y"])

    def found(**attack: Any) -> Any:
        sets = {"attack": {"kind": "min_max", "hostile": 4, "knowledge": "partial", **attack}}
        return forefed.simulate(loss, {"w": torch.zeros(8, 3)}, shares, rounds=1, **sets)

    real, fake = found(), found(compromised=1)
    assert trees.digest(real.params) == trees.digest(found(compromised=4).params)
    assert trees.digest(real.params) != trees.digest(fake.params)
    assert 0.6 < fake.star.transport.likeness < real.star.transport.likeness < 1
    texts = ["strategy=fedavg", "attack=lie", "attack.hostile=2", "attack.knowledge=partial"]
    result = world.run(tmp_path, *texts, "attack.compromised=1", "cohort=6")
    assert all(0 < abs(line["likeness"]) <= 1 for line in lines(result.folder, "rounds.jsonl"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attack": {"kind": "ipm", "compromised": 1}}, "attack.knowledge = 'partial'"),
        ({"attack": {"kind": "ipm", "hostile": 10}}, "10 of 10 clients"),
        ({"attack": {"kind": "ipm", "hostile": 0.01}}, "none of 10 clients"),
        ({"attack": "ipm", "strategy": "spry", "codec": "scalars"}, "directions.shared = true"),
        ({"attack": "mpaf", "strategy": "spry", "codec": "scalars"}, "sends projections"),
        (
            {"attack": {"kind": "sign_flip", "knowledge": "none"}, "strategy": "decomfl"},
            "knows the model's steps, not slopes",
        ),
        ({"attack": "ipm", "channel": "secure_sum"}, "none is ever seen"),
        ({"attack": "sign_filp"}, "did you mean 'sign_flip'"),
    ],
)
def test_mistakes(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        forefed.simulate(squared, START, clients(*[6] * 10), rounds=1, **settings)


def test_a_run_under_attack_says_so_and_goes_on_bit_for_bit(world: World, tmp_path: Path) -> None:
    attack = [
        *("strategy=fedavg", "aggregator=centred_clipping", 'modifiers=["momentum"]', "rounds=3"),
        *("attack=min_max", "attack.hostile=2", "attack.knowledge=none", "cohort=6"),
    ]
    whole = world.run(tmp_path, *attack, "name=whole")
    config = world.config(tmp_path, *attack, "name=parts")
    with pytest.raises(Interrupted):
        run(config, callbacks=[StopAfter(1)])
    parts = run(config, resume=True)
    assert whole.summary["digest"] == parts.summary["digest"]
    told = "simulated attack 'min_max': 2 clients are hostile"
    assert told in whole.summary["attack"]
    assert told in (whole.folder / "adapter" / "README.md").read_text()
    rounds = [without_clock(lines(r.folder, "rounds.jsonl")) for r in (whole, parts)]
    assert rounds[0] == rounds[1] and all(len(line["hostile"]) == 2 for line in rounds[0])
    clean = world.run(tmp_path, *attack[:4], "cohort=6", "name=clean")
    assert clean.summary["digest"] != whole.summary["digest"] and "attack" not in clean.summary


def test_sites_are_never_attacked(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sites are real"):
        check(world.config(tmp_path, "partition=sites", "partition.names=['a', 'b']", "attack=ipm"))
    from forefed.core.settings import travelling

    assert "attack" not in travelling(world.config(tmp_path, "attack=ipm"))


def test_every_rule_meets_every_attack() -> None:
    """Nothing breaks, whatever meets whatever (one round of a tiny federation)."""
    for rule in AGGREGATORS.kinds():
        for kind in KINDS:
            attack = ATTACKS.parse(kind)
            ctx = context(AGGREGATORS.parse(rule))
            assert isinstance(attack, Crafted)
            assert bool(torch.isfinite(crafted(attack, BENIGN[:, :30], ctx=ctx)).all()), (
                rule,
                kind,
            )


def test_the_adversary_keeps_nothing_between_rounds() -> None:
    result = simulated(attack={"kind": "lie", "hostile": 2})
    assert isinstance(result.star.transport, Adversary)
    half = simulated(attack={"kind": "lie", "hostile": 2}, rounds=1)
    rest = simulated(attack={"kind": "lie", "hostile": 2}, rounds=2, state=half.state)
    assert trees.digest(rest.params) == trees.digest(result.params)
