#!/usr/bin/env bash
# A SuperNode's public key that was registered with Flower once and then unregistered.
#
# A good guess: `flwr supernode register` takes the key again, since `unregister` has removed its node. What happens:
# "Public key already in use", in both states that a SuperLink can have (memory and SQLite), for the same account and
# for any other: the row of an unregistered node stays, and with it the key, for ever.
# Met by: an operator who takes a site out and wants it back (or typed the wrong number), with nothing to be done at
# the server: the site has to make a new key pair. Here without a network, by the state that the two commands call.
# Forefed tells the site to renew its key: src/forefed/deploy/admission.py and `forefed site renew`.
# Exits 1 if that has changed.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3.11 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check "flwr==1.42.0"
cat > "$place/try.py" <<'PY'
import sys
from importlib.metadata import version

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager


def new_key():
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


print("flwr", version("flwr"))
changed = False
for database in (":flwr-in-memory:", f"{sys.argv[1]}/state.db"):
    state = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory(database)).state()
    key = new_key()
    node = state.create_node("operator", "operator", key, 30.0)
    state.acknowledge_node_heartbeat(node, 30.0)
    state.delete_node("operator", node)
    said = []
    for account, again in (("operator", key), ("another", key), ("operator", new_key())):
        try:
            said.append("taken" if state.create_node(account, account, again, 30.0) else "failed")
        except ValueError as error:
            said.append(str(error).rstrip("."))
    print(f"{type(state).__name__}: same key {said[0]!r}, by another account {said[1]!r}, new key {said[2]!r}")
    changed |= said != ["Public key already in use"] * 2 + ["taken"]
sys.exit("changed" if changed else 0)
PY
FLWR_TELEMETRY_ENABLED=0 "$place/venv/bin/python" "$place/try.py" "$place"
