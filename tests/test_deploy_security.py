"""What protects what, without a network: no pickle, no second use of a message, no secret shown."""

from __future__ import annotations

import ast
import json
import pickletools
import re
from dataclasses import replace
from pathlib import Path

import pytest

import forefed
from deployment import FakePost, deployed, make_sites, through_bytes
from faults import fault
from forefed.core.types import Lost
from forefed.deploy.certificates import write_key_pair
from forefed.deploy.connect import connect_by
from forefed.deploy.envelope import encode
from forefed.deploy.install import NGINX
from forefed.run import run
from forefed.run.build import build

SOURCES = Path(forefed.__file__).parent
EXECUTES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "torch.load", "yaml.load"}


def test_no_module_of_ours_unpickles_or_evaluates():
    for path in SOURCES.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            elif isinstance(node, ast.Call):
                allows = [k.value for k in node.keywords if k.arg == "allow_pickle"]
                assert all(ast.unparse(value) == "False" for value in allows)
                assert ast.unparse(node.func) not in CALLS, f"{path}:{node.lineno}"
            assert not names & EXECUTES, f"{path}:{node.lineno}"


@fault("pickles on the wire", "a whole run", "none: JSON, safetensors and our headers only")
def test_no_message_holds_a_pickle(world, tmp_path):
    post = FakePost(make_sites(world, tmp_path))
    said = []
    sites = {n: lambda e, s=s: said.append(s(e)) or said[-1] for n, s in post.sites.items()}
    heard = FakePost(sites)
    run(deployed(world, tmp_path, "strategy=fedavg", "rounds=1"), connect=connect_by(heard))
    letters = [e for _, e in heard.asked] + said
    assert len(letters) == 12
    for letter in letters:
        blobs = list(letter.blobs.values())
        assert all(blob[:4] == b"FFED" for blob in blobs)
        assert through_bytes(letter) == letter
        for data in (encode(letter), *blobs, *(blob[32:] for blob in blobs)):
            assert not a_pickle(data)


def a_pickle(data: bytes) -> bool:
    try:
        list(pickletools.genops(data))
    except Exception:
        return False
    return True


@fault(
    "a recorded answer sent again",
    "a later round, another run",
    "one loss 'transport': it answers another order",
)
def test_a_replayed_answer_is_refused(world, tmp_path):
    kept = {}

    def replaying(answer):
        kept.setdefault("first", answer)
        return [kept["first"]]

    post = FakePost(make_sites(world, tmp_path), tamper={"main": replaying})
    config = deployed(world, tmp_path, "strategy=fedavg")
    star = build(config, connect=connect_by(post)).star
    state, first = star.round(build(config, connect=connect_by(post)).start())
    assert not first.lost
    state, second = star.round(state)
    assert [(x.client, x.reason) for x in second.lost] == [(1, "transport")]
    # with a header made to fit, the sealed update inside still answers round 1
    post.tamper["main"] = lambda a: [replace(kept["first"], round=a.round)]
    outcomes = []
    star.round(state, outcomes.append)
    assert not [x for x in outcomes if isinstance(x, Lost)]  # the header passes ...
    _, third = star.round(state)
    assert [(x.client, x.reason) for x in third.lost] == [(1, "transport")]  # ... the update not
    assert "round 1" in third.lost[0].detail


@fault("a recorded order sent again", "after its round", "the kept answer; nothing is computed")
def test_a_replayed_order_moves_nothing(world, tmp_path):
    sites = make_sites(world, tmp_path)
    post = FakePost(sites)
    config = deployed(world, tmp_path, "strategy=fedavg", "client.keep_optimiser=true", "rounds=2")
    run(config, connect=connect_by(post))
    orders = [e for name, e in post.asked if name == "large" and e.kind == "train"]
    before = snapshot(tmp_path / "sites" / "large")
    answers = [sites["large"](order) for order in orders]
    assert {a.kind for a in answers} == {"trained"}
    assert snapshot(tmp_path / "sites" / "large") == before


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*.safetensors")}


def test_the_proxy_speaks_tls_and_names_one_interface():
    text = NGINX.format(name="hub", port=8443, root="/srv/hub")
    assert re.findall(r"listen (.*);", text) == ["443 ssl"]
    assert re.findall(r"location (\S+) {", text) == ["/v1/fleet/", "/"]
    assert re.findall(r"proxy_pass (\S+);", text) == ["https://127.0.0.1:8443"]
    assert "proxy_ssl_verify on" in text and "return 403" in text
    assert text.count("{") == text.count("}")


def test_two_sites_never_share_a_key(tmp_path):
    for name in "ab":
        write_key_pair(tmp_path / f"{name}.key", tmp_path / f"{name}.pub", name)
    first, second = ((tmp_path / f"{n}.pub").read_text().split()[1] for n in "ab")
    assert first != second


@pytest.mark.parametrize("word", ["key", "secret", "pem"])
def test_settings_that_travel_hold_no_secret(world, tmp_path, word):
    from forefed.deploy.settings import for_sites

    def keys(value):
        return (
            {*value, *(k for v in value.values() for k in keys(v))}
            if isinstance(value, dict)
            else set()
        )

    assert word not in keys(json.loads(for_sites(deployed(world, tmp_path))))
