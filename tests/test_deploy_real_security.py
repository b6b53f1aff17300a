"""Strangers at the door of a real server: who is let in, who listens where, what the logs tell."""

from __future__ import annotations

import datetime
import json
import re
import ssl
import urllib.request

import psutil
import pytest

from deployment import NAMES
from faults import fault
from real import find

pytest.importorskip("flwr")

import httpx
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode import node_auth_http_interceptor as signing
from flwr.supernode.fleet_http_client import FleetHttpClient

pytestmark = pytest.mark.deploy


def knock(federation, keys=None) -> bool:
    """A node's sign of life for the site "main", signed with these keys."""
    who = [signing.NodeAuthHttpInterceptor(*keys)] if keys else []
    number = json.loads((federation.server / "sites.json").read_text())["main"]["node"]
    client = FleetHttpClient.from_server_address(
        f"127.0.0.1:{federation.port}",
        False,
        (federation.server / "ca.crt").read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperNode"), *who],
    )
    with client:
        node = Node(node_id=int(number))
        beat = SendNodeHeartbeatRequest(node=node, heartbeat_interval=30)
        return bool(client.SendNodeHeartbeat(beat).success)


def keys_of(federation, site: str):
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    own = load_ssh_private_key((federation.root / site / "node.key").read_bytes(), None)
    return own, own.public_key()


@fault("a node without a key, or with one that was not admitted", "at the fleet interface", "401")
def test_strangers_are_refused(federation):
    assert knock(federation, keys_of(federation, "main"))
    for keys in (None, generate_key_pairs(), keys_of(federation, "large")):
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            knock(federation, keys)


@fault("a node's recorded request sent again", "six minutes later", "401")
def test_an_old_signature_is_refused(federation, monkeypatch):
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=6)
    monkeypatch.setattr(signing, "now", lambda: then)
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        knock(federation, keys_of(federation, "main"))


@fault("plain text instead of TLS", "at the server's port", "the connection ends without an answer")
def test_plain_text_is_refused(federation):
    with pytest.raises((httpx.TransportError, httpx.HTTPStatusError)):
        httpx.get(f"http://127.0.0.1:{federation.port}/v1/fleet/get-run")


@fault("a server with another certificate", "when a site calls it", "the site ends the connection")
def test_another_authority_is_not_believed(federation):
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(
            f"https://127.0.0.1:{federation.port}/", context=ssl.create_default_context()
        )


@fault("a process without the secret asks for a task", "at the server and at a site", "401")
def test_tasks_are_for_those_who_know_the_secret(federation):
    server = (f"127.0.0.1:{federation.port}", False, (federation.server / "ca.crt").read_bytes())
    site = (f"127.0.0.1:{federation.port_of['main']}", True, None)
    for place in (server, site):
        version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
        with (
            RuntimeHttpClient.from_server_address(*place, interceptors=[version]) as client,
            pytest.raises(httpx.HTTPStatusError, match=r"401|403"),
        ):
            client.AcquireTask(AcquireTaskRequest())


@fault(
    "control and task interfaces from another machine",
    "always",
    "not reachable: every port listens on loopback; the shipped proxy passes the fleet only",
)
def test_everything_listens_on_loopback(federation):
    processes = [
        number
        for place in (federation.server, *(federation.root / n for n in NAMES))
        for number in find(str(place))
    ]
    listening = {
        (c.laddr.ip, c.laddr.port)
        for number in processes
        for c in psutil.Process(number).net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    }
    ports = {federation.port, *(federation.port_of[n] for n in NAMES)}
    assert {port for _, port in listening} >= ports
    assert {ip for ip, _ in listening} == {"127.0.0.1"}


@fault("a site whose key was not admitted", "when it starts", "not let in; it says why and waits")
def test_a_site_that_was_not_admitted(federation):
    name = "stranger"
    federation.init_site(name, federation.files["main"])
    federation.start_site(name)
    try:
        federation.until(lambda: "has not admitted this key" in federation.said(name))
        assert federation.status().count("online") == 3
    finally:
        process = federation.running.pop(name)
        process.terminate()
        process.wait(40)


@fault(
    "keys, secrets and texts in logs, records and command lines",
    "after a run",
    "none of them is there",
)
def test_logs_and_command_lines_hold_no_secret(federation):
    """After all the runs of this module's federation."""
    run = federation.run("quiet", "strategy=fedavg", "rounds=1")
    run.finish()
    secrets = set[str]()
    for path in [*federation.root.rglob("*.key"), *federation.root.rglob("*.secret")]:
        data = path.read_bytes()
        # what noise is drawn from is bytes, and would be shown as their digits
        text = data.decode() if data.isascii() else data.hex()
        body = [t for t in text.splitlines() if t and not t.startswith("-----")]
        assert body
        # the first line of a key's file may tell no more than its kind
        secrets |= {text[:24] for text in (body[1:-1] or body)}
    rows = {row for path in federation.files.values() for row in texts(path)}
    said = {
        str(p): p.read_text(errors="replace")
        for p in federation.root.rglob("*")
        if p.is_file() and (p.suffix in (".log", ".out") or "runs" in p.parts)
    }
    said |= {
        f"process {n}": " ".join(psutil.Process(n).cmdline()) for n in find(str(federation.root))
    }
    assert len(said) > 10 and len(secrets) > 8 and len(rows) > 10
    for place, text in said.items():
        assert not [s for s in secrets if s in text], place
        assert not [row for row in rows if row in text], place


def texts(path) -> set[str]:
    found = re.findall(r'"text": "([^"]*)"', path.read_text())
    return {text for text in found if len(text.split()) > 3}
