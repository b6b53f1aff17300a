"""Whom a server lets in: every site's key under one name, and what becomes of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from forefed.core.errors import UserError
from forefed.core.files import write_json
from forefed.core.settings import Settings
from forefed.deploy.certificates import end_of, fingerprint, read_certificate
from forefed.deploy.names import checked_site_name, with_port
from forefed.deploy.places import ServerFolder
from forefed.deploy.server_folder import CONNECTION, ServerSettings, flwr


class Admitted(Settings):
    """A key that was admitted."""

    node: str
    """The number that Flower gave it."""
    key: str = ""
    """Fingerprint; "": it was admitted by an earlier version."""
    since: str = ""


class Revoked(Settings):
    """A key that was revoked; Flower never takes it again."""

    name: str
    on: str


def admit(folder: ServerFolder, name: str, key: Path) -> str:
    """Register a site's public key under its name; returns its fingerprint.

    Raises:
        UserError: no such key, one of a revoked or another site, a name that has a key already, or
            Flower refuses it.
    """
    checked_site_name(name)
    if not key.is_file():
        raise UserError(f"{key}: there is no such key; a site's is node.pub in its folder")
    print_ = fingerprint(key)
    known = admitted(folder)
    gone = revoked(folder).get(print_)
    other = next((n for n, a in known.items() if a.key == print_ and n != name), None)
    if name in known:
        same = "this key" if known[name].key == print_ else f"another key ({known[name].key})"
        raise UserError(
            f"{name} has been admitted with {same} already; 'forefed server revoke {folder.root} "
            f"{name}' ends that"
        )
    if other is not None:
        raise UserError(
            f"{key}: this key is admitted as {other}; every site has a key of its own (node.pub)"
        )
    if gone is not None:
        raise UserError(
            f"{key}: this key was revoked on {gone.on[:10]} and is not taken again; the site makes "
            "another one by 'forefed site renew FOLDER'"
        )
    answer = flwr(folder, "supernode", "register", str(key), CONNECTION, "--name", name)
    new = Admitted(node=str(answer["node-id"]), key=print_, since=_now())
    _write(folder.sites, {**known, name: new})
    return print_


def revoke(folder: ServerFolder, name: str) -> None:
    """Shut a site out: its key is refused from now on, also in the middle of a run.

    Raises:
        UserError: nobody of this name, or the server does not answer.
    """
    known = admitted(folder)
    if name not in known:
        shown = ", ".join(known) or "nobody"
        raise UserError(f"{name} has not been admitted; admitted are: {shown}")
    gone = known.pop(name)
    flwr(folder, "supernode", "unregister", gone.node, CONNECTION)
    if gone.key:
        _write(folder.revoked, {**revoked(folder), gone.key: Revoked(name=name, on=_now())})
    _write(folder.sites, known)


def admitted(folder: ServerFolder) -> dict[str, Admitted]:
    """The admitted sites by name.

    Raises:
        UserError: the file is damaged.
    """
    raw = _read(folder.sites)
    try:
        # earlier versions kept the number alone
        return {
            name: Admitted(node=entry) if isinstance(entry, str) else Admitted.model_validate(entry)
            for name, entry in raw.items()
        }
    except ValidationError:
        raise UserError(f"{folder.sites}: damaged; restore it, or admit the sites anew") from None


def revoked(folder: ServerFolder) -> dict[str, Revoked]:
    """The revoked keys by fingerprint.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return {key: Revoked.model_validate(x) for key, x in _read(folder.revoked).items()}
    except ValidationError:
        raise UserError(f"{folder.revoked}: damaged; restore it, or delete it") from None


def status(folder: ServerFolder, settings: ServerSettings) -> list[str]:
    """The server, its sites and its runs as Flower knows them, a line each.

    Raises:
        UserError: the server does not answer.
    """
    nodes = {n["node-id"]: n for n in flwr(folder, "supernode", "list", CONNECTION)["nodes"]}
    runs = flwr(folder, "list", CONNECTION)["runs"]
    ends, last = (end_of(read_certificate(x)) for x in (folder.certificate, folder.authority))
    place = with_port(settings.host, settings.port)
    lines = [f"server {place}  certificate until {ends}, authority until {last}"]
    for name, site in admitted(folder).items():
        since = site.since[:10] or "an earlier version"
        lines.append(
            f"site {name}  {_state(nodes.get(site.node, {}))}  key {site.key or 'not known'}  "
            f"admitted {since}  node {site.node}"
        )
    lines += [f"revoked {x.name}  on {x.on[:10]}  key {key}" for key, x in revoked(folder).items()]
    lines += [f"run {run['run-id']}  {run['status']}" for run in runs]
    return lines


def _state(node: dict[str, str]) -> str:
    """Flower's word and since when: "online since 2026-11-28 08:12:13Z"."""
    word = node.get("status", "unregistered")
    if word == "registered":
        return "never connected"
    key = {"online": "online-at", "offline": "offline-at"}.get(word, "deleted-at")
    return f"{word} since {node[key]}" if node.get(key) else word


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: Path) -> dict[str, object]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no table")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return found


def _write(path: Path, entries: dict[str, Admitted] | dict[str, Revoked]) -> None:
    write_json(path, {name: entry.model_dump() for name, entry in entries.items()})
