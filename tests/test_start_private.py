"""The solved head under noise: what one row can move, what is refused, and that it still learns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from federation import World
from forefed.config.compat import conflicts
from forefed.config.config import configure
from forefed.core.errors import UserError
from forefed.core.keys import Secret
from forefed.privacy import gaussian
from forefed.start import ClosedForm
from forefed.start.private import private_sums, within
from forefed.start.solver import Solver
from forefed.start.sums import STEP, Sums
from forefed.start.targets import Classes, Labels, Numbers, Targets
from forefed.use.forget import forget

SECRET = Secret.rehearsed(8)
NAMES = ("a", "b", "c")


def rows(n: int, width: int = 6) -> tuple[Tensor, Tensor]:
    """Three classes around centres of length 2."""
    labels = torch.arange(n) % 3
    centers = torch.zeros(3, width, dtype=torch.float64)
    centers[torch.arange(3), torch.arange(3)] = 2.0
    x = centers[labels] + 0.7 * gaussian(Secret.rehearsed(n), (n, width))
    return x, labels


def start(**settings: object) -> ClosedForm:
    own = {"solver": "discriminant", "regularisation": 0.1, "radius": 4.0, **settings}
    return ClosedForm.model_validate(own)


def sums(x: Tensor, labels: Tensor) -> Sums:
    return Sums.of(x, Classes(NAMES).of(labels.numpy()))


def vector(targets: Targets, x_1D: Tensor, y_1C: Tensor, radius: float) -> Tensor:
    """What one row adds, as start/private.py scales it."""
    own = Sums.of(within(x_1D, radius), y_1C)
    x, xy, xx = own.real()
    above = torch.triu(torch.ones_like(xx), 1).bool()
    target = targets.unit / targets.length
    parts = [own.y.double() * target, xy.flatten() * target / radius]
    parts += [xx.diagonal() / radius**2, math.sqrt(2) * xx[above] / radius**2]
    return torch.cat(parts if targets.partition else [*parts, own.n[None].double(), x / radius])


LONGEST: list[tuple[Targets, list[int]]] = [
    (Classes(NAMES), [0, 1, 0]),
    (Labels(NAMES), [1, 1, 1]),
    (Numbers(("0.0", "1.0")), [2**17]),
]
"""Targets, and those of a row that are as long as any."""


@pytest.mark.parametrize(("targets", "longest"), LONGEST)
def test_one_row_adds_at_most_the_root_of_its_blocks(targets: Targets, longest: list[int]) -> None:
    assert targets.blocks == (3 if isinstance(targets, Classes) else 5)
    most = math.sqrt(targets.blocks)
    for y in (longest, [-1 * longest[0]] if targets.columns == 1 else [1, 0, 0]):
        y_1C = torch.tensor([y])
        for scale in (0.1, 1.0, 50.0, 1e9):
            x = scale * gaussian(Secret.rehearsed(1), (1, 6))
            for radius in (0.3, 4.0):
                assert torch.norm(vector(targets, x, y_1C, radius)) <= most * (1 + 1e-12)
    far = vector(targets, 1e9 * torch.ones(1, 6), torch.tensor([longest]), 4.0)
    assert torch.norm(far) > 0.97 * most


@pytest.mark.parametrize(("targets", "longest"), LONGEST)
def test_noise_on_any_targets_leaves_sums_that_rows_could_have(
    targets: Targets, longest: list[int]
) -> None:
    """And of the stated size: sigma times the root of the blocks, in the block's own units."""
    zero = Sums.zero(targets.columns, 40)
    noisy, release = private_sums(start(noise_multiplier=5.0, radius=2.0), targets, zero, SECRET)
    targets.check(noisy)
    target = targets.unit / targets.length
    expected = 5 * math.sqrt(targets.blocks) * 2
    assert float((noisy.real()[1] * target).std()) == pytest.approx(expected, rel=0.3)
    assert release.sigma == 5.0
    head = targets.head(Solver.of(noisy, targets.unit), (targets.solvers[0], 0.1), "counts")
    assert torch.isfinite(head.weight_CD).all() and torch.isfinite(head.bias_C).all()


def test_long_and_spoilt_features_are_cut() -> None:
    spoilt = torch.tensor([[1.0, math.nan, 0, 0, 0, 0]])
    assert not within(spoilt, 4.0).any()
    short = within(torch.full((1, 4), 0.3), 4.0)
    assert torch.equal(short, (torch.full((1, 4), 0.3).double() / STEP).trunc() * STEP)


def test_the_noise_has_the_stated_size() -> None:
    zero = Sums.zero(3, 40)
    classes = Classes(NAMES)
    noisy, release = private_sums(start(noise_multiplier=5.0, radius=2.0), classes, zero, SECRET)
    # of the class sums: sigma sqrt(3) R; counts are cut at 1
    assert float(noisy.real()[1].std()) == pytest.approx(5 * math.sqrt(3) * 2, rel=0.25)
    assert (release.unit, release.sigma, release.q, release.round) == ("example", 5.0, 1.0, 0)
    more = start(noise_multiplier=5.0, radius=2.0, unit="client", max_rows=10)
    wide = private_sums(more, classes, zero, SECRET)[0]
    assert float(wide.real()[1].std()) == pytest.approx(50 * math.sqrt(3) * 2, rel=0.25)
    again = private_sums(start(noise_multiplier=5.0, radius=2.0), classes, zero, SECRET)
    assert torch.equal(again[0].xx, noisy.xx) and again[1] == release
    x, labels = rows(1, 40)
    told = sums(within(x, 2.0), labels)
    other = private_sums(start(noise_multiplier=5.0, radius=2.0), classes, told, SECRET)
    assert other[1].tag != release.tag


def accuracy(n: int, sigma: float) -> float:
    x, labels = rows(n)
    total = sums(within(x, 4.0), labels)
    noisy, _ = private_sums(start(noise_multiplier=sigma), Classes(NAMES), total, SECRET)
    noisy.check()  # such as rows could have
    head = Solver.of(noisy).discriminant(0.1)
    fresh, truth = rows(999)
    said = (fresh @ head.weight_CD.T + head.bias_C).argmax(1)
    return float((said == truth).double().mean())


def test_it_learns_where_rows_are_many_and_noise_hides_few() -> None:
    plain = accuracy(3000, 1e-6)
    assert plain > 0.9
    assert accuracy(3000, 4.0) > plain - 0.05
    assert accuracy(12, 400.0) < 0.7


def test_very_noisy_sums_are_still_sums() -> None:
    for seed in range(6):
        x, labels = rows(30)
        total = sums(within(x, 4.0), labels)
        noisy, _ = private_sums(
            start(noise_multiplier=50.0), Classes(NAMES), total, SECRET.fold(seed)
        )
        head = Solver.of(noisy).discriminant(0.1)
        assert torch.isfinite(head.weight_CD).all() and torch.isfinite(head.bias_C).all()


PRIVATE = "start={kind='closed_form', noise_multiplier=2.0, solver='ridge', regularisation=0.1, "
ALONE = ["adapter=head", "rounds=0"]


@pytest.mark.parametrize(
    ("settings", "sets", "said"),
    [
        ("radius=3.0}", ALONE, ""),
        ("delta=1e-5}", ALONE, "set start.radius"),
        ("radius=3.0, target_epsilon=1.0}", ALONE, "give one"),
        ("radius=3.0, unit='client'}", ALONE, "set start.max_rows"),
        ("radius=3.0, max_rows=4}", ALONE, ""),
        ("radius=3.0, f=1}", ALONE, "leave start.f out"),
        ("radius=3.0, min_count=2}", ALONE, "min_count lets one row"),
        ("radius=3.0}", ["rounds=2"], "the run as a whole hides nothing"),
        ("radius=3.0}", [*ALONE, "evaluate.clients=2"], "set it to 0"),
        ("radius=3.0}", [*ALONE, "guard=held_out"], "set guard = 'none'"),
        (
            "radius=3.0}",
            ['modifiers=[{kind="dp_client", noise_multiplier=1}]'],
            "the modifiers hide clients",
        ),
    ],
)
def test_what_would_let_out_more_is_refused(settings: str, sets: list[str], said: str) -> None:
    config = configure(sets=["strategy=fedavg", PRIVATE + settings, *sets])
    found = [c for c in conflicts(config) if c.startswith("start:")]
    assert [said in c for c in found] == ([True] if said else [])


def test_held_out_rows_may_not_choose() -> None:
    sets = ["strategy=fedavg", "start={kind='closed_form', noise_multiplier=1, radius=1}"]
    assert any("start.regularisation = 0.1" in c for c in conflicts(configure(sets=sets)))


def test_a_private_head_alone_has_a_ledger_and_nothing_to_subtract_from(
    world: World, tmp_path: Path
) -> None:
    sets = ["strategy=fedavg", "model.pooling=mean", "guard=none", *ALONE]
    result = world.run(tmp_path, *sets, PRIVATE + "radius=3.0}")
    (spent,) = result.summary["privacy"]
    assert (spent["unit"], spent["releases"], spent["rounds"]) == ("example", 1, 1)
    assert spent["epsilon"] == pytest.approx(1.993, abs=0.01)  # mu = 1/2
    assert "every example" in spent["text"]
    with pytest.raises(UserError, match="its sums have noise"):
        forget(result.folder, 0)
