"""Classes as words of a language model, and answers that are generated."""

import math

import numpy as np
import pytest
import torch

from federation import tokenizer
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Batch
from forefed.data.rows import Rows
from forefed.data.sources import Table
from forefed.data.tasks import TASKS
from forefed.models.adapters import Lora
from forefed.models.generate import continuations
from forefed.models.inspect import longest_text
from forefed.models.load import load_task
from forefed.models.objectives.generate import rouge_l
from forefed.models.settings import ModelSettings
from forefed.use.predict import predict
from test_chat import PLAIN, said
from tiny import moved, tiny_task

TEXTS = Rows.of({"text": ["w10 w11", "w12", "w13 w14 w15 w16"], "label": ["a", "b", "a"]})
WORDS = {"a": "w40", "b": "w41"}


def choice(**settings):
    return TASKS.parse({"kind": "choice", "prompt": "w5 {text} w6 w7", "words": WORDS, **settings})


def examples(task, words=None, max_length=32, rows=TEXTS):
    words = words or tokenizer(types=False)
    return task.encode(Table(rows, rows, None, {}), words, max_length, 0.1, Key(0))


def test_a_text_stands_in_its_prompt_and_alone_is_cut():
    found = examples(choice(), max_length=6).train
    rows = [r.tolist() for r in np.split(found.tokens, found.offsets[1:-1])]
    assert rows == [[0, 5, 10, 11, 6, 7], [0, 5, 12, 6, 7], [0, 5, 13, 14, 6, 7]]
    assert found.choices == (40, 41) and found.labels.tolist() == [0, 1, 0]
    words = tokenizer(types=False)
    words.chat_template = PLAIN
    templated = examples(choice(template="chat"), words).train
    assert templated.tokens[:9].tolist() == [4, 5, 10, 11, 6, 7, 2, 5, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": {"a": "w40"}}, "the class 'b' has no word"),
        ({"words": {"a": "w40", "b": "w40 w41"}}, "'w40' and 'w40 w41' begin with the same token"),
        ({"words": {"a": "w40", "b": "xyz"}}, "the model has no token for 'xyz'"),
        ({"prompt": "w5 {text} " + "w6 " * 30}, "leaves no room for a text"),
    ],
)
def test_words_that_cannot_be_told_apart_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        examples(choice(**settings))


def test_logits_are_those_of_the_words_behind_the_prompt(world):
    """Against the model of transformers itself; padding changes nothing."""
    settings = ModelSettings(name=str(world.llama), dtype="float32")
    task, _ = load_task(settings, Lora(), Key(0), ("a", "b"), "choice")
    found = examples(choice()).train
    assert not task.head and task.objective.head == "choice"
    logits = task.logits(task.params, found.batch([0, 1, 2]))
    for i in range(3):
        ids = torch.tensor(found.tokens[found.offsets[i] : found.offsets[i + 1]])[None].long()
        with torch.no_grad():
            alone = task.model.get_base_model()(ids).logits[0, -1, [40, 41]]
        assert torch.allclose(logits[i], alone, atol=1e-5)
    sums = task.evaluate(task.params, found, [0, 1, 2], 2)
    right = [0, 1, 0]
    losses = [-float(logits[i].log_softmax(-1)[right[i]]) for i in range(3)]
    assert math.isclose(sums["loss_sum"], sum(losses), rel_tol=1e-4)


def test_a_run_learns_words(world, tmp_path, capsys):
    sets = [f"model.name='{world.llama}'", "data.task=choice", "data.task.prompt='{text} w3'"]
    sets += ["data.task.words={animal='w9',metal='w10',tree='w11'}", "data.unlabelled=drop"]
    sets += ["strategy=fedavg", "adapter.r=4", "adapter.targets=all-linear", "rounds=5", "cohort=6"]
    sets += ["client.optimiser.lr=0.02", "client.epochs=3", "client.max_steps=9"]
    result = world.run(tmp_path, *sets, "evaluate.every=9")
    summary = result.summary
    assert summary["final"]["accuracy"] > summary["baseline"]["untrained"]
    texts = ["w5 w6 w7", "w21 w22 w23 w24"]
    answers = list(predict(result.folder, texts))
    assert [p.predicted for p in answers] == ["animal", "metal"]
    with pytest.raises(UserError, match=r"--tokens .* 'choice'.* writes nothing"):
        list(predict(result.folder, texts, tokens=3))
    assert abs(sum(answers[0].chances) - 1) < 1e-5
    folder = result.folder / "adapter"
    _, code, *_ = (folder / "README.md").read_text().replace("```python", "```").split("```")
    code = code.replace('"adapter"', f"'{folder}'").replace('"tiny-llama"', f"'{world.llama}'")
    exec(code.replace('["a text", "another"]', str(texts)), {})
    printed = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert printed == [p.words.replace("(", "").replace(")", "").split() for p in answers]


def test_rouge_l_by_hand():
    """Lin 2004, section 3.1: "police killed the gunman" against two others, of LCS 3 and 2."""
    right = "police killed the gunman"
    assert rouge_l("Police kill the gunman.", right) == 3 / 4
    assert rouge_l("the gunman kill police", right) == 2 / 4
    assert rouge_l("the gunman", right) == 2 * 2 / 6
    assert (rouge_l("", right), rouge_l("", "..."), rouge_l("été 5", "ÉTÉ, 5")) == (0, 1, 1)


def greedy(task, params, prompt, tokens, ends):
    """One token at a time, without padding or a cache."""
    ids = list(prompt)
    for _ in range(tokens):
        batch = Batch({"input_ids": torch.tensor([ids])}, torch.zeros(1, dtype=torch.long))
        with torch.no_grad():
            token = int(task.logits(params, batch)[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_batched_answers_are_those_of_one_token_at_a_time(family):
    task = tiny_task(family, Lora(r=2), causal=True, dtype=torch.float32)
    params = moved(task.params)
    prompts = [[5, 9, 12], [7], [30, 31, 32, 33, 34, 35]]
    found = continuations(task.logits, params, prompts, 6, (2, 17), 1)
    assert found == [greedy(task, params, p, 6, (2, 17)) for p in prompts]
    assert len({*map(tuple, found)}) > 1 and max(map(len, found)) > 1
    limit = longest_text(task.model.config)
    long = [5] * (limit - 2)
    assert [len(x) for x in continuations(task.logits, params, [[7], long], 6, (), 1)] == [6, 2]


def test_a_test_writes_the_last_answer_and_compares_it(world):
    words = tokenizer(types=False)
    words.chat_template = PLAIN
    talks = [said("w10", "w20 w21", "w11", "w22"), said("w12", "w23 w24 w25")]
    rows = Rows.of({"messages": talks})
    generate = TASKS.parse({"kind": "generate", "tokens": 3})
    found = examples(generate, words, rows=rows).train
    speech = found.speech
    assert [speech.right(found, i) for i in range(2)] == ["w22", "w23 w24 w25"]
    assert speech.prompt(found, 0) == [4, 10, 2, 5, 20, 21, 2, 4, 11, 2, 5]
    settings = ModelSettings(name=str(world.llama), dtype="float32")
    task, _ = load_task(settings, Lora(), Key(0), None, "generate")
    sums = task.evaluate(task.params, found, [0, 1], 2)
    told = [
        words.decode(greedy(task, task.params, speech.prompt(found, i), 3, (2,))) for i in range(2)
    ]
    scores = [rouge_l(told[0], "w22"), rouge_l(told[1], "w23 w24 w25")]
    results = task.objective.results(sums)
    assert results["rouge_l"] == sum(scores) / 2
    plain = load_task(settings, Lora(), Key(0), None, "causal_lm")[0]
    lm = plain.objective.results(plain.evaluate(plain.params, found, [0, 1], 2))
    assert results["bits_per_byte"] == lm["bits_per_byte"]


def test_texts_that_nothing_asks_for_cannot_be_answered():
    with pytest.raises(UserError, match="nothing stands before the texts"):
        TASKS.parse("generate").columns(Rows.of({"text": ["a"]}))
