"""What only one party may know: secrets, and the honest-but-curious server that looks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deployment import FEW, NAMES, FakePost, deployed, make_sites, rehearsal
from federation import World
from forefed.core.errors import UserError
from forefed.core.kept import SECRET, kept_secret
from forefed.core.keys import Key, Secret
from forefed.core.types import ClientContext, Order, Params, Update
from forefed.deploy.connect import connect_by
from forefed.deploy.envelope import encode
from forefed.privacy.noise import noised
from forefed.run import run
from forefed.wire import Dense, Quantised

ORDER = Order(7, 3, 5, ("b",), {"a": torch.ones(2), "b": torch.zeros(2, 40)})
SENT = Update(5, 4, {"b": torch.linspace(-1, 1, 80).reshape(2, 40)})
DRAWN = (200,)


def drawn(key: Key) -> Tensor:
    """What an algorithm draws: noise of a purpose."""
    return key.fold("noise").normal(DRAWN)


def guesses(seed: int, context: ClientContext, run_id: str) -> Iterator[Key]:
    """Every source of randomness that follows from what a server knows."""
    yield from (context.key, Key(seed), Key(seed).fold("round", context.round))
    place = (context.client, context.round)
    for public in (Secret(seed), Secret(context.key.value), Secret.rehearsed(seed)):
        yield public
        yield public.fold(run_id, *place)
        yield public.fold("clients").fold(*place)
        yield public.fold("server").fold("round", context.round)


def test_the_server_of_a_deployment_predicts_nothing_that_a_site_draws_in_secret(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ClientContext] = []
    honest = Dense.encode

    def spied(self: Dense, update: Update, ctx: ClientContext) -> bytes:
        seen.append(ctx)
        return honest(self, update, ctx)

    monkeypatch.setattr(Dense, "encode", spied)
    post = FakePost(make_sites(world, tmp_path))
    config = deployed(world, tmp_path, "codec=dense", "rounds=2", "seed=11", FEW)
    result = run(config, connect=connect_by(post))
    assert len(seen) == 6
    run_id = post.asked[-1][1].run
    private = [drawn(ctx.secret) for ctx in seen]
    for ctx, noise in zip(seen, private, strict=True):
        known = [drawn(key) for key in guesses(11, ctx, run_id)]
        # noise from the public key is no protection: this attack takes it off
        assert any(torch.equal(drawn(ctx.key), guess) for guess in known)
        # an unrelated guess correlates like chance: 1 / sqrt(200)
        along = [float(guess @ noise / (guess.norm() * noise.norm())) for guess in known]
        assert max(map(abs, along)) < 5 / 200**0.5
    assert len({x.numpy().tobytes() for x in private}) == 6  # by site and round
    everything = b"".join(encode(asked) for _, asked in post.asked)
    for name in NAMES:
        file = tmp_path / "sites" / name / SECRET
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_bytes() not in everything
    assert (result.folder / SECRET).stat().st_mode & 0o777 == 0o600
    assert read(result.folder)["secret"] == "system"


def test_a_site_that_starts_again_draws_the_same_bits(tmp_path: Path) -> None:
    first, again, other = (kept_secret(tmp_path / name) for name in ("a", "a", "b"))
    assert first == again != other and first.fold("x") == again.fold("x") != first.fold("y")
    (tmp_path / "a" / SECRET).write_bytes(b"short")
    with pytest.raises(UserError, match=r"secret\.key: damaged"):
        kept_secret(tmp_path / "a")


def test_a_rehearsal_says_that_its_secrets_follow_from_the_seed(
    world: World, tmp_path: Path
) -> None:
    result = run(rehearsal(world, tmp_path, "rounds=1"))
    assert read(result.folder)["secret"] == "derived from the seed (rehearsal)"
    assert not (result.folder / SECRET).exists()


def test_a_secret_draws_as_a_key_does_and_tells_nobody_its_value() -> None:
    secret = Secret.rehearsed(3)
    assert repr(secret) == "Secret(...)"
    noise = secret.normal((4000,))
    assert abs(float(noise.mean())) < 0.08 and abs(float(noise.std()) - 1) < 0.05
    assert torch.equal(secret.uniform((10,), offset=6), secret.uniform((16,))[6:])
    assert sorted(secret.permutation(9)) == list(range(9))
    assert np.array_equal(secret.blocks(2, 3, 5, 7), secret.blocks(0, 5, 5, 7)[2:])
    some = secret.directions("gauss16", (3,), 1, [4, 2])
    assert torch.equal(some[1], secret.normal((3,), 1, 2))
    assert Secret.of_bytes(secret.bytes) == secret


def test_drawing_without_a_secret_is_an_error_and_no_public_number() -> None:
    with pytest.raises(RuntimeError, match="no secret"):
        _ = ClientContext(order=ORDER).secret


def test_seeds_of_a_study_round_differently() -> None:
    """The stochastic rounding of a codec is a function of the run's key."""
    other = ClientContext(order=Order(8, 3, 5, ORDER.assigned, ORDER.params))
    sent = [Quantised(bits=4).encode(SENT, c) for c in (ClientContext(order=ORDER), other)]
    assert sent[0] != sent[1]


def read(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "environment.json").read_text()))


@pytest.mark.parametrize("kind", ["dp_client", "dp_example"])
def test_the_noise_of_a_deployment_cannot_be_taken_off(
    kind: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever knows the seed, the settings and every message repeats neither server nor site."""
    drawn_by: list[Secret] = []
    honest = noised

    def spied(total: Params, deviation: float, secret: Secret) -> Params:
        drawn_by.append(secret)
        return honest(total, deviation, secret)

    for module in ("forefed.modifiers.dp_client", "forefed.modifiers.dp_example"):
        monkeypatch.setattr(f"{module}.noised", spied)
    private = f'modifiers=[{{kind="{kind}", noise_multiplier=1.0, delta=1e-3}}]'
    sampled = ["client.sampler.kind=poisson", "client.sampler.rate=0.5"]
    sets = ["strategy=fedavg", private, "rounds=1", "seed=11"]
    sets += sampled if kind == "dp_example" else ["select=poisson"]
    result = run(
        deployed(world, tmp_path, *sets),
        connect=connect_by(FakePost(make_sites(world, tmp_path))),
    )
    assert drawn_by
    (spent,) = result.summary["privacy"]
    assert spent["rehearsal"] is False and "rehearsal" not in spent["text"]
    zeros = {"w": torch.zeros(200)}
    private_noise = [honest(zeros, 1.0, secret)["w"] for secret in drawn_by]
    assert len({x.numpy().tobytes() for x in private_noise}) == len(private_noise)
    for role in ("server", "clients"):
        known = [Key(11), Key(11).fold(role, 1), Key(11).fold("round", 1)]
        known += [Key(11).fold("client", 1, c) for c in range(3)]
        secrets = [Secret(key.value) for key in known]
        for public in (*secrets, Secret.rehearsed(11), Secret.rehearsed(11).fold(role)):
            for round in (0, 1):
                for key in (
                    public,
                    public.fold(round),
                    public.fold(0, round),
                    public.fold("x", round),
                ):
                    for last in (key.fold(kind), key.fold(kind, 0), key):
                        guess = honest(zeros, 1.0, last)["w"]
                        along = [
                            float(guess @ x / (guess.norm() * x.norm())) for x in private_noise
                        ]
                        assert max(map(abs, along)) < 5.5 / 200**0.5


def test_a_rehearsal_repeats_its_noise_and_says_that_it_protects_nobody(
    world: World, tmp_path: Path
) -> None:
    private = 'modifiers=[{kind="dp_client", noise_multiplier=1.0, delta=1e-3}]'
    sets = ("strategy=fedavg", private, "rounds=1", "select=poisson")
    results = [run(rehearsal(world, tmp_path, *sets, f"name={n}")) for n in ("a", "b")]
    assert results[0].summary["digest"] == results[1].summary["digest"]
    assert "it protects nobody" in results[0].summary["privacy"][0]["text"]
