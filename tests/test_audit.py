"""What a curious server learns: each step of the ladder on a problem where the answer is known, and
the command on a tiny model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from commands import Command, mistake, options, plain
from federation import World
from forefed.audit import labels as a0
from forefed.audit.audit import audit
from forefed.audit.finding import Client, finding
from forefed.audit.layers import TokenLayers, read
from forefed.audit.optimise import Inversion, Pairs, of_texts, overlap
from forefed.audit.rowspace import inside, ranked_right, row_space
from forefed.audit.scalars import cosine, recovered
from forefed.audit.start import residuals
from forefed.audit.subject import Silent, subject_of
from forefed.audit.synthetic import joined, near_copy, relabelled, skewed, taken
from forefed.audit.tokens import tokens_of
from forefed.audit.trials import Auxiliary, first_alone
from forefed.config.config import configure
from forefed.config.reveals import reveals
from forefed.core.keys import Key, Secret
from forefed.models.adapters import Lora
from forefed.privacy.noise import gaussian
from forefed.report import read_run, write_report
from forefed.run import run
from forefed.start.sums import STEP, Sums
from tiny import moved, tiny_examples, tiny_task

KEY = Key(3)
DP_CLIENT = ["strategy=fedavg", "modifiers=[{kind='dp_client', noise_multiplier=1.0}]"]
DP_EXAMPLE = [
    "strategy=fedavg",
    "modifiers=[{kind='dp_example', noise_multiplier=1.0}]",
    "client.sampler={kind='poisson', rate=0.5}",
    "client.max_steps=1",
]


# A0


def test_the_bias_of_one_row_tells_its_label_1000_of_1000() -> None:
    logits = 3 * KEY.normal((1000, 7)).double()
    labels = torch.from_numpy(KEY.fold("y").integers(1000, 7))
    bias = (logits.softmax(1) - torch.nn.functional.one_hot(labels, 7)).double()
    assert [a0.label_of(b) for b in bias] == labels.tolist()


def test_the_bias_of_many_rows_tells_how_many_of_each_label() -> None:
    logits = torch.zeros(10, 3, dtype=torch.float64, requires_grad=True)  # p = 1/3 everywhere
    labels = torch.tensor([0] * 6 + [2] * 4)
    (grad,) = torch.autograd.grad(cross_entropy(logits, labels), logits)
    guess = a0.counts_of_bias(grad.sum(0), 10, torch.full((3,), 1 / 3))
    assert guess.tolist() == [6, 0, 4]


def test_counts_are_found_in_a_mixture_without_a_head() -> None:
    mu = KEY.fold("mu").normal((4, 30)).double()
    truth = torch.tensor([3.0, 0.0, 5.0, 1.0], dtype=torch.float64)
    observed = 0.2 * (truth @ mu)  # up to a factor
    assert a0.counts_of_gradient(mu @ observed, mu @ mu.T, 9).tolist() == [3, 0, 5, 1]


def test_counts_are_whole_and_matched_once_each() -> None:
    assert a0.rounded(np.array([1.4, -2.0, 0.6]), 2).tolist() == [1, 0, 1]
    assert a0.even(7, 3).sum() == 7
    assert a0.matched(np.array([2, 0, 2]), np.array([1, 1, 2])) == 0.75


# A1


@pytest.mark.parametrize("k", [1, 8, 32, 64])
def test_the_cosine_of_k_slopes_is_the_root_of_k_over_d(k: int) -> None:
    d, found = 64, []
    for i in range(100):
        g = KEY.fold("g", i).normal((d,)).double()
        v = KEY.fold("v", i).normal((k, d)).double()
        found.append(cosine(recovered(v, v @ g), g) ** 2)
    assert np.mean(found) == pytest.approx(k / d, abs=0.04)


@pytest.mark.parametrize(
    ("noise", "specified", "best"),
    [(0.1, 0.86, 0.95), (0.5, 0.57, 0.79), (1, 0.43, 0.63), (2, 0.29, 0.43)],
)
def test_noise_lowers_the_cosine(noise: float, specified: float, best: float) -> None:
    """At K = d = 64. The specified figures are those of ridge with too small a weight (an element's
    variance taken as |g|^2); with |g|^2 / d the attack is the best linear one, and stronger."""
    d = 64
    found: dict[float, list[float]] = {noise**2: [], d * noise**2: []}
    blind = []
    for i in range(100):
        g = KEY.fold("g", i).normal((d,)).double()
        v = KEY.fold("v", i).normal((d, d)).double()
        s = v @ g + noise * g.norm() * KEY.fold("e", i).normal((d,)).double()
        for weight, cosines in found.items():
            cosines.append(cosine(recovered(v, s, weight), g))
        blind.append(cosine(recovered(v, s), g))
    weak, strong = (np.mean(cosines) for cosines in found.values())
    assert weak == pytest.approx(specified, abs=0.04)
    assert strong == pytest.approx(best, abs=0.03)
    assert strong > weak > np.mean(blind) + 0.2


def test_what_is_not_finite_is_no_measurement() -> None:
    g, v = KEY.normal((5,)).double(), torch.eye(5, dtype=torch.float64)
    s = v @ g
    s[2] = torch.nan
    found = recovered(v, s)
    assert float(found[2]) == pytest.approx(0, abs=1e-12)
    assert torch.allclose(found[[0, 1, 3, 4]], g[[0, 1, 3, 4]])


# A2


def test_embeddings_that_train_tell_the_exact_set_of_tokens() -> None:
    task = tiny_task("bert", Lora())
    weight = task.model.get_base_model().get_input_embeddings().weight
    batch = tiny_examples(3).batch([0, 1, 2])
    weight.requires_grad_(True)
    (grad,) = torch.autograd.grad(task.loss(task.params, batch), weight)
    weight.requires_grad_(False)
    # the padding token's own row has no gradient
    assert tokens_of(grad) | {1} == set(batch.inputs["input_ids"].flatten().tolist()) | {1}
    assert tokens_of(torch.zeros_like(grad)) == set()


# A3


def test_inputs_lie_in_the_row_space_of_their_gradient() -> None:
    x = KEY.fold("x").normal((3, 32)).double()
    dh = KEY.fold("h").normal((3, 8)).double()
    basis = row_space([dh.T @ x])
    assert basis.shape == (3, 32)
    assert torch.allclose(inside(basis, x), torch.ones(3, dtype=torch.float64))
    others = inside(basis, KEY.fold("o").normal((1000, 32)))
    assert float(others.mean()) == pytest.approx(np.sqrt(3 / 32), abs=0.04)
    assert float(others.max()) < 0.8


def test_of_loras_b_the_images_of_the_inputs_lie_there_and_at_b_0_there_is_nothing() -> None:
    x, a = KEY.fold("x").normal((3, 32)).double(), KEY.fold("a").normal((8, 32)).double()
    b, dh = torch.zeros(16, 8, dtype=torch.float64), KEY.fold("h").normal((3, 16)).double()
    assert row_space([(dh @ b).T @ x]).shape[0] == 0
    of_b = row_space([dh.T @ (x @ a.T)])
    assert torch.allclose(inside(of_b, x @ a.T), torch.ones(3, dtype=torch.float64))


def test_two_matrices_of_one_input_tell_twice_as_much() -> None:
    x = KEY.fold("x").normal((6, 32)).double()
    halves = [KEY.fold("h", i).normal((4, 6)).double() @ x for i in range(2)]
    assert float(inside(row_space(halves[:1]), x).min()) < 0.99
    assert float(inside(row_space(halves), x).min()) == pytest.approx(1)


def test_tokens_of_a_text_are_read_off_the_first_block() -> None:
    """DAGER on a tiny BERT: rank 16 of two matrices, a text of 5 tokens in 16 dimensions."""
    task = tiny_task("bert", Lora(r=4))
    params = moved(task.params)  # B is not 0
    (leaves,) = [{n: x.clone().requires_grad_() for n, x in params.items()}]
    one = tiny_examples(1, lengths=(5,), types=False)
    grads = torch.autograd.grad(
        task.loss(leaves, one.batch([0])), list(leaves.values()), allow_unused=True
    )
    by_name = dict(zip(leaves, grads, strict=True))
    layers = TokenLayers.of(task, list(leaves))
    assert len(layers.names) == 2 and all(".layer.0." in n for n in layers.names)
    basis = row_space([by_name[n] for n in layers.names])
    vocabulary = np.arange(3, 50)
    (scores,) = layers.scores([basis], vocabulary, 5)
    right = set(np.flatnonzero(np.isin(vocabulary, one.tokens)).tolist())
    assert ranked_right(scores, right) == 1
    deep = next(n for n in leaves if ".layer.1." in n and "lora_A" in n)
    assert TokenLayers.of(task, [deep]).names == ()
    x = read(task, layers.names[0], torch.tensor([[5, 6]]))
    assert x.shape == (1, 2, 16)


# What is not a step of the ladder


def test_a_row_alone_in_its_class_is_its_sum_and_few_rows_are_in_their_span() -> None:
    x = KEY.fold("f").normal((4, 20))
    _, xy, xx = Sums.of(x, torch.tensor([[1, 0], [1, 0], [0, 1], [1, 0]])).real()
    assert torch.allclose(xy[1], x[2].double(), atol=STEP)
    rounded = (torch.cat([x, KEY.fold("other").normal((3, 20))]).double() / STEP).round() * STEP
    left = residuals(xx, rounded)
    assert float(left[:4].max()) < 1e-6 and float(left[4:].min()) > 0.5


def test_noise_that_the_attacker_cannot_know_is_0_to_it() -> None:
    noise = gaussian(Silent(0).fold("any", 3), (4, 5))
    assert float(noise.abs().max()) < 1e-9 and float(gaussian(Secret(1), (9,)).abs().max()) > 0.5


def test_a_tie_is_as_good_as_its_draw() -> None:
    assert first_alone([2.0, 1.0]) == 1
    assert first_alone([2.0, 2.0, 1.0, 2.0]) == pytest.approx(1 / 3)
    assert first_alone([1.0, 2.0]) == 0


def test_a_guess_is_no_leak() -> None:
    one = Client(rows=1, batch=1, steps=1, round=1)
    low = finding("A0", "labels", one, [0.0, 1.0, 0.0, 0.0], 0.3)
    high = finding("A0", "labels", one, [1.0] * 12, 0.3)
    assert high.leaks and not low.leaks
    assert high.gain == 1 and (high.low, high.high) == (pytest.approx(0.757, abs=1e-3), 1.0)


def test_synthetic_clients_are_unlike_and_copies_are_near() -> None:
    rows = tiny_examples(6)
    both = joined(taken(rows, [2]), taken(rows, [0, 5]))
    assert [len(both), *both.lengths()] == [
        3,
        rows.lengths()[2],
        rows.lengths()[0],
        rows.lengths()[5],
    ]
    assert relabelled(both, [1, 1, 1]).labels.tolist() == [1, 1, 1]
    copy = near_copy(taken(rows, [0]), KEY, np.arange(3, 50))
    assert int((copy.tokens != taken(rows, [0]).tokens).sum()) == 1
    counts = [np.bincount(skewed(40, 3, KEY.fold(i)), minlength=3).max() for i in range(50)]
    assert np.mean(counts) > 20  # of 40; alike they would have 16


# A4


def test_optimisation_ends_at_the_text_whose_gradient_it_is(world: World, tmp_path: Path) -> None:
    """At the text itself the gap is 0; from embeddings near its own its tokens are found."""
    config = world.config(
        tmp_path, "strategy=fedsgd", "adapter.r=4", "rounds=0", "model.pooling=mean"
    )
    subject = subject_of(config, None, False, 1, lambda text: None)
    row = taken(subject.rows, subject.drawn(1, KEY))
    truth, label = row.tokens.tolist(), int(row.labels[0])
    target = subject.mean_gradient(row)
    prior = Pairs.of([truth], 50)
    attack = Inversion(subject, target, label, prior, steps=10)
    x_SD = attack.embeddings_VD[truth]
    assert float(attack.gap(x_SD, create=False)) == pytest.approx(0, abs=1e-5)
    wrong = Inversion(subject, target, (label + 1) % 3, prior)
    assert float(wrong.gap(x_SD, create=False)) > 0.5
    free = [i for i, token in enumerate(truth) if token in subject.vocabulary]
    assert len(free) == len(truth) - 2  # all but the special tokens
    moved_away = x_SD + 0.8 * x_SD.std() * KEY.fold("away").normal(x_SD.shape)
    start, _ = attack.discrete(moved_away, truth, [])
    found, value = attack.discrete(moved_away, truth, free)
    assert start == truth and found == truth and value < 0.1
    random = attack.continuous(truth, free, KEY)
    assert float(attack.gap(random, create=False)) < 1
    (one,) = of_texts(subject, 1, Auxiliary.of(subject), lambda text: None, steps=3, restarts=1)
    assert one.step == "A4" and 0 <= one.value <= 1 and one.client.rows == 1


def test_pairs_of_tokens_are_a_language_model() -> None:
    pairs = Pairs.of([[4, 5, 6, 4, 5, 7]], 50)
    assert pairs.after(4, 2) == [5] and pairs.after(5, 1) == [6] and pairs.after(9, 1) == []
    assert pairs.surprise([4, 5, 6]) < pairs.surprise([6, 5, 4]) < pairs.surprise([9, 10, 11])
    total = sum(np.exp(-pairs.surprise([4, b]) * np.log(50)) for b in range(50))
    assert total == pytest.approx(1)
    assert overlap(Counter([4, 4, 5]), Counter([4, 5, 5, 6])) == 0.5


# The command


def test_audit_measures_a_run_and_keeps_it(
    forefed_command: Command, world: World, tmp_path: Path
) -> None:
    config = world.config(tmp_path, "strategy=fedavg", "rounds=1")
    folder = run(config).folder
    said = forefed_command("audit", folder, "--trials", 1)
    assert said.status == 0, said.err
    shown = plain(said.out)
    kept = json.loads((folder / "audit.json").read_text())
    assert "recomputed to the bit" in shown and "worst cases" in shown
    by_name = {(f["attack"], f["client"]["rows"]): f for f in kept["findings"]}
    for attack in ("labels, from the head's bias", "a guessed text, recomputed to the bit"):
        assert by_name[attack, 1]["value"] == 1, attack
    known = next(f for f in kept["findings"] if f["attack"].endswith("all other rows known"))
    assert known["value"] == 1 and known["client"]["rows"] == 9 and known["client"]["steps"] == 2
    forefed_command("export", folder, tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "recomputed to the bit (100% of 1" in card and "`forefed audit`, 1 messages" in card
    assert {f["client"]["round"] for f in kept["findings"]} == {2}
    assert all(
        f["trials"] == 1 and 0 <= f["low"] <= f["high"] <= 1
        for f in kept["findings"]
        if f["measure"] == "share"
    )
    assert "animal" not in json.dumps(kept)
    page = tmp_path / "page.html"
    write_report([read_run(folder)], page)
    shown = page.read_text()
    assert "Attacks of a curious server" in shown and "recomputed to the bit" in shown


def test_audit_reads_slopes_and_the_sums_of_the_start(world: World, tmp_path: Path) -> None:
    more = ("strategy=spry", "codec=scalars", "directions.k=4", "rounds=0")
    config = world.config(tmp_path, *more, "start=closed_form", "model.pooling=mean")
    found = audit(config, trials=1)
    assert not list(tmp_path.iterdir())  # nothing is written
    one = {f.attack: f for f in found.findings if f.client.rows == 1}
    assert one["a guessed text, recomputed to the bit"].value == 1
    assert "by the loss" in " ".join(one) and len(found.sentences()) == 4
    assert one["labels, from the counts"].value == 1
    assert one["a guessed text alone in its class, by its features"].value == 1
    assert 0 < one["gradient"].value < 0.9  # 4 of more than 4 dimensions
    assert "counts of its classes" in found.line and "pair of words" in found.line
    assert one["tokens, from the counts of words"].value == 1


def test_a_secure_sum_hides_rows_but_not_from_who_knows_all_others(
    world: World, tmp_path: Path
) -> None:
    more = ("strategy=fedavg", "cohort=3", "rounds=0", "channel.kind=secure_sum")
    config = world.config(tmp_path, *more, "channel.min_group=3", "client.epochs=1")
    found = audit(config, trials=1)
    one = {f.attack: f for f in found.findings if f.client.rows == 1}
    assert one["a guessed text, recomputed to the bit"].value == 0
    assert one["a guessed text, all other rows known"].value == 1
    assert found.about["clients_in_a_message"] == 3
    assert "in a sum of 3 clients" in " ".join(found.sentences())


def test_noise_of_the_clients_hides_what_noise_of_the_server_does_not(
    world: World, tmp_path: Path
) -> None:
    def rate(sets: list[str]) -> float:
        found = audit(world.config(tmp_path, *sets, "rounds=0"), trials=1)
        one = {f.attack: f for f in found.findings if f.client.rows == 1}
        return one["a guessed text, recomputed to the bit"].value

    assert rate(DP_CLIENT) == 1 and rate(DP_EXAMPLE) == 0
    quiet = [s.replace("noise_multiplier=1.0", "noise_multiplier=0.0") for s in DP_EXAMPLE]
    assert rate([*quiet, "client.sampler.rate=1.0"]) == 1


def test_own_rows_are_read_when_asked_for(world: World, tmp_path: Path) -> None:
    config = world.config(
        tmp_path,
        "strategy=fedsgd",
        "rounds=0",
        "data.task=pairs",
        f"data.source.path='{world.pairs}'",
    )
    found = audit(config, trials=1, own_rows=True)
    assert found.about["rows"] == "the configuration's own rows"
    gradient = next(f for f in found.findings if f.attack == "gradient" and f.client.rows == 1)
    assert gradient.value == pytest.approx(1, abs=1e-4)  # one plain step is the gradient


@pytest.mark.parametrize("task", ["causal_lm", "qa"])
def test_tasks_without_classes_are_audited_by_membership(
    world: World, tmp_path: Path, task: str
) -> None:
    sets = world.lm if task == "causal_lm" else world.qa
    found = audit(world.config(tmp_path, *sets, "strategy=fedavg", "rounds=0"), trials=1)
    assert not any(f.step == "A0" for f in found.findings)
    one = {f.attack: f for f in found.findings if f.client.rows == 1}
    assert one["a guessed text, recomputed to the bit"].value == 1


def test_mistakes_are_told(forefed_command: Command, world: World, tmp_path: Path) -> None:
    sets = options(world.sets(tmp_path))
    mistake(forefed_command("audit", *sets, "--json", tmp_path), "--json")
    classes = 'data.task.labels=["animal", "metal", "tree"]'
    sites = options(["partition={kind='sites', names=['a', 'b', 'c']}", classes, "deadline_s=600"])
    said = forefed_command("audit", *sets, *sites, "--own-rows")
    mistake(said, "--own-rows", "at the sites")


# The line


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["strategy=fedavg", "start=none"], ["what each client's training changed", "the label"]),
        (["strategy=decomfl"], ["the slopes of each client"]),
        (["client.batch_size=1", "client.max_steps=1"], ["every message is one step of batch 1"]),
        (["data.task=causal_lm", "start=none"], ["confirms a guess at its text; no noise"]),
        (
            ["channel=secure_sum", "codec=dense", "strategy=fedavg"],
            ["sums over groups", "of 5 clients"],
        ),
        (DP_CLIENT, ["no noise and no secure sum", "'dp_client' is the server's own"]),
        (DP_EXAMPLE, ["in between: noise of 'dp_example' in every client's own steps"]),
        (["start=closed_form"], ["the features of a row that is alone"]),
        (["start=closed_form", "start.min_count=3", "start.words=0"], ["classes; no noise"]),
        (["data.task=regression"], ["sends the sums of its targets", "its only one"]),
    ],
)
def test_the_line_follows_from_the_settings(sets: list[str], words: list[str]) -> None:
    line = reveals(configure(sets=sets))
    assert "\n" not in line and all(word in line for word in words), line


def test_check_prints_the_line(forefed_command: Command, world: World, tmp_path: Path) -> None:
    said = forefed_command("check", *options(world.sets(tmp_path)))
    assert said.status == 0 and "what one message reveals:" in plain(said.out)
