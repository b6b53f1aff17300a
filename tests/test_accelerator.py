"""The engines on CUDA and MPS give the CPU's numbers; skipped where there is no such device."""

import pytest
import torch

from forefed.core import trees
from forefed.core.types import Order
from forefed.directions import Fresh
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.forward import Forward
from forefed.gradients.memory import measure_peak
from forefed.models.adapters import Lora
from forefed.models.task import task_from_model
from tiny import Key, moved, tiny_examples, tiny_model

THERE = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


@pytest.fixture(params=THERE)
def device(request):
    if not THERE[request.param]:
        pytest.skip(f"this machine or this build of torch has no {request.param}")
    return torch.device(request.param)


def task_on(device, family, causal):
    model = tiny_model(family, causal, dtype=torch.float32).to(device)
    labels = None if causal else ("a", "b", "c")
    return task_from_model(model, Lora(r=2), Key(0), label_names=labels, base_name="tiny")


@pytest.mark.parametrize(("family", "causal"), [("bert", False), ("llama", True), ("gpt2", True)])
@pytest.mark.parametrize(
    "engine",
    [Backprop(), Checkpointed(micro_batch=2), Forward(tangents=2)],
    ids=lambda e: e.kind,
)
def test_the_device_changes_rounding_only(device, family, causal, engine):
    found = []
    for where in (torch.device("cpu"), device):
        task = task_on(where, family, causal)
        params = moved(task.params)
        batch = tiny_examples(causal=causal, types=family == "bert").batch(range(7))
        loss = engine.loss_of(task)
        directions = Fresh(k=3).of(Order(1, 1, 1, tuple(params), params))
        found.append(engine(loss, params, batch, directions, task.head))
    expected, got = found
    assert got.loss == pytest.approx(expected.loss, rel=1e-4)
    if expected.slopes_K is not None:
        torch.testing.assert_close(got.slopes_K, expected.slopes_K, rtol=1e-3, atol=1e-4)
    here = {n: g.cpu() for n, g in got.grad.items()}
    if here:
        assert trees.norm(trees.subtract(here, expected.grad)) < 1e-3 * trees.norm(expected.grad)


def test_memory_is_the_devices(device):
    if device.type != "cuda":
        pytest.skip("MPS has no counter of the peak")
    _, peak = measure_peak(lambda: torch.zeros(1000, 1000, device=device), device)
    assert 4_000_000 <= peak < 4_100_000
