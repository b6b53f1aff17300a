#!/usr/bin/env bash
# AutoModelForQuestionAnswering of a Llama checkpoint as they are published (saved by LlamaForCausalLM).
#
# A good guess: the body is loaded and the new head alone is drawn, as AutoModelForSequenceClassification does with
# the same folder. What happens: not one tensor is loaded and the whole body is drawn at random. The class calls its
# body `transformer`, the checkpoint `model`; no exception, only a report among the log lines. The same weights saved
# by LlamaModel (names without a prefix) are loaded, so a test on such a folder does not notice.
# Met by: whoever fine-tunes a decoder on SQuAD; the loss falls a little and nothing else tells.
# Forefed refuses a decoder for this task (_fits in src/forefed/models/load.py), and for every task a checkpoint whose
# loading report lacks the body, before a weight is read (src/forefed/models/intact.py).
# Exits 1 if that has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3.11 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check \
    "torch==2.13.0" "numpy==2.4.6" "transformers==5.23.0" "tokenizers==0.23.3" "safetensors==0.8.0"
cat > "$place/try.py" <<'PY'
import sys

import torch
import transformers
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
small = transformers.LlamaConfig(
    vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
)
whole = transformers.LlamaForCausalLM(small).eval()
whole.save_pretrained(f"{sys.argv[1]}/whole")
whole.model.save_pretrained(f"{sys.argv[1]}/body")
ids = torch.arange(2, 12)[None]
with torch.no_grad():
    wanted = whole.model(ids).last_hidden_state
    found = {}
    for auto in (AutoModelForSequenceClassification, AutoModelForQuestionAnswering):
        for saved in ("whole", "body"):
            model, report = auto.from_pretrained(f"{sys.argv[1]}/{saved}", output_loading_info=True)
            off = float((model.eval().base_model(ids).last_hidden_state - wanted).abs().max())
            found[auto, saved] = off
            total, missing = len(model.state_dict()), len(report["missing_keys"])
            print(f"{type(model).__name__} of {saved}: {missing} of {total} tensors drawn, states off by {off:.3g}")
wrong = found.pop((AutoModelForQuestionAnswering, "whole"))
if wrong < 0.1 or any(found.values()):
    sys.exit("changed")
PY
"$place/venv/bin/python" "$place/try.py" "$place"
