#!/usr/bin/env bash
# torch.func.functional_call with a module that stands in two places of a model.
#
# A good guess: the given tensors stand in the model for the time of the call, and its own parameters are back
# afterwards. What happens, with the default tie_weights=True: the shared module keeps the given tensor, its Parameter
# is lost, and the model computes something else from then on; inside grad or jvp a dead wrapper stays. One weight
# under two names (a tied embedding) comes back rightly, as does everything with tie_weights=False.
# Met by: whoever differentiates a model with shared layers (ALBERT's way) or with PEFT's TinyLoRA, whose vectors live
# in one container below every adapted layer. Reported as https://github.com/pytorch/pytorch/issues/164759.
# Forefed calls with tie_weights=False: src/forefed/models/functional.py.
# Exits 1 if that has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3.11 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check \
    "torch==2.13.0" "numpy==2.4.6" "peft==0.21.2" "transformers==5.23.0"
cat > "$place/try.py" <<'PY'
import sys

import peft
import torch
from peft import TinyLoraConfig, get_peft_model
from torch import nn
from torch.func import functional_call

print("torch", torch.__version__, "peft", peft.__version__)
x = torch.ones(1, 4)


class Shared(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = self.one if what == "module" else nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x))


def tiny_lora():
    linears = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    return get_peft_model(linears, TinyLoraConfig(r=2, u=4, target_modules=["0", "2"]))


def survives(model, **how):
    """Does the model compute the same before and after one call with other tensors?"""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    others = {name: torch.full_like(p, 0.5) for name, p in trained.items()}
    before = model(x)
    functional_call(model, others, (x,), **how)
    kept = all(dict(model.named_parameters())[n] is p for n, p in trained.items())
    return kept and torch.equal(model(x), before)


torch.manual_seed(0)
found = {}
for name, make in (
    ("one weight under two names", lambda: Shared("weight")),
    ("one module in two places", lambda: Shared("module")),
    ("TinyLoRA", tiny_lora),
):
    found[name] = survives(make()), survives(make(), tie_weights=False)
    print(f"{name}: same model after the call? by default {found[name][0]}, tie_weights=False {found[name][1]}")
if list(found.values()) != [(True, True), (False, True), (False, True)]:
    sys.exit("changed")
PY
"$place/venv/bin/python" "$place/try.py"
