"""Training that begins with an adapter of another run, or of PEFT."""

import json

import pytest
import torch

from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.models.adapters import ADAPTERS, Lora, LoraSb
from forefed.models.attach import ADAPTER_NAME
from forefed.models.begin import _kind, begun_with, check_adapter
from forefed.models.export import save_adapter
from forefed.models.load import load_task
from forefed.models.outside import HEAD, guarded
from forefed.models.settings import ModelSettings
from forefed.run import configure
from forefed.run.checkpoint import load_checkpoint
from tiny import moved


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_a_run_begins_where_another_ended(world, tmp_path, pooling):
    """No step: what comes out is what came in; the head with its classes, too."""
    sets = ["strategy=fedavg", "adapter.r=2", "adapter.alpha=3", "name=first"]
    sets += [f"model.pooling={pooling}"]
    first = world.run(tmp_path, *sets)
    more = [*sets, f"model.adapter='{first.folder / 'adapter'}'", "name=second"]
    second = world.run(tmp_path, *more, "client.optimiser.lr=0", "client.optimiser.head_lr=0")
    ends = [
        load_checkpoint(
            r.folder,
            configure(base=json.loads((r.folder / "config.json").read_text())),
            torch.device("cpu"),
            to_go_on=False,
        ).state.params
        for r in (first, second)
    ]
    assert trees.digest(ends[0]) == trees.digest(ends[1])
    untrained = second.summary["baseline"]["untrained"]
    assert untrained == first.summary["final"]["accuracy"]


@pytest.mark.parametrize("kind", ["bitfit", "head", "ia3", "lora_sb"])
def test_an_export_of_every_kind_begins_a_run_of_what_it_is(world, kind):
    """What is written is known by the name that settings have for it."""
    task, _ = load_task(
        ModelSettings(name=str(world.bert)), ADAPTERS.parse(kind), Key(0), ("a", "b")
    )
    told = guarded(task.model.peft_config[ADAPTER_NAME].to_dict(), task)
    wanted = "lora" if kind == "lora_sb" else kind
    assert _kind(json.loads(json.dumps(told, default=str))) == wanted


def test_three_matrices_are_read_as_they_were_written(world, tmp_path):
    """B (R A) stands there for plain PEFT, and R beside it."""
    settings = ModelSettings(name=str(world.bert), dtype="float32")
    task, _ = load_task(settings, LoraSb(r=2), Key(0), ("a", "b"))
    params = moved(task.params)
    save_adapter(task, params, tmp_path / "a", "card")
    check_adapter(tmp_path / "a", task.adapter, "tiny-bert")
    assert trees.digest(begun_with(task, tmp_path / "a").params) == trees.digest(params)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"labels": ["b", "a"]}, "tells b, a apart, in this order, and the rows here a, b"),
        ({"pooling": "cls"}, "set model.pooling = 'cls'"),
        ({"layers": "last"}, "set model.layers = 'last'"),
    ],
)
def test_a_head_of_other_classes_or_features_is_refused(world, tmp_path, about, message):
    settings = ModelSettings(name=str(world.bert), pooling="mean")
    task, _ = load_task(settings, Lora(), Key(0), ("a", "b"))
    save_adapter(task, task.params, tmp_path / "a", "card")
    again = begun_with(task, tmp_path / "a")
    assert trees.digest(again.params) == trees.digest(task.params)
    head = tmp_path / "a" / HEAD
    head.write_text(json.dumps({**json.loads(head.read_text()), **about}))
    with pytest.raises(UserError, match=message):
        begun_with(task, tmp_path / "a")


def test_an_adapter_that_peft_has_trained(world, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    how = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"]}
    how = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **how)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(world.llama), how)
    theirs.save_pretrained(tmp_path / "theirs")
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        wanted = theirs.eval()(ids).logits
    settings = ModelSettings(name=str(world.llama), adapter=tmp_path / "theirs", dtype="float32")
    task, _ = load_task(settings, Lora(r=2, alpha=3), Key(0), None)
    assert torch.allclose(task.model(ids).logits, wanted, atol=1e-5)
    with pytest.raises(UserError, match=r"belongs to another model or adapter .*adapter.targets"):
        load_task(settings, Lora(r=2, alpha=3, targets="all-linear"), Key(0), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model_name_or_path": "org/Other"}, "is an adapter of 'org/Other'"),
        ({"peft_type": "IA3"}, "set adapter.kind = 'ia3'"),
        ({"peft_type": "VERA"}, "the kind 'vera', which no adapter here is; merge it"),
        ({"r": 16}, "has r = 16, and adapter.r = 2; set adapter.r = 16"),
        ({"use_dora": True}, "uses PEFT's use_dora"),
        (None, "holds no adapter_config.json"),
    ],
)
def test_an_adapter_of_something_else_is_refused_before_anything_runs(
    world, tmp_path, change, message
):
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "base_model_name_or_path": "x/tiny-bert"}
    if change is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps({**about, **change}))
    sets = ["strategy=fedavg", "adapter.r=2", "adapter.alpha=3", f"model.adapter='{tmp_path}'"]
    with pytest.raises(UserError, match=message):
        world.run(tmp_path / "runs", *sets)
