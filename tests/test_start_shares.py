"""Noise of which every client adds its share: what h of them add protects one row as one Gaussian
would, nothing stands twice under one noise, and what cannot keep that is refused."""

from __future__ import annotations

import math
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch

from federation import World
from forefed.config.compat import check, conflicts
from forefed.config.config import configure
from forefed.core.errors import ProtocolError, UserError
from forefed.core.keys import Secret
from forefed.core.types import Params
from forefed.deploy.privacy_budget import of_order, of_question, spend
from forefed.deploy.settings import Policy, Refusal
from forefed.federation.questions import Way
from forefed.privacy import Ledger, gaussian
from forefed.run.build import build
from forefed.run.head_start import begin
from forefed.start import ClosedForm
from forefed.start.answer import about
from forefed.start.private import within
from forefed.start.shares import Shares
from forefed.start.sums import Sums
from forefed.start.targets import Classes, Labels, Numbers, Targets
from forefed.wire.questions import encode_question

SECRET = Secret.rehearsed(3)
NAMES = ("a", "b", "c")
TARGETS: list[Targets] = [Classes(NAMES), Labels(NAMES), Numbers(("0.0", "1.0"))]


def shares(honest: int, **settings: object) -> Shares:
    own = {"solver": "auto", "regularisation": 0.1, "radius": 4.0, "noise_by": "clients"}
    return Shares(ClosedForm.model_validate({**own, "noise_multiplier": 2.0, **settings}), honest)


def summed(mine: Shares, targets: Targets, clients: int, sums: Sums) -> Params:
    """What so many clients add, the first with these rows."""
    nobody = Sums.zero(targets.columns, len(sums.x))
    each = [mine.added(nobody if c else sums, targets, SECRET.fold(str(c))) for c in range(clients)]
    return reduce(lambda a, b: {n: x + b[n] for n, x in a.items()}, each)


@pytest.mark.parametrize("targets", TARGETS)
def test_a_row_moves_the_sums_by_one_over_sigma_of_what_h_shares_add(targets: Targets) -> None:
    """Measured: the row's part over the deviation of h shares, which are drawn many times."""
    mine, width = shares(4), 24
    x = within(1e3 * gaussian(SECRET, (1, width)), 4.0)
    one = {Classes: np.zeros(1, dtype=int), Labels: np.ones((1, 3), dtype=int), Numbers: np.ones(1)}
    row, nobody = Sums.of(x, targets.of(one[type(targets)])), Sums.zero(targets.columns, width)
    noise, with_row = (summed(mine, targets, 4, sums) for sums in (nobody, row))
    names = {"xx", "xy", "y"} if targets.partition else {"xx", "xy", "y", "n", "x"}
    assert set(noise) == set(mine.shapes(targets, width)) == names
    moved, drawn = 0.0, []
    for name, before in noise.items():
        apart = (with_row[name] - before).double()
        bits, share = mine._share(name, width, targets)
        deviation = 2.0 * share.expand(before.shape)  # the root of h
        assert float(deviation.min()) >= 2.0 * 2**16 * 0.999, "fine enough to be Gaussian"
        assert torch.equal(apart, (getattr(row, name) << bits).double())  # nothing is rounded
        moved += float(((apart / deviation) ** 2).sum())
        drawn.append((before / deviation).flatten())
    assert 0.8 / 2.0 < math.sqrt(moved) <= (1 + 1e-9) / 2.0
    assert float(torch.cat(drawn).std()) == pytest.approx(1.0, rel=0.1)


def test_more_clients_add_more_noise_and_the_server_reckons_with_all_of_it() -> None:
    classes, zero = Classes(NAMES), Sums.zero(3, 24)
    few, many = (summed(shares(2, radius=2.0), classes, n, zero) for n in (2, 32))
    assert float(many["xx"].double().std() / few["xx"].double().std()) == pytest.approx(4, rel=0.2)
    sums, release = shares(2, radius=2.0).opened(many, 32, classes, SECRET)
    sums.check()
    expected = 2.0 * math.sqrt(3) * 2 * 4
    assert float(sums.real()[1].std()) == pytest.approx(expected, rel=0.3)
    assert (release.sigma, release.mechanism) == (2.0, "distributed Gaussian")
    assert release.adversary.startswith("the server together with any other client, and everyone")
    other = shares(2, radius=2.0).opened(few, 2, classes, SECRET)[1]
    assert other.tag != release.tag
    # what the noise may have made negative is lifted by the deviation of all who added some
    nothing = {n: torch.zeros_like(x) for n, x in few.items()}
    lifted = [shares(2, radius=2.0).opened(nothing, n, classes, SECRET)[0] for n in (2, 32)]
    at = [float(x.xx.double().max()) for x in lifted]
    assert at[1] / at[0] == pytest.approx(4.0, rel=1e-3)


def test_with_hardly_any_noise_the_sums_are_those_of_the_rows() -> None:
    for targets in TARGETS:
        x = within(gaussian(SECRET.fold("x"), (50, 6)), 4.0)
        labels = np.arange(50) % 3
        if targets.columns == 1:
            labels = labels / 2
        elif not targets.partition:
            labels = np.eye(3, dtype=int)[labels]
        rows = Sums.of(x, targets.of(labels))
        mine = shares(2, noise_multiplier=1e-7)
        found, _ = mine.opened(summed(mine, targets, 3, rows), 3, targets, SECRET)
        for name, whole in vars(rows).items():
            # products: what makes them positive adds a hundred steps
            near = 1e5 if name == "xx" else 1 + 2e-6 * float(whole.abs().max())
            assert float((getattr(found, name) - whole).abs().max()) <= near


SUM = "channel={kind='secure_sum', min_group=4}"
PRIVATE = (
    "start={kind='closed_form', noise_multiplier=2.0, solver='ridge', regularisation=0.1, "
    "radius=3.0, noise_by='clients'"
)
ALONE = ["adapter=head", "rounds=0", "cohort=6"]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ([PRIVATE + "}", SUM], ""),
        ([PRIVATE + ", colluding=0}", SUM], ""),
        ([PRIVATE + "}"], "too little for its sums alone"),
        # whoever adds up parts of a sum sees single contributions, with a share of noise
        ([PRIVATE + ", colluding=0}", "channel=partial_sums"], "too little for its sums"),
        ([PRIVATE + ", colluding=4}", SUM], "nobody whose noise counts"),
        ([PRIVATE + ", colluding=3}", SUM], "more than channel.kind = 'secure_sum' bears"),
        (
            [PRIVATE + ", colluding=4}", "channel={kind='secure_sum', min_group=6}"],
            "more than channel.kind = 'secure_sum' bears",
        ),
        (
            [PRIVATE + ", colluding=3}", "channel={kind='secure_sum', min_group=6}"],
            "",
        ),
    ],
)
def test_shares_need_a_sum_that_hides_them(sets: list[str], said: str) -> None:
    found = [c for c in conflicts(configure(sets=["strategy=fedavg", *ALONE, *sets]))]
    assert [said in c for c in found if c.startswith("start:")] == ([True] if said else [])


def test_a_run_says_whom_it_protects_from_and_repeats_itself(world: World, tmp_path: Path) -> None:
    sets = ["strategy=fedavg", "model.pooling=mean", "guard=none", *ALONE, SUM, PRIVATE + "}"]
    result = world.run(tmp_path / "a", *sets)
    (spent,) = result.summary["privacy"]
    assert spent["epsilon"] == pytest.approx(1.993, abs=0.01)  # mu = 1/2
    assert "distributed Gaussian noise" in spent["text"]
    assert "against the server together with any other client, and everyone" in spent["text"]
    again = world.run(tmp_path / "b", *sets)
    assert Ledger.of(again.folder).made == Ledger.of(result.folder).made


def test_no_two_sums_have_one_noise_and_none_goes_alone(world: World, tmp_path: Path) -> None:
    """Else the sums of two groups that differ by a client tell that client's."""
    sets = ["strategy=fedavg", "model.pooling=mean", "guard=none", *ALONE, SUM, PRIVATE + "}"]
    federation = build(world.config(tmp_path, *sets))
    start, way = federation.config.start, Way.of(federation.star)
    assert isinstance(start, ClosedForm)
    task, transport = federation.task, federation.transport
    first, again = (
        begin(start, task, transport, None, way=one, secret=SECRET).total.xx
        for one in (way, way.anew("after a stop"))
    )
    assert not torch.equal(first, again)
    answers = federation.transport.party.answers
    question = encode_question("sums", about(task), {"rows": torch.tensor(0)})
    assert answers is not None
    with pytest.raises(ProtocolError, match="have a share of noise"):
        answers(question, federation.data.population.client(0))


def test_a_site_may_believe_its_own_noise_alone(tmp_path: Path) -> None:
    own = Policy(max_epsilon=3.0, own_noise=True)
    sets = ["strategy=fedavg", *ALONE, SUM]
    theirs = configure(sets=[*sets, PRIVATE.replace("'clients'", "'server'") + "}"])
    shared = configure(sets=[*sets, PRIVATE + "}"])
    assert len(of_question(theirs, "sums")) == 1 and not of_question(theirs, "sums", True)
    with pytest.raises(Refusal, match="no noise of this site's own"):
        spend(tmp_path, own, of_question(theirs, "sums", True), 0, "a")
    assert len(spend(tmp_path, own, of_question(shared, "sums", True), 0, "a")) == 1
    rounds = configure(
        sets=["strategy=fedavg", 'modifiers=[{kind="dp_client", noise_multiplier=1}]']
    )
    assert len(of_order(rounds)) == 1 and not of_order(rounds, own_noise=True)
    with pytest.raises(ValueError, match="set max_epsilon"):
        Policy(own_noise=True)


def test_shares_of_no_noise_are_refused() -> None:
    sets = ["strategy=fedavg", "start={kind='closed_form', noise_by='clients'}"]
    with pytest.raises(UserError, match="noise_by = 'clients': there is no noise"):
        check(configure(sets=sets))
