"""A site's own privacy budget: refused before anything leaves, over runs and restarts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from deployment import FakePost, deployed, make_sites
from faults import fault
from federation import World
from forefed.config.config import configure
from forefed.core.kept import SECRET
from forefed.deploy.connect import connect_by
from forefed.deploy.privacy_budget import of_order, of_question, spend
from forefed.deploy.settings import Policy, Refusal
from forefed.deploy.site import Site
from forefed.privacy import Ledger, Release, epsilon
from forefed.run import run
from forefed.run.build import build
from forefed.wire.orders import encode_broadcast, encode_order
from kills import killed_at, points, written

EXAMPLE = [
    *("strategy=fedavg", "rounds=3", "client.sampler.kind=poisson", "client.sampler.rate=0.5"),
    'modifiers=[{kind="dp_example", noise_multiplier=1.0, delta=1e-3}]',
]


def cost(rounds: int) -> float:
    made = Release(unit="example", sigma=1.0, q=0.5, count=2 * rounds, adversary="")
    return epsilon([made], 1e-3)


def test_a_site_stops_when_its_budget_is_spent_and_the_others_go_on(
    world: World, tmp_path: Path
) -> None:
    policy = {"max_epsilon": (cost(2) + cost(3)) / 2, "delta": 1e-3}
    sites = make_sites(world, tmp_path)
    careful = make_sites(world, tmp_path, policy=policy)["main"]
    post = FakePost({**sites, "main": careful})
    result = run(deployed(world, tmp_path, *EXAMPLE), connect=connect_by(post))
    assert result.summary["status"] == "finished"
    rounds = [r.round for r in Ledger.of(careful.folder).made]
    assert rounds == [1, 2]  # and in the third it said no
    # the same site after a restart, asked by another run
    again = make_sites(world, tmp_path, policy=policy)["main"]
    post = FakePost({**sites, "main": again})
    run(deployed(world, tmp_path, *EXAMPLE, "name=second"), connect=connect_by(post))
    assert Ledger.of(again.folder).made == Ledger.of(careful.folder).made


def test_what_has_no_noise_is_refused_where_there_is_a_budget(tmp_path: Path) -> None:
    policy = Policy(max_epsilon=3.0)
    plain = configure(sets=["strategy=fedavg"])
    assert of_order(plain) == [] and of_question(plain, "sums") == []
    with pytest.raises(Refusal, match="has no noise"):
        spend(tmp_path, policy, of_order(plain), 1, "a")
    assert spend(tmp_path, Policy(), of_order(plain), 1, "a") == []  # no budget, no question


def test_the_same_order_again_costs_nothing_and_another_does(tmp_path: Path) -> None:
    config = configure(
        sets=["strategy=fedavg", 'modifiers=[{kind="dp_client", noise_multiplier=1}]']
    )
    made = of_order(config)
    assert [(r.unit, r.q, r.sigma) for r in made] == [("client", 1.0, 1.0)]
    policy = Policy(max_epsilon=5.0)  # one Gaussian sum costs 4.38
    assert len(spend(tmp_path, policy, made, 1, "order")) == 1
    assert spend(tmp_path, policy, made, 1, "order") == []
    with pytest.raises(Refusal, match=r"epsilon would be 6\.57.*at most 5 \(policy\.max_epsilon\)"):
        spend(tmp_path, policy, made, 1, "another order")
    assert len(Ledger.of(tmp_path).made) == 1


def test_a_poisson_round_counts_whole_and_its_noise_must_be_named(tmp_path: Path) -> None:
    sampled = ["strategy=fedavg", "select=poisson", "cohort=2", "rounds=50"]
    named = configure(sets=[*sampled, 'modifiers=[{kind="dp_client", noise_multiplier=1}]'])
    assert [r.q for r in of_order(named)] == [1.0]
    target = configure(sets=[*sampled, 'modifiers=[{kind="dp_client", target_epsilon=1}]'])
    with pytest.raises(Refusal, match="not named"):
        of_order(target)
    fixed = configure(
        sets=["strategy=fedavg", "rounds=4", 'modifiers=[{kind="dp_client", target_epsilon=4.377}]']
    )
    assert [r.sigma for r in of_order(fixed)] == [pytest.approx(2.0, rel=5e-3)]


@fault(
    "site: the worker killed before or after any flush or renaming",
    "while it answers an order or a question that its budget pays for",
    "no answer is kept that was not entered before; the same task again: the same bytes, and "
    "entered once",
)
@pytest.mark.parametrize("kind", ["train", "ask"])
def test_a_kill_of_a_site_spends_nothing_twice_and_forgets_nothing(
    kind: str, world: World, tmp_path: Path
) -> None:
    policy = {"max_epsilon": 50.0, "delta": 1e-3}
    noisy = "start={kind='closed_form', noise_multiplier=2.0, solver='ridge', regularisation=0.1, "
    sets = ["model.pooling=mean", noisy + "radius=3.0}", f"rounds={0 if kind == 'ask' else 3}"]
    config = deployed(world, tmp_path, *EXAMPLE, *sets)
    post = FakePost(make_sites(world, tmp_path / "told"))
    if kind == "ask":
        run(config, connect=connect_by(post))
        asked = next(e for name, e in post.asked if name == "main" and e.kind == "ask")
    else:
        federation = build(config, connect=connect_by(post))
        order = federation.star.plan(federation.start())[1]
        blobs = {"state": encode_broadcast(order), "order": encode_order(order)}
        told = next(e for name, e in post.asked if name == "main")
        asked = replace(told, kind="train", round=1, client=1, blobs=blobs)

    def site(name: str) -> Site:
        made = make_sites(world, tmp_path / name, policy=policy)["main"]
        (made.folder / SECRET).write_bytes(bytes(range(32)))
        return made

    whole = site("whole")
    with written() as calls:
        answer = whole(asked)
    assert answer.kind in ("trained", "answered"), answer.text
    (entered,) = Ledger.of(whole.folder).made
    reached = 0
    for point in points(2 * len(calls), 2):
        killed = site(f"killed-{point}")
        reached += killed_at(point, partial(killed, asked))
        answers = list((killed.folder / "done").rglob("1.safetensors"))
        assert not answers or Ledger.of(killed.folder).made == [entered]
        for _ in range(2):  # started again, and the same task twice
            assert site(f"killed-{point}")(asked).blobs == answer.blobs
            assert Ledger.of(killed.folder).made == [entered]
    assert reached
