#!/usr/bin/env bash
# `pip install dp-accounting` beside numpy 2 and a current attrs.
#
# A good guess: pip installs a current dp-accounting, or says that the two cannot be had together. What happens: 0.5 and
# 0.6 pin attrs below 24, the versions before them numpy below 2, and 0.0.2 of 2022 pins neither, so pip takes that one without
# a word. It has the same name and another interface: no PLDAccountant, no RdpAccountant, no DpEvent, and
# tests of its own in the installed package.
# Met by: whoever adds an accountant to an environment with pinned versions (attrs comes with aiohttp, jsonschema, pytest tools).
# Forefed asks for dp-accounting>=0.6 (extra `dp`), pins attrs 23.2.0 in its constraints, and names the remedy where an old one
# is imported: _library() in src/forefed/privacy/accountant.py.
# Exits 1 if that has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3.11 -m venv "$place/venv"
printf "attrs==26.1.0\nnumpy==2.4.6\n" > "$place/constraints.txt"
"$place/venv/bin/pip" install -q --disable-pip-version-check --constraint "$place/constraints.txt" dp-accounting
cat > "$place/try.py" <<'PY'
import importlib.util
import sys
from importlib.metadata import version

print("attrs 26.1.0 and numpy 2.4.6 pinned: dp-accounting", version("dp-accounting"))
import dp_accounting

has = {name: hasattr(dp_accounting, name) for name in ("GaussianDpEvent", "PoissonSampledDpEvent")}
print("it has", has, "and a subpackage pld:", importlib.util.find_spec("dp_accounting.pld") is not None)
if version("dp-accounting") != "0.0.2" or any(has.values()):
    sys.exit("changed")
PY
"$place/venv/bin/python" "$place/try.py"
