#!/usr/bin/env bash
# byzfl's robust rules on updates of the size that adapters have.
#
# A good guess: the geometric median bears liars whatever the unit of the vectors, as a median does. What happens: every
# distance below nu = 0.1 counts as 0.1, so where all updates are shorter than that (LoRA and heads at usual rates are),
# all weights are equal and the result is the arithmetic mean, digit for digit: one liar of ten carries it away. At unit length
# the same vectors are aggregated well. Second guess: Krum scores n - f - 2 neighbours, as published; it scores n - f - 1
# (the choice differs in about 6 % of random draws; it equals the published rule for f - 1).
# Met by: whoever compares rules on fine-tuning. Remedy: scale the vectors, or give nu in their unit (nu=1e-9).
# Forefed's floor follows the data's scale: src/forefed/aggregate/geometric_median.py.
# Exits 1 if that has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3.11 -m venv "$place/venv"
pip() { "$place/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip --no-deps "byzfl==0.0.11"  # its rules need torch, numpy and scipy only; the rest of it torchvision, seaborn and others
pip "torch==2.13.0" "numpy==2.4.6" "scipy==1.17.1"
cat > "$place/try.py" <<'PY'
import importlib.util
import sys
import types
from importlib.metadata import version

import numpy as np

package = types.ModuleType("byzfl")
package.__path__ = list(importlib.util.find_spec("byzfl").submodule_search_locations)
sys.modules["byzfl"] = package
from byzfl.aggregators.aggregators import GeometricMedian, Krum  # noqa: E402

print("byzfl", version("byzfl"))
draw = np.random.default_rng(0)
unit = draw.normal(size=(10, 20))
unit[0] = 20.0
changed = False
for scale in (1.0, 1e-3):
    x = scale * unit
    near = np.median(np.linalg.norm(x[1:], axis=1))
    said = GeometricMedian()(x)
    off, from_mean = (np.linalg.norm(said - m.mean(0)) / near for m in (x[1:], x))
    print(f"updates of length {near:.2g}: {off:.2f} lengths from the honest mean, {from_mean:.1e} from the plain mean")
    changed |= (off < 0.5) != (scale == 1.0) or (from_mean < 1e-5) != (scale < 1)


def krum(x, neighbours):
    apart = ((x[:, None] - x[None]) ** 2).sum(-1)
    return x[np.sort(apart, axis=1)[:, 1 : neighbours + 1].sum(1).argmin()]


n, f = 15, 3
draws = [draw.normal(size=(n, 20)) for _ in range(500)]
same = {k: np.mean([np.allclose(Krum(f=f)(x), krum(x, k)) for x in draws]) for k in (n - f - 2, n - f - 1)}
print("chooses as Krum with so many neighbours:", same)
changed |= same[n - f - 1] < 1 or same[n - f - 2] > 0.98
sys.exit("changed" if changed else 0)
PY
"$place/venv/bin/python" "$place/try.py"
