"""Units, targets and layers, against what the families are known to have."""

from __future__ import annotations

import pytest
import torch

from forefed.core.errors import UserError
from forefed.models.adapters import ADAPTERS, Adapter, HeadOnly, Lora, TinyLora
from tiny import FAMILIES, KINDS, moved, tiny_examples, tiny_task

ALL = [Lora(), Lora(targets="all-linear"), TinyLora(u=3)]


@pytest.mark.parametrize(("family", "causal"), KINDS)
@pytest.mark.parametrize("adapter", ALL, ids=["lora", "all-linear", "tinylora"])
def test_units_cover_every_trainable_tensor_once(
    family: str, causal: bool, adapter: Adapter
) -> None:
    task = tiny_task(family, adapter, causal)
    names = [n for unit in task.units for n in unit.params]
    assert names == list(task.params)
    assert len(set(names)) == len(names)
    assert sum(u.size for u in task.units) == sum(x.numel() for x in task.params.values())
    depths = [u.depth for u in task.units]
    assert depths == sorted(depths) and set(depths) >= {0, 1}
    assert [u.is_head for u in task.units] == [False] * (len(task.units) - 1) + [not causal]
    assert len({u.name for u in task.units}) == len(task.units)
    head = [n for u in task.units if u.is_head for n in u.params]
    assert task.head == set(head)
    per_unit = {len(u.params) for u in task.units if not u.is_head}
    assert per_unit == ({1} if isinstance(adapter, TinyLora) else {2})


QV_OUTPUTS = {
    "bert": ["attention.self.query", "attention.self.value", "attention.output.dense",
             "output.dense"],
    "distilbert": ["attention.q_lin", "attention.v_lin", "attention.out_lin", "ffn.lin2"],
    "llama": ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_proj"],
    "opt": ["self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc2"],
}  # fmt: skip
QV_OUTPUTS["roberta"] = QV_OUTPUTS["bert"]
STACK = {"bert": "layer", "roberta": "layer", "distilbert": "layer", "gpt2": "h", "llama": "layers"}
LINEARS = {"bert": 6, "roberta": 6, "distilbert": 6, "llama": 7, "gpt2": 4, "opt": 6}


@pytest.mark.parametrize("family", FAMILIES)
def test_symbols_mean_the_familys_modules(family: str) -> None:
    stack = STACK.get(family, "layers")
    task = tiny_task(family, TinyLora(u=3))
    expected = [f"{stack}.{i}.{m}" for i in range(2) for m in QV_OUTPUTS[family]]
    assert [u.name for u in task.units[:-1]] == expected
    qv = [m for m in QV_OUTPUTS[family][:2] if family != "gpt2" or m == "attn.c_attn"]
    task = tiny_task(family, Lora())
    assert [u.name for u in task.units[:-1]] == [f"{stack}.{i}.{m}" for i in range(2) for m in qv]
    task = tiny_task(family, Lora(targets="all-linear"))
    assert len([u for u in task.units if u.depth in (0, 1)]) == 2 * LINEARS[family]


def test_a_tinylora_vector_belongs_to_the_module_that_uses_it() -> None:
    """PEFT registers all vectors below the first module; depth must not follow that name.

    Moving the vector of block 1 leaves the state between blocks 0 and 1 alone.
    """
    task = tiny_task("bert", TinyLora(u=3))
    assert {n.split(".tinylora_v")[0] for u in task.units[:-1] for n in u.params} == {
        "base_model.model.bert.encoder.layer.0.attention.self.query"
    }
    block = task.model.get_base_model().bert.encoder.layer[1]
    seen: list[torch.Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    batch = tiny_examples(3).batch(range(3))
    task.loss(task.params, batch)
    for unit in task.units[:-1]:
        (name,) = unit.params
        task.loss({**task.params, name: task.params[name] + 1}, batch)
        assert torch.equal(seen[-1], seen[0]) == (unit.depth == 1), unit
    handle.remove()


def test_layers() -> None:
    def depths(layers: object) -> list[int]:
        task = tiny_task("bert", Lora(layers=layers), n_layers=3)  # type: ignore[arg-type]
        return sorted({u.depth for u in task.units if not u.is_head})

    assert depths("all") == [0, 1, 2]
    assert depths("last:1") == [2]
    assert depths("first:2") == [0, 1]
    assert depths([0, 2]) == [0, 2]
    assert depths("last:4") == depths("first:9") == [0, 1, 2]
    with pytest.raises(UserError, match=r"block 3 does not exist.*0 to 2"):
        depths([1, 3])


def test_targets_by_name() -> None:
    task = tiny_task("bert", Lora(targets=["key", "layer.1.output.dense"], layers="all"))
    assert [u.name for u in task.units] == [
        "layer.0.attention.self.key",
        "layer.1.attention.self.key",
        "layer.1.output.dense",
        "head",
    ]
    with pytest.raises(UserError) as error:
        tiny_task("bert", Lora(targets=["key", "kye"]))
    assert "'kye' matches no linear module" in str(error.value)
    assert "attention.self.key" in str(error.value) and "classifier" not in str(error.value)


def test_many_targets_survive_pefts_shortening() -> None:
    """From 20 names on PEFT replaces the list by shorter endings; the modules stay the same."""
    task = tiny_task("bert", Lora(targets=["query", "output.dense", "value"], layers=range(9)),
                     n_layers=12)  # fmt: skip
    assert len(task.units) == 9 * 4 + 1
    assert max(u.depth for u in task.units[:-1]) == 8


def test_a_language_models_output_matrix_is_never_adapted() -> None:
    with pytest.raises(UserError, match="'lm_head' matches no linear module"):
        tiny_task("opt", Lora(targets=["lm_head"]), causal=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_only_trains_the_head(family: str) -> None:
    task = tiny_task(family, HeadOnly())
    assert [u.is_head for u in task.units] == [True]
    assert task.head == task.params.keys()
    logits = task.logits(moved(task.params), tiny_examples(3).batch(range(3)))
    assert logits.shape == (3, 3)
    modules = {n.split(".modules_to_save.")[0].split(".")[-1] for n in task.head}
    heads = {"distilbert": {"pre_classifier", "classifier"}}
    default = {"classifier"} if family in ("bert", "roberta") else {"score"}
    assert modules == heads.get(family, default)


def test_head_only_needs_a_head() -> None:
    with pytest.raises(UserError, match="no classification head"):
        tiny_task("opt", HeadOnly(), causal=True)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("lroa", "adapter: 'lroa' is unknown: did you mean 'lora'"),
        ({"kind": "lora", "rank": 3}, "adapter.rank: unknown setting"),
        ({"kind": "lora", "targets": "attention_qv"}, "did you mean 'attention-qv'"),
        ({"kind": "lora", "targets": []}, "trains nothing"),
        ({"kind": "lora", "layers": "last:0"}, 'give "all", "first:N"'),
        ({"kind": "tinylora", "u": 0}, "adapter.u"),
        ({"kind": "lora", "dropout": 1.0}, "adapter.dropout"),
    ],
)
def test_settings_that_do_not_fit(raw: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        ADAPTERS.parse(raw)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_are_hashable_and_survive_json() -> None:
    adapter = ADAPTERS.parse({"kind": "lora", "targets": ["query"], "layers": [0, 1]})
    assert hash(adapter) == hash(ADAPTERS.parse(adapter.model_dump(mode="json")))
