"""Trainers of Hugging Face as clients: one call, the script's own steps, our messages."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import forefed
from deployment import FakePost, deployed, write_rows
from federation import CLASSES, World
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.settings import parse
from forefed.core.types import Params
from forefed.deploy.connect import connect_by
from forefed.deploy.envelope import Envelope
from forefed.deploy.places import SiteFolder
from forefed.deploy.settings import SiteSettings, for_sites
from forefed.deploy.site import Site
from forefed.hf.own import Own
from forefed.hf.site import site_of
from forefed.optimisers import Sgd
from forefed.run import run
from forefed.run.build import build
from tiny import tiny_model

LENGTH, LABELS = 5, 3


@pytest.fixture(autouse=True)
def no_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate collects garbage at every train(): .2 s of processor time in a large process."""
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda **_: None)


class Rows(Dataset[dict[str, Tensor]]):
    """Random tokens, all of one length."""

    def __init__(self, count: int, seed: int):
        key = Key(seed)
        self.tensors = {
            "input_ids": torch.as_tensor(3 + key.fold("x").integers(count * LENGTH, 40)).view(
                count, LENGTH
            ),
            "labels": torch.as_tensor(key.fold("y").integers(count, LABELS)),
        }

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: x[i] for name, x in self.tensors.items()}


class Stream(IterableDataset[dict[str, Tensor]]):
    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter([Rows(1, 0)[0]])


class Seen(TrainerCallback):
    """Of every step its learning rate and the round's number of steps before."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        self.rates.append(known["optimizer"].param_groups[0]["lr"])


def lora(dropout: float = 0.0, seed: int = 0, rank: int = 2) -> nn.Module:
    """A tiny BERT under PEFT's LoRA, in float64."""
    model = tiny_model("bert", dtype=torch.float64, n_labels=LABELS)
    about = LoraConfig(r=rank, target_modules=["query", "value"], task_type="SEQ_CLS")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, about)
    for module in wrapped.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return wrapped.double()


def settings(out: Path, **more: Any) -> TrainingArguments:
    plain = {"optim": "sgd", "learning_rate": 0.3, "lr_scheduler_type": "constant"}
    quiet = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "use_cpu": True}
    about = {**quiet, **plain, "disable_tqdm": True, "max_grad_norm": 0.0, "max_steps": 1}
    about["per_device_train_batch_size"] = 16
    return TrainingArguments(str(out), **{**about, **more})


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """Trainers over these numbers of rows."""

    def trainers(*counts: int, model: nn.Module | None = None, **more: Any) -> list[Trainer]:
        own = {k: more.pop(k) for k in ("optimizers", "callbacks") if k in more}
        return [
            Trainer(model or lora(), settings(tmp_path, **more), train_dataset=Rows(n, i), **own)
            for i, n in enumerate(counts)
        ]

    return trainers


def ours(counts: Sequence[int], **more: Any) -> Params:
    """The same clients as ours: the loss as a function, plain gradient steps on all rows."""
    model = lora()
    first = Own(Trainer(model, settings(Path("x")), train_dataset=Rows(1, 0))).params
    model.eval()

    def loss(params: Params, batch: Mapping[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, params, (), {**batch})["loss"]

    shares = [Rows(n, i).tensors for i, n in enumerate(counts)]
    client = {"batch_size": "all", "optimiser": Sgd(lr=0.3), **more.pop("client", {})}
    return forefed.simulate(loss, first, shares, client=client, **more).params


def assert_equal(a: Params, b: Params) -> None:
    assert a.keys() == b.keys()
    for name, x in a.items():
        torch.testing.assert_close(x, b[name], rtol=0, atol=1e-12)


def test_one_step_of_sgd_is_fedavgs_own_client(made: Any) -> None:
    result = forefed.hf.simulate(made(5, 3), rounds=2)
    assert_equal(result.params, ours([5, 3], rounds=2))
    assert trees.digest(result.params) != trees.digest(Own(made(1)[0]).params)


def test_a_modifier_of_steps_works_in_a_script(made: Any) -> None:
    more = {"strategy": "fedprox", "modifiers": [{"kind": "proximal", "mu": 2.0}], "rounds": 1}
    result = forefed.hf.simulate(made(5, 3, max_steps=3), **more)
    assert_equal(result.params, ours([5, 3], client={"epochs": 3}, **more))
    plain = forefed.hf.simulate(made(5, 3, max_steps=3), rounds=1)
    assert trees.digest(plain.params) != trees.digest(result.params)


def test_clients_that_train_some_of_it_send_that_only(made: Any) -> None:
    result = forefed.hf.simulate(made(4, 4), strategy="fedavg_split", rounds=1)
    (report,) = result.reports
    sent = [set(u.grad or {}) for u in report.updates]
    assert sent[0] | sent[1] == set(result.params) and len(sent[0] & sent[1]) <= 2  # the head
    (one,) = forefed.hf.simulate(made(4), rounds=1).reports
    assert {n for u in one.updates for n in u.grad or {}} == set(result.params)
    assert all(".lora_" in n or ".classifier." in n for n in result.params)


def given_sgd(model: nn.Module) -> tuple[torch.optim.Optimizer, None]:
    free = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(free, lr=0.3, momentum=0.9), None


@pytest.mark.parametrize("given", [False, True])
def test_kept_moments_and_a_schedule_over_the_run_are_one_long_training(
    made: Any, given: bool
) -> None:
    """One client, all rows in every batch: two rounds of two steps are one round of four."""

    def went(steps: int, rounds: int, **more: Any) -> tuple[Params, list[float]]:
        model, seen = lora(), Seen()
        own = {"optimizers": given_sgd(model)} if given else {"optim": "adamw_torch"}
        more_ = {"lr_scheduler_type": "linear", "callbacks": [seen], "max_steps": steps}
        (trainer,) = made(6, model=model, **own, **more_)
        return forefed.hf.simulate([trainer], rounds=rounds, **more).params, seen.rates

    whole, rates = went(4, 1)
    halves, same = went(2, 2, keep_optimiser=True, schedule="run")
    assert_equal(whole, halves)
    assert same == pytest.approx(rates) and rates == pytest.approx([0.3, 0.225, 0.15, 0.075])
    fresh, anew = went(2, 2, schedule="round")
    assert anew == pytest.approx([0.3, 0.15] * 2)
    assert float(trees.norm(trees.subtract(fresh, whole))) > 1e-4
    dropped, _ = went(2, 2, schedule="run")
    assert float(trees.norm(trees.subtract(dropped, whole))) > 1e-4


@pytest.mark.parametrize("data_seed", [None, 3])
def test_it_repeats_itself_in_other_rows_and_leaves_the_generators_alone(
    made: Any, data_seed: int | None
) -> None:
    batches: list[list[int]] = []

    def trainer() -> list[Trainer]:
        about = {"per_device_train_batch_size": 2, "max_steps": 2, "data_seed": data_seed}
        (found,) = made(8, model=lora(dropout=0.3), **about)
        plain = found.data_collator

        def collate(rows: list[Any]) -> Any:
            batches[-1].extend(int(r["input_ids"].sum()) for r in rows)
            return plain(rows)

        found.data_collator = collate
        return [found]

    def called(*_: Any) -> None:
        batches.append([])

    first = trainer()  # which seeds them itself, when it is made
    before = random.getstate(), torch.random.get_rng_state()
    batches.append([])
    whole = forefed.hf.simulate(first, rounds=2, on_round=called)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    assert batches[0] != batches[1], "the second round has other rows"
    half = forefed.hf.simulate(trainer(), rounds=1)
    rest = forefed.hf.simulate(trainer(), rounds=1, state=half.state)
    assert trees.digest(rest.params) == trees.digest(whole.params)


def test_trls_trainer_takes_part(world: World, tmp_path: Path) -> None:
    """Its own loss and collator; the same bits again, and every model ends with the result."""
    trl = pytest.importorskip("trl", reason="needs the package trl, which nothing here depends on")
    from datasets import Dataset as Table

    def trainer(first: int) -> Any:
        rows = Table.from_list([{"text": f"w{first + i} w9 w{20 + i}"} for i in range(4)])
        about = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        quiet = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "use_cpu": True}
        narrow = {"bf16": False, "gradient_checkpointing": False, "disable_tqdm": True}
        args = trl.SFTConfig(str(tmp_path / "trl"), max_steps=2, max_length=8, **quiet, **narrow)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return trl.SFTTrainer(str(world.llama), args, train_dataset=rows, peft_config=about)

    results = []
    for _ in range(2):
        both = [trainer(4), trainer(10)]
        results.append(forefed.hf.simulate(both, rounds=2))
        for one in both:
            assert_equal(Own(one).params, dict(results[-1].params))
    assert_equal(*(dict(r.params) for r in results))
    assert results[0].losses[1] < results[0].losses[0]


def test_codecs_and_secure_sums_carry_what_a_script_trains(made: Any) -> None:
    plain = forefed.hf.simulate(made(5, 4, 3), rounds=1).params
    for more in ({"codec": "quantised"}, {"channel": {"kind": "secure_sum", "min_group": 3}}):
        found = forefed.hf.simulate(made(5, 4, 3), rounds=1, **more).params
        gap = max(float((found[n] - x).abs().max()) for n, x in plain.items())
        assert 0 < gap < 0.02


def test_the_models_end_with_the_result_and_may_be_one(made: Any) -> None:
    model = lora()
    shared = forefed.hf.simulate(made(5, 3, model=model), rounds=1)
    assert trees.digest(Own(made(1, model=model)[0]).params) == trees.digest(shared.params)
    apart = made(5, 3)
    assert_equal(forefed.hf.simulate(apart, rounds=1).params, shared.params)
    for trainer in apart:
        assert trees.digest(Own(trainer).params) == trees.digest(shared.params)


def test_a_head_of_ones_own_stays(made: Any) -> None:
    trainers = made(5, 3)
    result = forefed.hf.simulate(trainers, rounds=1, sharing="personal_head")
    (report,) = result.reports
    assert not any(".classifier." in n for u in report.updates for n in u.grad or {})
    heads = [{n: x for n, x in Own(t).params.items() if ".classifier." in n} for t in trainers]
    assert trees.digest(heads[0]) != trees.digest(heads[1])


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def broken(made: Any, what: str) -> list[Any]:
    (good,) = made(4)
    match what:
        case "stream":
            good.train_dataset = Stream()
        case "rows":
            good.train_dataset = None
        case "frozen":
            frozen(good.model)
        case "rank":
            return [good, *made(3, model=lora(rank=3))]
        case "targets":
            plain = tiny_model("bert", dtype=torch.float64, n_labels=LABELS)
            return [good, *made(3, model=plain)]
        case "fp16":
            return made(4, fp16=True)
        case "init":
            good.model_init = lora
        case "none":
            return ["train.py"]
    return [good]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("stream", "streamed and have no length"),
        ("rows", "no train_dataset"),
        ("frozen", "nothing in its model is trainable"),
        ("rank", "trainer 1 does not train what trainer 0 does: its .*lora_A.* has the shape"),
        ("targets", "trainer 1 does not train what trainer 0 does: it trains .*and not .*lora"),
        ("fp16", "fp16 = True, and it computes on the CPU"),
        ("init", "model_init makes a new model"),
        ("none", "str is no Trainer"),
    ],
)
def test_a_trainer_that_cannot_take_part(made: Any, what: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        forefed.hf.simulate(broken(made, what), rounds=1)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"strategy": "spry"}, "engine.kind = 'forward'"),
        ({"codec": "scalars"}, "codec.kind = 'scalars' sends slopes"),
        ({"client": {"epochs": 2}}, "client: the scripts have their own steps"),
        ({"modifiers": ["logit_adjustment"]}, "'logit_adjustment' has a say"),
        ({"model": "minilm"}, "model: simulate has"),
        ({"sharing": "local_labels"}, "reads the labels"),
    ],
)
def test_what_is_not_a_scripts(made: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        forefed.hf.simulate(made(4), rounds=1, **more)


def test_an_optimiser_that_keeps_what_is_no_tensor(made: Any) -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["said"] = "text"

    model = lora()
    odd = Odd([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(UserError, match="Odd keeps a 'said' that is no tensor"):
        forefed.hf.simulate(
            made(4, model=model, optimizers=(odd, None)), rounds=1, keep_optimiser=True
        )


# as a site

TARGETS = ("query", "value")


@pytest.fixture
def sites(world: World, tmp_path: Path) -> dict[str, Site]:
    """Three sites, each of which is a script: plain transformers and PEFT."""
    return {name: scripted(world, tmp_path, name) for name in ("large", "main", "middle")}


def scripted(world: World, out: Path, name: str, targets: Sequence[str] = TARGETS) -> Site:
    tokenizer = AutoTokenizer.from_pretrained(world.bert)
    rows = [json.loads(x) for x in write_rows(out / "rows")[name].read_text().splitlines()]
    encoded = [
        {**tokenizer(r["text"], truncation=True), "labels": CLASSES.index(r["label"])} for r in rows
    ]
    model = AutoModelForSequenceClassification.from_pretrained(world.bert, num_labels=3)
    about = LoraConfig(r=2, lora_alpha=4, target_modules=[*targets], task_type="SEQ_CLS")
    args = settings(out / "hf", max_steps=2, optim="adamw_torch", learning_rate=0.01)
    trainer = Trainer(
        get_peft_model(model, about), args, train_dataset=encoded, processing_class=tokenizer
    )
    folder = out / "sites" / name
    folder.mkdir(parents=True, exist_ok=True)
    text = f"name = '{name}'\nserver = '127.0.0.1:1'\nscript = 'train.py'\n"
    text += f"[models]\n'{world.bert}' = '{world.bert}'\n"
    (folder / "site.toml").write_text(text)
    return site_of(trainer, folder)


def told(world: World, out: Path, *more: str) -> Any:
    lora_ = ["adapter={kind='lora', r=2, alpha=4}", "model.pooling=pooler", "model.dtype=float32"]
    sets = [
        "strategy=fedavg",
        "client={kind='trainer', keep_optimiser=true}",
        "rounds=2",
        "client.batch_size=8",
    ]
    return deployed(world, out, *sets, *lora_, *more)


def test_scripts_are_sites(world: World, tmp_path: Path, sites: dict[str, Site]) -> None:
    said: list[str] = []
    post = FakePost(sites)
    result = run(told(world, tmp_path), connect=connect_by(post, said.append))
    assert sorted(said) == sorted(f"{name} takes part" for name in sites)
    lines = [json.loads(x) for x in (result.folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["replies"] for line in lines] == [3, 3]
    # a restarted script, with the moments from the site's folder, does the second round again
    again = next(e for _, e in reversed(post.asked) if e.kind == "train" and e.client == 0)
    answer = sites["large"](again)
    (tmp_path / "sites" / "large" / "done" / again.run / "2.safetensors").unlink()
    assert scripted(world, tmp_path, "large")(again).blobs == answer.blobs


def test_a_script_of_another_adapter_says_so(
    world: World, tmp_path: Path, sites: dict[str, Site]
) -> None:
    other = scripted(world, tmp_path, "main", targets=["query"])
    federation = build(
        told(world, tmp_path), connect=connect_by(FakePost({**sites, "main": other}))
    )
    _, report = federation.star.round(federation.start())
    (lost,) = [x for x in report.lost]
    assert "the Trainer here does not train what the run does: not base_model" in lost.detail


def test_a_script_of_another_scale_says_so(
    world: World, tmp_path: Path, sites: dict[str, Site]
) -> None:
    text = for_sites(told(world, tmp_path, "adapter.alpha=16"))
    answer = sites["main"](Envelope("join", "run", text=text))
    assert answer.kind == "refused" and "lora_alpha = 4" in answer.text
    assert "adapter.alpha = 16" in answer.text


def test_who_trains_by_a_script_and_who_does_not(
    world: World, tmp_path: Path, sites: dict[str, Site]
) -> None:
    letter = Envelope("join", "run")
    plain = deployed(world, tmp_path, "strategy=fedavg")
    answer = sites["main"](Envelope("join", "run", text=for_sites(plain)))
    assert answer.kind == "refused" and "takes client.kind = 'trainer'" in answer.text
    raw = {"name": "main", "server": "h:1", "models": {str(world.bert): str(world.bert)}}
    source = {"kind": "files", "path": str(write_rows(tmp_path / "rows")["main"])}
    rows = Site(parse(SiteSettings, {**raw, "data": {"source": source}}), tmp_path)
    answer = rows(Envelope(letter.kind, letter.run, text=for_sites(told(world, tmp_path))))
    assert answer.kind == "refused" and "there is no script here" in answer.text
    for both in ({}, {"data": {"source": source}, "script": "train.py"}):
        with pytest.raises(UserError, match="and not both"):
            parse(SiteSettings, {**raw, **both})


def test_a_site_starts_its_script_and_a_script_finds_its_site(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = SiteFolder(tmp_path)
    worker = folder.programs("h:1", 9, Path("train.py"))[0]
    assert worker.command[1:] == [str(tmp_path / "train.py")]
    monkeypatch.delenv("FOREFED_SITE", raising=False)
    with pytest.raises(UserError, match="no site has started this script"):
        forefed.hf.federate(made(4)[0])
    monkeypatch.setenv("FOREFED_SITE", folder.environment()["FOREFED_SITE"])
    (tmp_path / "site.toml").write_text("name='a'\nserver='h:1'\nscript='train.py'\n")
    with pytest.raises(SystemExit) as ended:
        forefed.hf.federate(made(4)[0])
    assert ended.value.code == 2 and "without its tokeniser" in capsys.readouterr().err
