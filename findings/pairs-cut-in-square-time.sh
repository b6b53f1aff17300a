#!/usr/bin/env bash
# A pair of long texts, cut to a few tokens by a fast tokeniser, with no overflow asked for.
#
# A good guess: cutting costs time by the length of the texts, as it does for a single one. What happens: the library
# makes every overflowing piece of the first text with every one of the second, whether anyone asks for them or not:
# twice the words take four times the pieces and the time.
# Met by: whoever classifies pairs of documents (retrieval, entailment) at a small maximum length; a few long rows
# hold up the reading of a whole file. Reported as https://github.com/huggingface/tokenizers/issues/2035 (closed).
# Forefed cuts both texts before they are tokenised: shortened() and in_order() in src/forefed/data/shorten.py.
# Exits 1 if that has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3.11 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check "transformers==5.23.0" "tokenizers==0.23.3"
cat > "$place/try.py" <<'PY'
import sys
import time

import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
words = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, **{f"w{i}": i + 4 for i in range(100)}}
backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
)


def cut(*texts):
    """Least processor seconds of three calls, and the pieces that came beside the tokens."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        encoded = tokenizer(*texts, truncation=True, max_length=16)
        best = min(best, time.process_time() - start)
    assert len(encoded["input_ids"]) == 16
    return best, len(encoded.encodings[0].overflowing)


pairs = []
for n in (200, 400, 800):
    text = " ".join(f"w{i % 100}" for i in range(n))
    (alone, pieces), (pair, more) = cut(text), cut(text, text)
    print(f"{n} words: alone {1e3 * alone:.1f} ms, {pieces} pieces; as a pair {1e3 * pair:.1f} ms, {more} pieces")
    pairs.append((pair, more))
(_, few), (once, many), (twice, most) = pairs
print(f"twice the words: {many / few:.2f} and {most / many:.2f} times the pieces, {twice / once:.2f} times the time")
if most < 3.5 * many or twice < 2.5 * once:
    sys.exit("changed")
PY
"$place/venv/bin/python" "$place/try.py"
