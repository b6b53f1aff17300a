#!/usr/bin/env bash
# torch.nn.functional.linear of a slice along the sequence, in bfloat16 on a CPU.
#
# A good guess: linear(x[:, :128], W) needs its output, and perhaps a copy of the slice. What happens: the slice cannot
# be seen as one matrix, so torch calls bmm with W expanded to the batch, and in bfloat16 a copy of W is made for every
# row of the batch, in every call, also for a batch of one, whose slice counts as contiguous already, so that
# .contiguous() changes nothing. As one matrix (.reshape(-1, 576)) the slice takes its output and a tenth; float32 takes
# no copy of W.
# Met by: whoever runs a feed-forward part some tokens at a time to save memory.
# Forefed slices before it adds the batch: src/forefed/models/lean.py.
# Exits 1 if that has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3.11 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$place/try.py" <<'PY'
import sys

import torch
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile

print("torch", torch.__version__)


def peak(work):
    """Largest number of bytes that a call holds at a time."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = work()
    live = most = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    del kept
    return most


copies = {}
for dtype in (torch.float32, torch.bfloat16):
    weight = torch.randn(1536, 576).to(dtype)
    for batch in (1, 2):
        x = torch.randn(batch, 512, 576).to(dtype)
        output = batch * 128 * 1536 * dtype.itemsize
        with torch.no_grad():
            slice_ = peak(lambda: linear(x[:, :128], weight)) - output
            plain = peak(lambda: linear(x[:, :128].reshape(-1, 576), weight)) - output
        copies[str(dtype), batch] = round(slice_ / weight.nbytes, 1), round(plain / weight.nbytes, 1)
        print(dtype, "batch", batch, "copies of the weights: slice, one matrix:", copies[str(dtype), batch])
for (dtype, batch), (of_slice, of_plain) in copies.items():
    expected = batch if dtype == "torch.bfloat16" else 0
    if not (expected <= of_slice < expected + 0.6 and of_plain < 0.6):
        sys.exit("changed")
PY
"$place/venv/bin/python" "$place/try.py"
