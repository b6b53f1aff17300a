"""Clients whose model is only a function, called or behind an address."""

from __future__ import annotations

import json
import runpy
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import forefed
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.types import Batch, Order
from forefed.directions import Fresh
from forefed.gradients.finite_difference import FiniteDifference
from forefed.run.simulate import OwnLoss
from test_simulate import PLAIN, START, clients, squared
from toy import ToyLoss, toy_clients, toy_params

ROOT = Path(__file__).parents[1]
ZEROTH = {
    "strategy": "fedmezo",
    "rounds": 3,
    "client": {"batch_size": 4, "optimiser": {"lr": 0.02}},
}


def as_function(params: Any, batch: Any) -> Any:
    """``squared``, the same operations, of arrays."""
    tensors = {n: torch.tensor(x) for n, x in params.items()}
    return squared(tensors, {n: torch.tensor(x) for n, x in batch.items()}).numpy()


def stacked(params: Any, batch: Any) -> Any:
    """Losses [P, B] of points w [P, 3] and b [P]."""
    return (params["w"] @ batch["x"].T + params["b"][:, None] - batch["y"]) ** 2


@pytest.mark.parametrize("codec", ["dense", "scalars", "one_byte"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_black_box_gives_the_bits_of_the_loss_that_it_hides(codec: str, shared: bool) -> None:
    sets = {**ZEROTH, "codec": codec, "directions": {"k": 3, "shared": shared}}
    seen = forefed.simulate(squared, START, clients(5, 8), **sets)
    hidden = forefed.simulate(forefed.BlackBox(as_function), START, clients(5, 8), **sets)
    assert trees.digest(hidden.params) == trees.digest(seen.params)
    assert trees.digest(hidden.params) != trees.digest(START)
    assert [r.bytes_up for r in hidden.reports] == [r.bytes_up for r in seen.reports]


def test_it_goes_on_and_follows_records_as_others_do() -> None:
    box = forefed.BlackBox(as_function)
    sets = {"strategy": "decomfl", "engine": "finite_difference", "seed": 3, "cohort": 2}
    whole = forefed.simulate(box, START, clients(5, 8, 3), rounds=4, **sets)
    half = forefed.simulate(box, START, clients(5, 8, 3), rounds=2, **sets)
    # a replica follows from its own first round: a new one is sent the parameters
    rest = forefed.simulate(box, START, clients(5, 8, 3), rounds=2, state=half.state, **sets)
    assert trees.digest(rest.params) == trees.digest(whole.params)


@pytest.mark.parametrize("points", [1, 5, 64])
def test_many_points_in_one_call_are_the_slopes_of_one_after_the_other(points: int) -> None:
    asked: list[int] = []

    def counted(params: Any, batch: Any) -> Any:
        asked.append(len(params["w"]))
        return stacked(params, batch)

    rows = clients(6)[0]
    batch = Batch(rows, labels=torch.arange(6))
    directions = Fresh(k=7).of(Order(1, 1, 0, tuple(START), START))
    engine = FiniteDifference(micro_batch=None)
    box = forefed.BlackBox(counted, batched=True, points=points)
    found = engine(box, START, batch, directions)
    alone = engine(OwnLoss(squared), START, batch, directions)
    torch.testing.assert_close(found.slopes_K, alone.slopes_K, rtol=1e-4, atol=1e-4)
    assert found.loss == pytest.approx(alone.loss, rel=1e-5)
    assert sum(asked) == 14 and max(asked) == min(points, 14)


def test_its_slopes_are_the_gradient_s_to_the_error_of_differences() -> None:
    loss, params = ToyLoss(), toy_params()
    batch = toy_clients()[1].examples.batch(range(7, 20))

    def hidden(at: Any, seen: Any) -> float:
        inputs = {n: torch.tensor(x) for n, x in seen.items()}
        inside = Batch(inputs, batch.labels)
        return float(loss({n: torch.tensor(x) for n, x in at.items()}, inside))

    directions = Fresh(k=4).of(Order(1, 1, 0, tuple(params), params))
    found = FiniteDifference(eps=1e-4)(forefed.BlackBox(hidden), params, batch, directions)
    leaves = {n: x.clone().requires_grad_() for n, x in params.items()}
    grads = torch.autograd.grad(loss(leaves, batch), list(leaves.values()))
    exact = directions.project(dict(zip(leaves, grads, strict=True)))
    torch.testing.assert_close(found.slopes_K, exact, rtol=1e-6, atol=1e-6)


def test_probabilities_become_losses_of_labels_that_the_function_never_sees() -> None:
    columns: list[set[str]] = []

    def chances(params: Any, batch: Any) -> Any:
        columns.append(set(batch))
        known = {"a": [0.5, 0.25, 0.25], "b": [0.1, 0.0, 0.9], "c": [0.2, 0.2, 0.6]}
        return [known[text] for text in batch["text"]]

    rows = {"text": ["a", "b", "c"], "labels": torch.tensor([0, 1, 2])}
    box = forefed.BlackBox(chances, "probabilities")
    result = forefed.simulate(box, START, [rows], rounds=1, strategy="fedmezo")
    expected = -np.log([0.5, 1e-12, 0.6]).mean()
    assert result.losses == [pytest.approx(expected)]
    assert columns and all(c == {"text"} for c in columns)


def test_whole_batches_are_asked_and_units_learn_in_turn() -> None:
    sizes: list[int] = []

    def counted(params: Any, batch: Any) -> Any:
        sizes.append(len(batch["y"]))
        return stacked(params, batch)

    wide = [{**c, "x": c["x"], "unused": torch.zeros(8, 1000)} for c in clients(8)]
    forefed.simulate(
        forefed.BlackBox(counted, batched=True),
        *(START, wide),
        **{**ZEROTH, "client": PLAIN, "assign": "everything"},
    )
    assert set(sizes) == {8}  # "auto" would cut a batch of a thousand columns


def test_what_it_is_shown_cannot_be_written_into() -> None:
    def rude(params: Any, batch: Any) -> Any:
        params["w"] += 1

    with pytest.raises(ValueError, match="read-only"):
        forefed.simulate(forefed.BlackBox(rude), START, clients(4), strategy="fedmezo")


def test_a_point_that_is_not_finite_is_asked_of_nobody() -> None:
    asked: list[int] = []

    def counted(params: Any, batch: Any) -> Any:
        asked.append(len(params["w"]))
        return stacked(params, batch)

    box = forefed.BlackBox(counted, batched=True)
    points = {"w": torch.zeros(3, 3), "b": torch.tensor([0.0, torch.nan, 1.0])}
    batch = Batch(clients(4)[0], labels=torch.arange(4))
    found = box.at_points(points, batch)
    assert found.isnan().tolist() == [False, True, False] and asked == [2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strategy": "fedavg"}, "engine.kind = 'backprop' differentiates"),
        ({"strategy": "spry"}, "engine.kind = 'forward' differentiates"),
        ({"engine": {"kind": "finite_difference", "emulate": True}}, "engine.emulate"),
        ({"engine": {"head": "exact"}, "head": ["b"]}, "head: it gets an exact gradient"),
        ({"loss": forefed.BlackBox(lambda p, b: None)}, "returned NoneType"),
        ({"loss": forefed.BlackBox(lambda p, b: "no")}, "returned str"),
        ({"loss": forefed.BlackBox(lambda p, b: [1.0, 2.0])}, r"shape \[2\], not \[4\]"),
        ({"loss": forefed.BlackBox(lambda p, b: 0, batched=True)}, r"not \[2, 4\].*or \[2\]"),
        ({"loss": forefed.BlackBox(lambda p, b: 0, "probabilities")}, "a column 'labels'"),
        (
            {"loss": forefed.BlackBox(lambda p, b: [[1.0]] * 4, "probabilities", "y")},
            "number labels from 0",
        ),
        ({"clients": [{"x": ["a", 1]}]}, "client 0: column 'x' is neither"),
    ],
)
def test_mistakes_are_one_sentence(change: dict[str, Any], words: str) -> None:
    rows = [{**clients(4)[0], "y": torch.tensor([0, 1, 2, 3])}]
    called = {"strategy": "fedmezo", "loss": forefed.BlackBox(as_function), "clients": rows}
    with pytest.raises(UserError, match=words):
        forefed.simulate(params=START, **{**called, **change})


def test_what_returns_is_said_when_it_is_made() -> None:
    with pytest.raises(UserError, match="give 'losses' or 'probabilities'"):
        forefed.BlackBox(as_function, "logits")  # type: ignore[arg-type]
    for url in ("ftp://a/", "127.0.0.1:80", "http://", "http://a:b/"):
        with pytest.raises(UserError, match="this is no address"):
            forefed.BlackBox.at(url)


class Service(BaseHTTPRequestHandler):
    """Answers as its path says."""

    seen: ClassVar[list[dict[str, Any]]] = []
    gate = threading.Event()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({**asked, "token": self.headers["Token"]})
        params = {n: np.array(x, dtype=np.float32) for n, x in asked["parameters"].items()}
        batch = {n: np.array(x, dtype=np.float32) for n, x in asked["batch"].items()}
        said = json.dumps({"losses": stacked(params, batch).tolist()}).encode()
        status = 200
        if self.path == "/refuses":
            status, said = 503, b"out of order"
        elif self.path == "/mumbles":
            said = b"<html>"
        elif self.path == "/other":
            said = b'{"loss": 1}'
        elif self.path == "/null":
            said = json.dumps({"losses": [None] * len(params["w"])}).encode()
        elif self.path == "/late":
            self.gate.wait(10)
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        if self.path == "/late":
            return
        self.wfile.write(said)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Service.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_over_http_it_gives_the_bits_of_the_function_behind_it(address: str) -> None:
    here = forefed.simulate(
        forefed.BlackBox(stacked, batched=True), START, clients(5, 8), codec="one_byte", **ZEROTH
    )
    box = forefed.BlackBox.at(f"{address}/", headers={"Token": "abc"})
    there = forefed.simulate(box, START, clients(5, 8), codec="one_byte", **ZEROTH)
    assert trees.digest(there.params) == trees.digest(here.params)
    asked = Service.seen[-1]
    assert asked["token"] == "abc" and "abc" not in repr(box)
    assert len(asked["parameters"]["w"]) == 2  # both sides of one direction, in one question


def test_null_is_no_number_and_its_step_rests(address: str) -> None:
    box = forefed.BlackBox.at(f"{address}/null")
    result = forefed.simulate(box, START, clients(4), **ZEROTH)
    assert trees.digest(result.params) == trees.digest(START)
    assert np.isnan(result.losses).all()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/refuses", "refused with status 503: 'out of order'"),
        ("/mumbles", "answered no JSON, but '<html>'"),
        ("/other", "has no 'losses', but loss"),
        ("/late", "no answer within 0.2 s; raise timeout_s"),
    ],
)
def test_an_address_that_does_not_serve_is_one_sentence(
    address: str, path: str, words: str
) -> None:
    box = forefed.BlackBox.at(address + path, timeout_s=0.2)
    with pytest.raises(UserError, match=words) as told:
        forefed.simulate(box, START, clients(4), **ZEROTH)
    assert str(told.value).startswith(f"black box {address}{path}: ")
    if path == "/late":
        Service.gate.set()


def test_nobody_there() -> None:
    with HTTPServer(("127.0.0.1", 0), Service) as taken:
        port = taken.server_port
    box = forefed.BlackBox.at(f"http://127.0.0.1:{port}/", timeout_s=5)
    with pytest.raises(UserError, match=r"nobody answers there .*; start it first"):
        forefed.simulate(box, START, clients(4), **ZEROTH)


def test_the_example_learns() -> None:
    result = runpy.run_path(str(ROOT / "examples" / "black_box.py"))["main"](rounds=8)
    assert result.losses[-1] < 0.8 * result.losses[0]
