#!/usr/bin/env bash
# What Flower's SecAgg+ makes of one number, by how many rows its client has.
#
# A good guess: `clipping_range = 8.0` bounds a client's parameters at 8, whoever it is ("the range within which model
# parameters are clipped before quantization"), and what is within comes back to a precision that follows from
# `quantization_range`. What happens: parameters are multiplied by num_examples / max_weight *before* they are
# clipped and quantised. So 9.0 arrives as 9.0 from a client of 500 rows, as 8.0 from one of 1,000 (max_weight)
# and as 1.6 from one of 5,000 (with a warning of overflow, not of this); and the error grows as rows get fewer: 1.3e-6 for
# 1,000 rows, 1.3e-4 for 10. And what is sent are 8 bytes a number, though the modulus is 2^32.
# Met by: whoever aggregates models with weights beyond the range, or has many clients of few rows.
# Forefed scales down before it weighs, and chooses the digits by what all clients together can reach:
# src/forefed/channel/fixed_point.py. Here without a network: one client's half of the protocol, and its own mask taken out again.
# Exits 1 if that has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3.11 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check "flwr==1.42.0"
cat > "$place/try.py" <<'PY'
import sys
from importlib import import_module
from importlib.metadata import version

import numpy as np
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.ndarrays_arithmetic import factor_extract, parameters_mod, parameters_subtraction
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

mod = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
CLIP, TARGET, MODULUS, MOST = 8.0, 1 << 22, 1 << 32, 1000.0  # the workflow's defaults


def arrives(x, rows):
    """The array as the workflow reads it, from a client without neighbours; and the bytes of a number."""
    state = mod.SecAggPlusState()
    state.threshold, state.clipping_range, state.target_range = 1, CLIP, TARGET
    state.mod_range, state.max_weight = MODULUS, MOST
    state.rd_seed, state.rd_seed_share_dict, state.sk1_share_dict = bytes(32), {}, {}
    empty = {Key.CIPHERTEXT_LIST: [], Key.SOURCE_LIST: []}
    told = mod._collect_masked_vectors(state, empty, rows, ndarrays_to_parameters([x]))
    masked = [bytes_to_ndarray(b) for b in told[Key.MASKED_PARAMETERS]]
    mask = pseudo_rand_gen(bytes(32), MODULUS, [a.shape for a in masked])
    total = parameters_mod(parameters_subtraction(masked, mask), MODULUS)
    factor, rest = factor_extract(total)
    (read,) = dequantize(rest, CLIP, TARGET)
    return read / (factor / TARGET), masked[-1].itemsize


print("flwr", version("flwr"))
nine = {rows: round(float(arrives(np.array([9.0]), rows)[0][0]), 2) for rows in (500, 1000, 5000)}
drawn = np.random.default_rng(0).normal(size=20000) * 0.01
error = {rows: float(np.abs(arrives(drawn, rows)[0] - drawn).mean()) for rows in (10, 1000)}
size = arrives(drawn, 100)[1]
print("9.0 arrives as", nine, "by rows; mean error", error, "by rows;", size, "bytes a number")
same = nine == {500: 9.0, 1000: 8.0, 5000: 1.6} and error[10] > 50 * error[1000] and size == 8
sys.exit(0 if same else "changed")
PY
FLWR_TELEMETRY_ENABLED=0 "$place/venv/bin/python" "$place/try.py"
