"""The client without torch: its arrays against the tensors of every other client."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deployment import FakePost, deployed, make_sites, write_rows
from federation import Interrupted, StopAfter, World, lines
from forefed.config.compat import check
from forefed.core import trees
from forefed.core.errors import ProtocolError, UserError
from forefed.core.types import ClientContext, Order, Update
from forefed.deploy.answers import Answers
from forefed.deploy.connect import connect_by
from forefed.deploy.envelope import Envelope
from forefed.deploy.slim_folder import write_site
from forefed.deploy.slim_site import site_of
from forefed.deploy.worker_client import ask
from forefed.directions import Fresh
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.without_torch import why_not
from forefed.local import Trainer
from forefed.local.training import LocalTraining
from forefed.optimisers import Sgd
from forefed.run import run
from forefed.run.build import Federation, build
from forefed.run.checkpoint import load_checkpoint
from forefed.run.slim import Processes, slim_clients
from forefed.slim import codecs, orders, steps
from forefed.slim.__main__ import serve
from forefed.slim.client import Client
from forefed.slim.settings import GRAPH, ROWS, SETTINGS, Settings, read_settings
from forefed.wire import CODECS
from forefed.wire.orders import encode_broadcast, encode_order
from toy import toy_clients, toy_params, toy_task

SETTINGS_OF_TOY = Settings(
    codec="scalars",
    k=3,
    distribution="gauss16",
    shared=False,
    clamp=2.0,
    eps=1e-2,
    lr=0.1,
    head_lr=0.3,
    head=("head.bias", "head.weight"),
    batch_size=4,
    epochs=2,
    max_steps=None,
    group_by_length=True,
    micro_batch=-1,
    max_length=12,
    pad_id=0,
    empty_id=0,
)
PARAMS = toy_params(torch.float32)
ORDER = Order(2**63 + 5, 3, 1, tuple(PARAMS), PARAMS)


def there(order: Order = ORDER) -> orders.Order:
    """The order as it arrives."""
    return orders.read_order(encode_order(order), orders.read_state(encode_broadcast(order)))


@pytest.mark.parametrize("codec", ["scalars", "one_byte"])
@pytest.mark.parametrize("shared", [False, True])
def test_of_equal_losses_it_makes_the_torch_client_s_bytes(codec: str, shared: bool) -> None:
    """Two epochs of ragged batches, head and body perturbed, outlying slopes clamped."""
    data, task = toy_clients()[1], toy_task(torch.float32)
    training = LocalTraining(batch_size=4, epochs=2, optimiser=Sgd(lr=0.1, head_lr=0.3))
    trainer = Trainer(
        training,
        FiniteDifference(head="perturbed", micro_batch=None),
        CODECS[codec](),
        task,
        directions=Fresh(k=3, distribution="gauss16", shared=shared, clamp=2.0),
    )
    update, _ = trainer(ORDER, data, {})
    expected = trainer.codec.encode(update, ClientContext(order=ORDER))

    def losses(params: orders.Arrays, rows: steps.Indices) -> float:
        tensors = {n: torch.from_numpy(np.array(x)) for n, x in params.items()}
        return float(task.loss(tensors, data.examples.batch(data.train[rows])))

    settings = replace(SETTINGS_OF_TOY, codec=codec, shared=shared)
    answer = steps.train(settings, there(), data.examples.lengths()[data.train], losses)
    sent = codecs.encode(codec, answer.slopes, there(), answer.n_examples, answer.metrics)
    assert sent == expected
    assert answer.metrics["clamped"] > 0 and len(answer.slopes) == 8


def test_what_is_not_finite_rests_as_it_does_there() -> None:
    data = toy_clients()[1]

    def losses(params: orders.Arrays, rows: steps.Indices) -> float:
        return math.nan

    lengths = data.examples.lengths()[data.train]
    answer = steps.train(replace(SETTINGS_OF_TOY, codec="one_byte"), there(), lengths, losses)
    assert answer.metrics["skipped"] == 8 and math.isnan(answer.metrics["loss"])
    sent = codecs.encode("one_byte", answer.slopes, there(), 13, answer.metrics)
    assert CODECS["one_byte"]().decode(sent, ORDER).slopes["body"].isnan().all()


def test_slopes_round_as_the_codec_rounds() -> None:
    values = [0.0, -0.0, 1.0, -0.37, 3e-4, -1e-5, 5e3, -5e3, math.inf, -math.inf, math.nan]
    slopes = np.array(values * 20, dtype=np.float32)
    ctx = ClientContext(order=ORDER)
    for step in range(3):
        want = CODECS["one_byte"]().lossy({"body": torch.tensor(slopes)}, ctx, step)["body"]
        found = codecs.arriving("one_byte", slopes, there(), step)
        np.testing.assert_array_equal(found, want.numpy())


def test_a_client_of_no_rows_answers_with_no_step() -> None:
    empty = np.zeros(0, dtype=np.int64)
    answer = steps.train(SETTINGS_OF_TOY, there(), empty, lambda p, r: 0.0)
    sent = codecs.encode("scalars", answer.slopes, there(), answer.n_examples, answer.metrics)
    update = CODECS["scalars"]().decode(sent, ORDER)
    assert update.n_examples == 0 and update.slopes["body"].shape == (0, 0)


def test_batches_are_those_of_the_sampler() -> None:
    data = toy_clients()[1]
    for settings in (
        LocalTraining(batch_size=5, epochs=3, max_steps=7),
        LocalTraining(batch_size="all", group_by_length=False),
    ):
        ours = replace(
            SETTINGS_OF_TOY,
            batch_size=0 if settings.batch_size == "all" else settings.batch_size,
            epochs=settings.epochs,
            max_steps=settings.max_steps,
            group_by_length=settings.group_by_length,
        )
        want = settings.sampler.batches(settings, data, ClientContext(order=ORDER), lambda i: None)
        found = steps.batches(ours, data.examples.lengths()[data.train], there().key)
        assert [data.train[rows].tolist() for rows in found] == [rows.tolist() for rows in want]


def test_orders_that_it_cannot_follow_are_refused() -> None:
    told = replace(ORDER, broadcast={"curvature/x": torch.ones(2)})
    with pytest.raises(ProtocolError, match="float32 parameters alone"):
        orders.read_state(encode_broadcast(told))
    with pytest.raises(ProtocolError, match="no records"):
        there_params = orders.read_state(encode_broadcast(ORDER))
        orders.read_order(encode_order(replace(ORDER, digest="ab")), there_params)


def test_it_imports_no_torch() -> None:
    code = "import sys, forefed.slim.__main__, forefed.slim.client; print(sorted(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    for heavy in ("torch", "pydantic", "transformers", "peft", "scipy"):
        assert f"'{heavy}'" not in found


def test_a_folder_that_is_not_whole_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read .*write the client's folder again"):
        read_settings(tmp_path)
    SETTINGS_OF_TOY.write(tmp_path)
    assert read_settings(tmp_path) == SETTINGS_OF_TOY
    told = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps({**told, "k": "many"}))
    with pytest.raises(UserError, match=r"\(k\)"):
        read_settings(tmp_path)


SETS = (
    "strategy=fedmezo",
    "codec=scalars",
    "directions.k=2",
    "directions.distribution=rademacher",
    "client.optimiser.lr=0.05",
    "adapter.layers=[0]",
)


@pytest.mark.parametrize(
    ("sets", "word"),
    [
        (["engine.emulate=true"], "engine: it has losses alone"),
        (["engine.head=exact"], "engine.head"),
        (["directions=pool"], "directions.kind"),
        (["codec=feedsign"], "codec.kind"),
        (["client.optimiser=adamw"], "client.optimiser"),
        (["client.optimiser.momentum=0.9"], "client.optimiser"),
        (["download=scalars"], "download, channel"),
        (["adapter.dropout=0.1"], "sharing, adapter.dropout"),
        (["model.dtype=bfloat16"], "model.dtype"),
        (["start=closed_form"], "start.words"),
    ],
)
def test_settings_that_it_cannot_do_say_so(
    world: World, tmp_path: Path, sets: list[str], word: str
) -> None:
    assert not why_not(world.config(tmp_path, *SETS))
    (why,) = why_not(world.config(tmp_path, *SETS, *sets))
    assert why.startswith(word)
    with pytest.raises(UserError, match=f"engine.runtime = 'onnx': {word}"):
        check(world.config(tmp_path, *SETS, *sets, "engine.runtime=onnx"))


@pytest.fixture(scope="module")
def federation(world: World, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return build(world.config(tmp_path_factory.mktemp("slim"), *SETS))


@pytest.fixture(scope="module")
def slim(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with slim_clients(federation, tmp_path_factory.mktemp("clients")) as smaller:
        yield smaller


def test_a_round_of_processes_is_the_round_of_torch(
    federation: Federation, slim: Federation
) -> None:
    """Slopes to 1e-3 of their size; what follows from them at the server, too."""
    state, _ = federation.star.round(federation.start())
    other, report = slim.star.round(slim.start())
    assert len(report.updates) == 3 and not report.lost
    expected, _ = federation.star.round(federation.start())
    assert trees.digest(expected.params) == trees.digest(state.params)
    moved = trees.norm(trees.subtract(state.params, federation.start().params))
    apart = trees.norm(trees.subtract(state.params, other.params))
    assert 0 < apart < 1e-3 * moved


def test_a_whole_run_goes_on_with_them_as_if_never_stopped(
    world: World, slim: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = slim.star.transport.client
    written = processes.folders[0]

    def copied(task: object, path: Path) -> None:
        for name in (GRAPH, GRAPH + ".data"):
            shutil.copyfile(written / name, path.parent / name)

    monkeypatch.setattr("forefed.run.slim.write_graph", copied)
    sets = [*SETS, "engine.runtime=onnx", "cohort=1"]
    whole = run(world.config(tmp_path / "whole", *sets))
    halved = world.config(tmp_path / "halved", *sets)
    with pytest.raises(Interrupted):
        run(halved, watcher=StopAfter(1))
    rest = run(halved, resume=True)
    saved = [load_checkpoint(x.folder, halved, torch.device("cpu")) for x in (whole, rest)]
    first, second = (trees.digest(x.state.params) for x in saved if x is not None)
    assert first == second and whole.summary["status"] == "finished"


def test_its_rows_are_the_tokens_of_everybody_s(federation: Federation, slim: Federation) -> None:
    processes = slim.star.transport.client
    assert isinstance(processes, Processes)
    for number, folder in enumerate(processes.folders):
        client, data = Client.of(folder), federation.data.population.client(number)
        found = client.rows.batch(np.arange(len(data.train)))
        want = data.examples.batch(data.train)
        np.testing.assert_array_equal(found["input_ids"], want.inputs["input_ids"])
        np.testing.assert_array_equal(found["attention_mask"], want.inputs["attention_mask"])
        np.testing.assert_array_equal(client.rows.labels, want.labels)


def test_it_answers_on_its_streams_or_ends_with_a_sentence(
    federation: Federation, slim: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    processes = slim.star.transport.client
    client = Client.of(processes.folders[0])
    params = federation.start().params
    order = Order(1, 1, 0, tuple(params), params)
    said = io.BytesIO()
    serve(client, io.BytesIO(encode_broadcast(order) + encode_order(order)), said)
    update = federation.config.codec.decode(said.getvalue(), order)
    assert isinstance(update, Update) and update.slopes["body"].shape[1] == 2
    with pytest.raises(ProtocolError, match="cut"):
        serve(client, io.BytesIO(encode_broadcast(order)[:-1]), said)
    fewer = dict(list(params.items())[1:])
    with pytest.raises(ProtocolError, match="not those of this graph"):
        serve(
            client,
            io.BytesIO(
                encode_broadcast(replace(order, params=fewer))
                + encode_order(replace(order, params=fewer, assigned=()))
            ),
            said,
        )
    rows = processes.folders[1] / ROWS
    text = rows.read_text()
    try:
        rows.write_text(text + '{"text": "a"}\n')
        alone = Processes(processes.folders, federation.config.codec)
        with pytest.raises(
            UserError, match=r"client 1 without torch has ended: error: .*:\d+: a row"
        ):
            alone.ask(replace(order, client=1))
    finally:
        alone.close()
        rows.write_text(text)


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "pydantic", "transformers", "peft"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
from forefed.deploy.slim_site import main
main()
"""
ALL_ROWS = "data.client_test_fraction=0"
SITES = (*SETS, "codec=one_byte", "start=none", "guard=none", "rounds=2", ALL_ROWS)


@pytest.fixture
def graph_of(
    world: World, slim: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder of the site "middle", written from the run's settings."""
    written = slim.star.transport.client.folders[0]

    def copied(task: object, path: Path) -> None:
        for name in (GRAPH, GRAPH + ".data"):
            shutil.copyfile(written / name, path.parent / name)

    monkeypatch.setattr("forefed.deploy.slim_folder.write_graph", copied)
    config = deployed(world, tmp_path, *SITES)
    folder = tmp_path / "site" / "graph"
    write_site(config, folder, write_rows(tmp_path / "rows")["middle"])
    settings = ('name = "middle"', 'server = "127.0.0.1:1"', 'graph = "graph"')
    (tmp_path / "site" / "site.toml").write_text("\n".join(settings))
    return folder


def test_a_site_without_torch_takes_part_beside_others(
    world: World, graph_of: Path, tmp_path: Path
) -> None:
    """Its worker is a process in which torch cannot be imported; the others have torch."""
    root, sites = graph_of.parent, make_sites(world, tmp_path)
    expected = run(deployed(world, tmp_path / "a", *SITES), connect=connect_by(FakePost(sites)))
    with subprocess.Popen([sys.executable, "-c", BLOCKED, str(root)]) as process:
        try:
            while not (root / "worker.sock").exists():
                assert process.poll() is None, "it has ended"
                time.sleep(0.02)

            def asked(envelope: Envelope) -> Envelope:
                return ask(root / "worker.sock", envelope)

            said: list[str] = []
            post = FakePost({**make_sites(world, tmp_path / "other"), "middle": asked})
            found = run(
                deployed(world, tmp_path / "b", *SITES), connect=connect_by(post, said.append)
            )
        finally:
            process.terminate()
    assert "middle takes part" in said
    ups = [x.summary["totals"]["bytes_up"] for x in (found, expected)]
    assert ups[0] < ups[1], "the same but for the peak of its memory, which it does not say"
    losses = [[r["loss"] for r in lines(x.folder, "rounds.jsonl")] for x in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(Answers(root / "done").rounds(next((root / "done").iterdir()).name)) == 2


def test_a_site_without_torch_does_what_its_graph_was_written_for(
    world: World, graph_of: Path, tmp_path: Path
) -> None:
    told = tomllib.loads((graph_of.parent / "site.toml").read_text())
    site = site_of(graph_of.parent, told)
    with pytest.raises(UserError, match="no policy but the one run"):
        site_of(graph_of.parent, {**told, "policy": {"max_rounds": 3}})
    post = FakePost(make_sites(world, tmp_path))
    federation = build(deployed(world, tmp_path, *SITES), connect=connect_by(post))
    order = federation.star.plan(federation.start())[0]
    text = next(e for _, e in post.asked).text
    blobs = {"state": encode_broadcast(order), "order": encode_order(order)}
    asked = Envelope("train", "run", 1, order.client, text, blobs)
    first = site(asked)
    assert first.kind == "trained" and site(asked) == first
    site.__dict__["client"] = None  # the answer is kept: nothing is computed a second time
    assert site(asked) == first
    other = replace(asked, text=text.replace('"epochs":1', '"epochs":2'))
    for refused, why in ((other, "other settings"), (replace(asked, kind="ask"), "no questions")):
        answer = site(refused)
        assert answer.kind == "refused" and why in answer.text and not answer.blobs
    for wrong in (replace(asked, round=2), replace(asked, run="../x"), replace(asked, blobs={})):
        assert site(wrong).kind == "failed" and site(wrong).text.startswith("ProtocolError;")
    with pytest.raises(UserError, match="start, guard"):
        write_site(deployed(world, tmp_path, *SITES, "start=closed_form"), tmp_path / "none")
