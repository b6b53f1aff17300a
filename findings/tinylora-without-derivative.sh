#!/usr/bin/env bash
# TinyLoRA of peft 0.21.0 under torch.func: its trained vectors cannot be swapped in, and have derivative zero.
#
# A good guess: functional_call, jvp and grad work as with LoRA and every other module, since named_parameters() shows
# the vectors. What happens: the layers compute with a reference of their own to each vector, so the tensors that are
# swapped in are ignored; the loss does not move, jvp and grad are exactly 0, and nothing is said. backward() is right,
# and so is all of it in 0.21.2, where the names of the tensors are the same.
# Met by: whoever trains TinyLoRA by forward mode, per-row gradients or meta-learning with 0.21.0.
# Forefed's range begins at 0.21.2: pyproject.toml, docs/versions.md.
# Exits 1 if that has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3.11 -m venv "$place/venv"
cat > "$place/try.py" <<'PY'
import json
import sys

import peft
import torch
from peft import LoraConfig, TinyLoraConfig, get_peft_model
from torch import nn
from torch.func import functional_call, grad, jvp

x = torch.ones(1, 8)


def derivatives(config):
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)), config)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    params = {n: model.get_parameter(n).detach() + 0.1 for n in names}
    ones = {n: torch.ones_like(p) for n, p in params.items()}

    def total(params):
        return functional_call(model, params, (x,), tie_weights=False).sum()

    backward = torch.autograd.grad(model(x).sum(), [model.get_parameter(n) for n in names])
    sizes = {
        "moved": abs(float((total(params) - model(x).sum()).detach())),
        "jvp": abs(float(jvp(total, (params,), (ones,))[1])),
        "grad": max(float(g.abs().max()) for g in grad(total)(params).values()),
        "backward": max(float(g.abs().max()) for g in backward),
    }
    return names, sizes


lora = derivatives(LoraConfig(r=2, target_modules=["0", "2"]))
tiny = derivatives(TinyLoraConfig(r=2, u=4, target_modules=["0", "2"]))
print("torch", torch.__version__, "peft", peft.__version__, "names", *tiny[0])
for name, (_, sizes) in (("LoRA", lora), ("TinyLoRA", tiny)):
    print(f"  {name}:", ", ".join(f"{k} {v:.3g}" for k, v in sizes.items()))
right = [all(sizes.values()) for _, sizes in (lora, tiny)]
dead = not any(tiny[1][k] for k in ("moved", "jvp", "grad")) and tiny[1]["backward"] > 0
if right[0] is not True or (dead if sys.argv[1] == "0.21.2" else not dead):
    sys.exit("changed")
PY
for version in 0.21.0 0.21.2; do
    "$place/venv/bin/pip" install -q --disable-pip-version-check \
        "torch==2.13.0" "numpy==2.4.6" "transformers==5.23.0" "peft==$version"
    "$place/venv/bin/python" "$place/try.py" "$version"
done
