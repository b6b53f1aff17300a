"""Who is let in, who is shut out, and when certificates end; Flower's own commands are played."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from commands import mistake
from forefed.core.errors import UserError
from forefed.deploy import admission, certificates, server_folder, site_folder
from forefed.deploy.places import ServerFolder

pytest.importorskip("flwr")


@pytest.fixture
def server(forefed_command, tmp_path):
    assert forefed_command("server", "init", tmp_path / "server", "--port", 18998).status == 0
    return ServerFolder(tmp_path / "server")


@pytest.fixture
def keys(tmp_path):
    """Public keys of three sites."""
    for name in ("north", "south", "new"):
        certificates.write_key_pair(tmp_path / f"{name}.key", tmp_path / f"{name}.pub", name)
    return {name: tmp_path / f"{name}.pub" for name in ("north", "south", "new")}


@pytest.fixture
def flower(monkeypatch):
    """Plays Flower's register, unregister and lists; keeps what it was asked."""
    asked: list[tuple[str, ...]] = []
    states = {"1": {"status": "online", "online-at": "2026-11-28 08:00:00Z"}}

    def play(folder, *words):
        asked.append(words)
        if words[:2] == ("supernode", "list"):
            return {"nodes": [{"node-id": n, **state} for n, state in states.items()]}
        if words[0] == "list":
            return {"runs": [{"run-id": 77, "status": "running"}]}
        return {"node-id": str(sum(w[:2] == ("supernode", "register") for w in asked))}

    monkeypatch.setattr(admission, "flwr", play)
    return asked


def registered(flower) -> int:
    return sum(words[:2] == ("supernode", "register") for words in flower)


def test_a_second_key_under_a_name_is_refused_and_the_first_one_stays(
    server, keys, flower, forefed_command
):
    said = forefed_command("server", "admit", server.root, "north", keys["north"])
    assert said.status == 0 and "SHA256:" in said.out
    before = server.sites.read_bytes()
    again = forefed_command("server", "admit", server.root, "north", keys["new"])
    mistake(again, "north has been admitted with another key", "server revoke")
    same = forefed_command("server", "admit", server.root, "north", keys["north"])
    mistake(same, "admitted with this key already")
    other = forefed_command("server", "admit", server.root, "south", keys["north"])
    mistake(other, "this key is admitted as north")
    assert registered(flower) == 1 and server.sites.read_bytes() == before


def test_a_revoked_site_needs_another_key(server, keys, flower, forefed_command):
    forefed_command("server", "admit", server.root, "north", keys["north"])
    assert forefed_command("server", "revoke", server.root, "north").status == 0
    assert flower[-1] == ("supernode", "unregister", "1", "forefed")
    back = forefed_command("server", "admit", server.root, "north", keys["north"])
    mistake(back, "was revoked on", "forefed site renew")
    assert forefed_command("server", "admit", server.root, "north", keys["new"]).status == 0
    assert admission.admitted(server)["north"].node == "2"
    mistake(forefed_command("server", "revoke", server.root, "west"), "admitted are: north")


def test_who_was_admitted_by_an_earlier_version_is_known(server, keys, flower, forefed_command):
    server.sites.write_text('{"north": "1"}')
    mistake(
        forefed_command("server", "admit", server.root, "north", keys["new"]), "has been admitted"
    )
    assert "site north  online since" in forefed_command("server", "status", server.root).out


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a b", "[red]", "a\n", "x" * 65])
def test_a_name_that_is_none_is_not_admitted(server, keys, flower, forefed_command, name):
    said = forefed_command("server", "admit", "--", server.root, name, keys["north"])
    mistake(said, "letters, digits")
    assert not flower


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"ssh-rsa AAAA x", b"hello world"])
def test_a_key_that_is_none_is_named(server, tmp_path, flower, forefed_command, content):
    (tmp_path / "some.pub").write_bytes(content)
    said = forefed_command("server", "admit", server.root, "north", tmp_path / "some.pub")
    mistake(said, "some.pub", "node.pub")
    assert not flower


@pytest.mark.parametrize("content", ["", "[]", '{"north": 3}', '{"north": {"key": 1}}', "\x00"])
def test_a_damaged_list_of_sites_is_named(server, flower, content):
    server.sites.write_text(content)
    with pytest.raises(UserError, match=r"sites\.json"):
        admission.admitted(server)


def test_status_shows_keys_since_when_and_the_certificates_end(
    server, keys, flower, forefed_command
):
    for name in ("north", "south"):
        forefed_command("server", "admit", server.root, name, keys[name])
    said = forefed_command("server", "status", server.root)
    top, north, south, run = said.out.splitlines()
    dates = [datetime.fromisoformat(d).replace(tzinfo=UTC) for d in re.findall(r"\d+-\d+-\d+", top)]
    years = [round((day - datetime.now(UTC)) / timedelta(days=365)) for day in dates]
    assert "127.0.0.1:18998" in top and years == [2, 10]
    assert north.startswith("site north  online since 2026-11-28 08:00:00Z")
    assert south.startswith("site south  unregistered")
    assert run == "run 77  running"
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", keys["north"]], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split()[1] in north


def test_no_text_of_anybodys_is_markup(server, flower, forefed_command):
    sites = {"x[bold red]": {"node": "[/]", "key": "[link=file:///etc/passwd]", "since": "[/a]"}}
    server.sites.write_text(json.dumps(sites))
    said = forefed_command("server", "status", server.root)
    assert said.status == 0 and "x[bold red]" in said.out and "[link=file:///etc" in said.out


def expired(folder: ServerFolder, days: float = -1.0) -> None:
    certificates.write_server(
        folder.certificate, folder.key, ["127.0.0.1"], folder.authority, folder.authority_key, days
    )


def test_a_certificate_that_has_ended_is_one_sentence_and_renewed(server, forefed_command):
    expired(server)
    for words in (["start"], ["status"], ["run", "--dir"], ["stop"]):
        tail = ["1"] if words == ["stop"] else []
        if words[0] == "run":
            continue  # asks for its settings first
        said = forefed_command("server", *words, server.root, *tail)
        mistake(said, "this certificate ended on", "forefed server renew")
    old = server.authority.read_bytes()
    said = forefed_command("server", "renew", server.root)
    assert said.status == 0 and "certificate until 20" in said.out
    assert server_folder.check_certificates(server) == []
    assert server.authority.read_bytes() == old  # sites need nothing new


def test_a_certificate_that_ends_soon_is_announced(server):
    expired(server, 30.5)
    (said,) = server_folder.check_certificates(server)
    assert "ends in 30 days" in said and "renew" in said


def test_a_renewed_certificate_has_the_names_of_the_settings(server, tmp_path, forefed_command):
    text = server.settings.read_text().replace('["localhost"]', '["new.example"]')
    server.settings.write_text(text)
    assert forefed_command("server", "renew", server.root).status == 0
    command = ["openssl", "verify", "-verify_hostname", "new.example", "-CAfile"]
    subprocess.run([*command, server.authority, server.certificate], check=True)


def test_an_authority_is_renewed_over_its_key_so_that_sites_go_on_to_believe(
    server, tmp_path, forefed_command
):
    certificates.write_authority(server.authority, server.authority_key, 100)
    (tmp_path / "old.crt").write_bytes(server.authority.read_bytes())
    said = forefed_command("server", "renew", server.root)
    assert "site renew FOLDER --ca ca.crt" in said.out
    for authority in (tmp_path / "old.crt", server.authority):
        subprocess.run(["openssl", "verify", "-CAfile", authority, server.certificate], check=True)
    assert (tmp_path / "old.crt").read_bytes() != server.authority.read_bytes()


@pytest.fixture
def site(server, world, tmp_path, forefed_command):
    arguments = ["--name", "north", "--data", world.texts, "--ca", server.authority]
    folder = tmp_path / "north"
    said = forefed_command("site", "init", folder, *arguments, "--server", "127.0.0.1:18998")
    assert said.status == 0, said
    return folder


def test_a_site_whose_authority_has_ended_says_so(server, site, forefed_command):
    certificates.write_authority(server.authority, server.authority_key, -1)
    ended = server.authority.read_bytes()
    mistake(forefed_command("site", "renew", site, "--ca", server.authority), "ended on")
    (site / "ca.crt").write_bytes(ended)
    mistake(forefed_command("site", "start", site), "this certificate ended on", "operator")
    forefed_command("server", "renew", server.root)
    assert forefed_command("site", "renew", site, "--ca", server.authority).status == 0
    assert (site / "ca.crt").read_bytes() == server.authority.read_bytes()


def test_a_site_makes_a_new_key(site, forefed_command):
    before = (site / "node.pub").read_bytes()
    said = forefed_command("site", "renew", site)
    assert said.status == 0 and "node.pub" in said.out
    assert (site / "node.pub").read_bytes() != before
    assert (site / "node.key").stat().st_mode & 0o777 == 0o600


def answering(folder: ServerFolder) -> int:
    """The port of a server with this certificate, which greets one caller."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.certificate, folder.key)
    listener = socket.create_server(("127.0.0.1", 0))

    def greet() -> None:
        with listener, listener.accept()[0] as plain, suppress(OSError):
            context.wrap_socket(plain, server_side=True).close()

    threading.Thread(target=greet, daemon=True).start()
    return listener.getsockname()[1]


def test_a_site_says_why_it_does_not_believe_the_server(server, tmp_path):
    def ask(authority):
        return site_folder.distrust(f"127.0.0.1:{answering(server)}", authority)

    assert ask(server.authority) == ""
    certificates.write_authority(tmp_path / "other.crt", tmp_path / "other.key")
    assert "not believed" in ask(tmp_path / "other.crt")
    expired(server)
    assert "expired" in ask(server.authority) and "renew" in ask(server.authority)
    assert site_folder.distrust("127.0.0.1:9", server.authority) == ""  # nobody is there
