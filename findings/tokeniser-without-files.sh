#!/usr/bin/env bash
# A model's folder without any tokeniser file: AutoTokenizer makes a tokeniser of five special tokens
# instead of raising OSError, so every word of every text becomes [UNK] without a word of warning.
# Exits 1 if that has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check "transformers==5.23.0" "tokenizers==0.23.3"
cat > "$place/try.py" <<'PY'
import json, sys
import tokenizers, transformers
folder = sys.argv[1] + "/model"
transformers.BertConfig().save_pretrained(folder)
print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
try:
    words = transformers.AutoTokenizer.from_pretrained(folder)
except OSError as error:
    sys.exit(f"changed: {error}")
ids = words("the soup was cold")["input_ids"]
print(type(words).__name__, "of", len(words), "tokens:", words.convert_ids_to_tokens(ids))
if len(words) != 5 or set(ids[1:-1]) != {words.unk_token_id}:
    sys.exit("changed: another tokeniser")
PY
"$place/venv/bin/python" "$place/try.py" "$place"
