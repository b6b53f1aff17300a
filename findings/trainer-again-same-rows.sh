#!/usr/bin/env bash
# transformers' Trainer.train(), called again on the same Trainer.
#
# A good guess: a second train() of a few steps goes on with the training data, or draws rows anew; and optimiser and
# learning rate either both begin anew or both go on. What happens: it sees the same rows in the same order as the first
# one, so with max_steps below an epoch the rest of the rows is never trained on; the optimiser's moments stay; the
# schedule of the learning rate begins anew. (accelerate orders rows by torch.initial_seed(), which is what the script
# has seeded once, and counts epochs from 0 in every call.)
# Met by: whoever calls trainer.train() once a round of a federation, or in a loop of its own.
# Forefed seeds every round from its key and makes the optimiser anew, or keeps its moments on request:
# src/forefed/hf/own.py.
# Exits 1 if that has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3.11 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0" "accelerate==1.15.0" \
    "numpy==2.4.6"
cat > "$place/try.py" <<'PY'
import sys

import accelerate
import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments

print("torch", torch.__version__, "transformers", transformers.__version__, "accelerate", accelerate.__version__)
seen, rates, kept = [], [], []


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x, row, labels):
        seen.append(row.tolist())
        return {"loss": ((self.layer(x)[:, 0] - labels) ** 2).mean()}


class Look(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **more):
        rates.append(optimizer.param_groups[0]["lr"])
        kept.append(max([int(s["step"]) for s in optimizer.state.values()], default=0))


rows = [{"x": torch.ones(2), "labels": torch.tensor(1.0), "row": i} for i in range(12)]
arguments = TrainingArguments(
    sys.argv[1], max_steps=2, per_device_train_batch_size=3, use_cpu=True, report_to=[],
    save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
)
trainer = Trainer(Model(), arguments, train_dataset=rows, callbacks=[Look()])
for _ in range(3):
    trainer.train()
print("rows of every step:", seen)
print("learning rates:", rates)
print("steps that the moments have behind them:", kept)
calls = [seen[i : i + 2] for i in (0, 2, 4)]
same = calls[0] == calls[1] == calls[2] and len({r for batch in seen for r in batch}) == 6
if not (same and kept == [0, 1, 2, 3, 4, 5] and rates[0] == rates[2] == rates[4] > rates[1]):
    sys.exit("changed")
PY
"$place/venv/bin/python" "$place/try.py" "$place/out"
