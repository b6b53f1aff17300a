"""The channel in the loop: what the server learns under a secure sum, what is refused with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cryptography")

import forefed
from deployment import NAMES, FakePost, deployed, make_sites, rehearsal
from federation import World, lines
from forefed.channel import SecureSum, secure_sum_exchange
from forefed.channel.fixed_point import Words
from forefed.channel.messages import Message
from forefed.channel.summands import ABOUT, of_words, to_words
from forefed.config.compat import conflicts
from forefed.core.errors import ProtocolError, UserError
from forefed.core.types import Params, Reply, Update
from forefed.deploy.connect import connect_by
from forefed.deploy.envelope import Envelope
from forefed.deploy.parcels import Failure
from forefed.deploy.settings import for_sites
from forefed.federation.star import RunState
from forefed.run import configure, run
from forefed.run.simulate import Simulation, star_over
from forefed.wire.message import kind_of
from forefed.wire.questions import encode_question

WIDTH = 6


def loss(params: Params, batch: Any) -> torch.Tensor:
    return ((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2).mean()


def clients(count: int = 7) -> list[dict[str, torch.Tensor]]:
    drawn = torch.Generator().manual_seed(3)
    true = torch.randn(WIDTH, generator=drawn)
    shares = []
    for i in range(count):
        x = torch.randn(6 + i, WIDTH, generator=drawn)
        shares.append({"x": x, "y": x @ true + 0.1 * torch.randn(len(x), generator=drawn)})
    return shares


FIRST = {"w": torch.zeros(WIDTH), "b": torch.zeros(())}
STEP = {"optimiser": {"kind": "sgd", "lr": 0.05}}
WIDE = {"kind": "secure_sum", "clip": 8.0}


def play(**settings: Any) -> Simulation:
    settings = {"rounds": 3, "client": STEP, **settings}
    return forefed.simulate(loss, FIRST, clients(), **settings)


def test_the_mean_is_the_plain_one_up_to_its_rounding() -> None:
    plain, summed = play(), play(channel=WIDE)
    for name in FIRST:
        assert torch.allclose(plain.params[name], summed.params[name], atol=1e-5)
    assert torch.isclose(torch.tensor(plain.losses[0]), torch.tensor(summed.losses[0]), atol=1e-4)
    for one, other in zip(plain.reports, summed.reports, strict=True):
        assert one.heard == other.heard and len(other.updates) == 1
        assert sum(u.n_examples for u in one.updates) == other.updates[0].n_examples
        steps = sum(u.metrics["steps"] for u in one.updates)
        assert steps == other.updates[0].metrics["steps"]
        assert not other.contributions  # nothing is said of single ones
    assert summed.params["w"].equal(play(channel=WIDE).params["w"])


def test_slopes_along_shared_directions_are_summed() -> None:
    settings = {"strategy": "decomfl", "client": {"max_steps": 2}, "rounds": 1}
    plain, summed = play(**settings), play(**settings, channel="secure_sum")
    assert torch.allclose(plain.params["w"], summed.params["w"], atol=1e-4)
    least = min(r.bytes_up for r in summed.reports) / 7
    assert least < 2000  # a client; docs/BENCHMARKS.md has more


def test_every_other_client_may_be_lost_in_training() -> None:
    faults = {"crash": 0.15, "offline": 0.05}
    plain, summed = play(faults=faults, rounds=4), play(faults=faults, rounds=4, channel=WIDE)
    assert any(r.lost for r in summed.reports)
    assert [r.heard for r in summed.reports] == [r.heard for r in plain.reports]
    assert torch.allclose(plain.params["w"], summed.params["w"], atol=1e-5)


def test_with_too_few_the_round_changes_nothing() -> None:
    result = play(faults={"crash": 0.6}, rounds=2, channel=WIDE)
    for report in result.reports:
        assert report.abandoned + len(report.lost) == 7 and report.heard == ()
    assert result.params["w"].equal(FIRST["w"])


def test_clients_that_train_the_same_are_one_sum() -> None:
    units = [("w",), ("b",)]
    assign = {"kind": "contiguous", "head": "unit"}
    settings = {"strategy": "fedavg_split", "units": units, "assign": assign, "rounds": 2}
    more = {"kind": "secure_sum", "clip": 8.0, "min_group": 3}
    with pytest.raises(UserError, match="2 groups that train the same"):
        play(**settings, channel={**more, "min_group": 5})
    with pytest.raises(UserError, match="the smallest of 2, below"):
        play(**settings, channel=more)
    shares = clients(14)
    both = [
        forefed.simulate(loss, FIRST, shares, client=STEP, **settings, channel=c)
        for c in ("plain", more)
    ]
    assert torch.allclose(both[0].params["w"], both[1].params["w"], atol=1e-5)
    assert {len(r.updates) for r in both[1].reports} == {2}
    assert {len(r.heard) for r in both[1].reports} == {14}


@dataclass
class Recording:
    """A server that keeps all it is sent, and what it sends."""

    inner: Any
    replies: dict[int, list[bytes]] = field(default_factory=dict)

    def members(self) -> Any:
        return self.inner.members()

    def exchange(self, *given: Any) -> Iterator[Any]:
        yield from self.kept(self.inner.exchange(*given))

    def tell(self, *given: Any) -> Iterator[Any]:
        yield from self.kept(self.inner.tell(*given))

    def kept(self, outcomes: Iterator[Any]) -> Iterator[Any]:
        for outcome in outcomes:
            if isinstance(outcome, Reply):
                self.replies.setdefault(outcome.client, []).append(outcome.payload)
            yield outcome


def test_a_server_that_records_everything_recovers_no_contribution() -> None:
    """Of every client it has keys, sealed shares, masked words and one share of each neighbour. In
    none of it, nor in the sum of any six of the seven, is a trace of the words; in all seven is
    their sum."""
    size = 4096
    config = configure(base={"strategy": "fedavg", "cohort": 7, "client": STEP, "channel": WIDE})
    first = {"w": torch.zeros(size), "b": torch.zeros(())}
    drawn = torch.Generator().manual_seed(1)
    shares = [
        {"x": torch.randn(4, size, generator=drawn) / 64, "y": torch.ones(4)} for _ in range(7)
    ]
    star = star_over(config, loss, first, shares)
    server = Recording(star.transport)
    after, report = replace(star, transport=server).round(RunState(0, first))
    assert report.heard == tuple(range(7))
    masked = []
    for client, sent in server.replies.items():
        assert [kind_of(x) for x in sent] == ["channel", "channel", "masked", "channel"]
        keys, shares_, words, told = sent
        assert len(Message.decode(keys).body) == 64
        # five of seven are needed: four follow from what two clients know, and are not sent
        assert len(Message.decode(shares_).body) == 48 * (2 if client in (4, 5, 6) else 3)
        assert len(Message.decode(told).body) == 7 * 16  # one of each, itself among them
        body = words[-(8 * len(ABOUT) + 4 * (size + 1)) :]
        masked.append(Words.of_bytes(body, Words.zero(size + 1, len(ABOUT), 32)))
        assert client in range(7)
    point = config.channel.point("delta", 7)
    plain = play_alone(config, first, shares)
    for alone in range(7):
        rest = Words.zero(size + 1, len(ABOUT), 32)
        for c in range(7):
            if c != alone:
                rest.add(masked[c])
        for words in (masked[alone], rest):
            counts = np.bincount(words.values.view(np.uint8), minlength=256)
            expected = counts.sum() / 256
            assert 160 < float(((counts - expected) ** 2 / expected).sum()) < 370
            seen = point.decode(words.values)
            assert abs(float(np.corrcoef(seen[1:], plain[alone])[0, 1])) < 5 / np.sqrt(size)
            assert abs(int(words.about.view(np.int64)[0])) > 2**40  # no count of clients either
    # the mean of the plain contributions is what the round moved by
    moved = (first["w"] - after.params["w"]).numpy()
    unit = 2.0**-point.fraction / 28  # of the mean over 28 examples
    assert np.abs(moved - np.mean(plain, axis=0)).max() <= 7 * unit / 2 + 1e-9


def play_alone(config: Any, first: Params, shares: Any) -> list[Any]:
    """Every client's contribution to the first round, as it would come in plain sight."""
    plain = config.model_copy(update={"channel": forefed.configure().channel})
    star = star_over(plain, loss, first, shares)
    orders = star.plan(RunState(0, first))
    replies = list(star.transport.exchange(orders.values(), None))
    updates = [star.server.receive(orders[r.client], r.payload) for r in replies]
    return [u.grad["w"].numpy() for u in sorted(updates, key=lambda u: u.client)]


def test_a_client_answers_no_question_in_plain_sight() -> None:
    config = configure(base={"strategy": "fedavg", "cohort": 7, "channel": "secure_sum"})
    star = star_over(config, loss, FIRST, clients())
    (lost,) = star.transport.tell({3: encode_question("loss", "it", {})}, 1, None)
    assert lost.reason == "error" and "work without its sum" in lost.detail
    (order,) = [o for o in star.plan(RunState(0, FIRST)).values() if o.client == 3]
    message = Message("train", b"12345678", 7).encode()
    (lost,) = star.transport.exchange([replace(order, channel=message)], None)
    assert lost.reason == "error" and "knows nothing of" in lost.detail


def test_what_is_not_finite_is_no_part_of_the_sum() -> None:
    channel = SecureSum()
    shapes = {"w": (2,)}
    for bad in (torch.nan, torch.inf):
        update = Update(1, 3, {"w": torch.tensor([1.0, bad])})
        with pytest.raises(ProtocolError, match="not finite"):
            to_words(update, shapes, channel, 5)
    nobody = to_words(Update(1, 0, {"w": torch.tensor([1.0, torch.nan])}), shapes, channel, 5)
    assert not nobody.values.any()  # a client without examples adds nothing


def test_examples_losses_and_clipping_by_hand() -> None:
    channel, shapes = SecureSum(clip=2.0, max_examples=4), {"w": (2,)}
    one = Update(0, 3, {"w": torch.tensor([1.0, -0.5])}, None, {"loss": 0.5, "steps": 2.0})
    far = Update(1, 9, {"w": torch.tensor([8.0, 4.0])}, None, {"loss": torch.nan, "steps": 1.0})
    total = to_words(one, shapes, channel, 5)
    total.add(to_words(far, shapes, channel, 5))
    mean, about = of_words(total, shapes, channel, 5, "delta")
    # (3 (1, -0.5) + 4 (2, 1)) / 7, as 9 examples count as 4 and (8, 4) is scaled to (2, 1)
    assert mean["w"].tolist() == pytest.approx([11 / 7, 2.5 / 7], abs=1e-7)
    assert (about["examples"], about["clients"], about["loss"]) == (7, 2, 0.5)
    assert (about["steps"], about["clipped"], about["capped"]) == (3, 1, 1)


REFUSED = {
    "aggregator.kind = 'median' reads single contributions": {"aggregator": "median"},
    "codec.kind = 'quantised'": {"codec": "quantised"},
    "own directions cannot be summed": {"strategy": "spry", "codec": "scalars"},
    "set client.max_steps": {"strategy": "decomfl", "client": {"max_steps": None}},
    "trigger.kind = 'variance' reads single": {"trigger": "variance"},
    "cohort = 4 is below channel.min_group = 5": {"cohort": 4},
    "oversampling": {"oversampling": 0.2},
    "has no server": {"topology": "gossip"},
    "does not fit words of 32 bits": {"channel": {"kind": "secure_sum", "fraction": 20}},
    "leaves fewer than 8 binary digits": {
        "channel": {"kind": "secure_sum", "max_examples": 2**20, "clip": 8.0}
    },
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_work_with_it_is_refused_in_one_sentence(said: str) -> None:
    base = {"strategy": "fedavg", "channel": "secure_sum", **REFUSED[said]}
    (reason,) = [r for r in conflicts(configure(base=base)) if said in r]
    assert reason.count(". ") == 0


def test_no_two_sums_of_a_run_share_their_masks(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of two questions under the same masks would tell their difference."""
    begun: list[tuple[int, bytes]] = []
    real = secure_sum_exchange.Member

    def noted(client: int, session: bytes, *rest: Any) -> secure_sum_exchange.Member:
        begun.append((client, session))
        return real(client, session, *rest)

    noted.load = real.load  # type: ignore[attr-defined]
    monkeypatch.setattr(secure_sum_exchange, "Member", noted)
    sets = ["strategy=fedavg", "rounds=2", "cohort=6", "start=closed_form", "start.words=64"]
    sets += ["data.client_test_fraction=0.3", "guard=held_out", "channel=secure_sum"]
    world.run(tmp_path, *sets)
    per_client = len(begun) / len({c for c, _ in begun})
    assert per_client > 5  # words, sums, passes, heads, rounds, held-out losses
    assert len(set(begun)) == len(begun)


def test_the_solved_head_and_the_guard_see_sums_only(world: World, tmp_path: Path) -> None:
    sets = [
        *("strategy=fedavg", "rounds=1", "cohort=6", "start=closed_form", "start.then=trained"),
        *("data.client_test_fraction=0.3", "guard={kind='held_out', worth=0}"),
        "start.regularisation=10",
    ]
    plain = world.run(tmp_path, *sets, "name=plain")
    summed = world.run(tmp_path, *sets, "channel=secure_sum", "name=summed")
    starts = [(r.folder / "start.safetensors").read_bytes() for r in (plain, summed)]
    assert starts[0] == starts[1]  # whole numbers modulo 2^64: the same bits
    (one,), (other,) = (lines(r.folder, "rounds.jsonl") for r in (plain, summed))
    assert one["guard"]["rows"] == other["guard"]["rows"] > 0
    assert one["guard"]["before"] == pytest.approx(other["guard"]["before"], abs=1e-4)
    ends = [json.loads((r.folder / "start.json").read_text())["steps"] for r in (plain, summed)]
    assert ends[0]["quality"] == ends[1]["quality"] and ends[0]["kept"] == ends[1]["kept"]
    cards = [(r.folder / "adapter" / "README.md").read_text() for r in (plain, summed)]
    assert ["sums over groups of 5 clients" in c for c in cards] == [False, True]
    told = [json.loads((r.folder / "environment.json").read_text()) for r in (plain, summed)]
    assert [[p["what"] for p in each["protects"]] for each in told] == [[], ["secure sum"]]
    assert {c["slot"]: c["kind"] for c in told[1]["choices"]}["channel"] == "secure_sum"
    assert other["replies"] == 6 and other["contributions"] == []


def test_with_privacy_noise_the_divisor_is_constant_and_clients_bound_themselves() -> None:
    """The sum of clipped changes over the expected clients, however many examples they have."""
    dp = {"kind": "dp_client", "clip": 0.5, "noise_multiplier": 0.0}
    settings = {"modifiers": [dp], "rounds": 2, "faults": {"crash": 0.2}}
    plain = play(**settings)
    summed = play(**settings, channel={**WIDE, "max_examples": 1})
    assert torch.allclose(plain.params["w"], summed.params["w"], atol=1e-5)
    assert any(r.lost for r in summed.reports)
    for report in summed.reports:  # what a client may not say of itself stands in no sum either
        (update,) = report.updates
        assert update.n_examples == update.clients == len(report.heard)
        assert update.metrics["steps"] == update.metrics["clipped"] == 0
    slopes = {"strategy": "decomfl", "client": {"max_steps": 2}, "rounds": 1, "modifiers": [dp]}
    one, other = (play(**slopes, channel=c) for c in ("plain", "secure_sum"))
    assert torch.allclose(one.params["w"], other.params["w"], atol=1e-4)


def test_rounding_inward_makes_no_vector_longer() -> None:
    point = SecureSum(fraction=4, max_examples=1).point("delta", 5)
    x = np.array([0.97, -0.97, 0.03, -0.03])
    inward = point.decode(point.encode(x, 1, inward=True)[0])
    assert inward.tolist() == [15 / 16, -15 / 16, 0, 0]
    assert point.decode(point.encode(x, 1)[0]).tolist() == [1.0, -1.0, 0, 0]


SUMS = ["strategy=fedavg", "channel={kind='secure_sum', min_group=3}"]
POLICY = {"channels": ["secure_sum"], "min_group": 3}


def test_sites_end_with_the_bits_of_the_rehearsal(world: World, tmp_path: Path) -> None:
    more = [*SUMS, "rounds=1", "start=closed_form", "start.then=trained", "guard=none"]
    alone = run(rehearsal(world, tmp_path / "a", *more))
    post = FakePost(make_sites(world, tmp_path / "b", policy=POLICY))
    together = run(deployed(world, tmp_path / "b", *more), connect=connect_by(post))
    assert together.summary["digest"] == alone.summary["digest"]
    ours, theirs = (lines(r.folder, "rounds.jsonl") for r in (together, alone))
    assert [(r["loss"], r["replies"]) for r in ours] == [(r["loss"], r["replies"]) for r in theirs]
    sent = [e.blobs.get("order", e.blobs.get("question")) for _, e in post.asked if e.blobs]
    assert {kind_of(x) for x in sent if x} == {"order", "channel", "question"}


def test_a_site_that_is_lost_in_a_sum_of_the_minimum_abandons_the_round(
    world: World, tmp_path: Path
) -> None:
    post = FakePost(make_sites(world, tmp_path, policy=POLICY))
    post.tamper = {NAMES[0]: lambda a: [Failure("crash", "") if a.round == 1 else a]}
    more = [*SUMS, "start=none", "guard=none", "rounds=2"]
    result = run(deployed(world, tmp_path, *more), connect=connect_by(post))
    first, second = lines(result.folder, "rounds.jsonl")
    assert (first["replies"], first["abandoned"], first["lost"]) == (0, 2, {"crash": 1})
    assert (second["replies"], second["abandoned"]) == (3, 0)


def test_a_site_takes_part_in_what_its_policy_allows(world: World, tmp_path: Path) -> None:
    def joins(*more: str, **policy: object) -> str:
        site = make_sites(world, tmp_path, policy=policy)[NAMES[0]]
        told = for_sites(deployed(world, tmp_path, *more))
        return site(Envelope("join", "1", text=told)).text

    said = joins("strategy=fedavg", channels=["secure_sum"])
    assert said == "channel 'plain' is not allowed here (policy.channels)"
    assert joins(*SUMS) == "channel.min_group = 3, at least 5 here"
    site = make_sites(world, tmp_path, policy=POLICY)[NAMES[0]]
    told = for_sites(deployed(world, tmp_path, *SUMS))
    keys = Message("keys", b"12345678").encode()
    asked = Envelope("ask", "1", 1, 0, told, {"question": keys})
    first, second = site(asked), site(asked)
    assert first.kind == second.kind == "answered"
    assert first.blobs != second.blobs  # every attempt has new keys, so no mask is used twice
    few = {c: bytes(64) for c in (1,)}
    shares = Message.of("shares", b"12345678", 2, few).encode()
    refused = site(replace(asked, blobs={"question": shares}))
    assert (refused.kind, refused.text) == ("refused", "a sum of 2 clients, at least 3 here")
    plain = encode_question("sums", "it", {})
    assert site(replace(asked, blobs={"question": plain})).kind == "failed"
