"""A server's folder: made, started, its sites admitted.

Without torch, as the process that looks after the others shall be small.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.table import Table

from forefed.core.errors import UserError
from forefed.core.files import write_atomic, write_json
from forefed.core.settings import Settings, parse
from forefed.deploy.certificates import write_authority, write_secret, write_server
from forefed.deploy.install import NGINX, unit
from forefed.deploy.places import ServerFolder, need_flower, read_toml
from forefed.deploy.supervise import Stopped, supervise, tool

CONNECTION = "forefed"  # the name of our server in Flower's own configuration


class ServerSettings(Settings):
    """server.toml: where the server listens."""

    host: str = "127.0.0.1"
    """The interface to listen on. Others than loopback need a firewall that lets nothing but
    /v1/fleet through; a reverse proxy does (install/nginx.conf)."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8443
    names: tuple[str, ...] = ("localhost", "127.0.0.1")
    """Names and addresses by which sites reach the server; they stand in its certificate."""


def init_server(root: Path, settings: ServerSettings) -> ServerFolder:
    """A new server: certificates, secret, settings, and the units and proxy to install.

    Raises:
        UserError: there is one already.
    """
    need_flower()
    folder = ServerFolder(root.resolve())
    if folder.settings.exists():
        raise UserError(f"{folder.settings}: there is a server here already")
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.root.chmod(0o700)
    write_authority(folder.authority, folder.authority_key)
    names = list(dict.fromkeys([*settings.names, "localhost", "127.0.0.1"]))
    write_server(folder.certificate, folder.key, names, folder.authority, folder.authority_key)
    write_secret(folder.secret)
    write_flower_connection(folder, settings)
    shown = ", ".join(json.dumps(n) for n in settings.names)
    text = f'host = "{settings.host}"\nport = {settings.port}\nnames = [{shown}]\n'
    write_atomic(folder.settings, text.encode())
    paths = {"name": names[0], "port": settings.port, "root": folder.root}
    write_atomic(folder.root / "install" / "nginx.conf", NGINX.format(**paths).encode())
    service = unit("server", folder.root)
    write_atomic(folder.root / "install" / "forefed-server.service", service.encode())
    return folder


def read_server(root: Path) -> tuple[ServerFolder, ServerSettings]:
    """The server of a folder.

    Raises:
        UserError: no server there, or mistakes in its settings.
    """
    folder = ServerFolder(root.resolve())
    raw = read_toml(folder.settings, "server")
    return folder, parse(ServerSettings, raw, str(folder.settings))


def write_flower_connection(folder: ServerFolder, settings: ServerSettings) -> None:
    """Flower's configuration, in the server's folder instead of the user's home."""
    text = (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "127.0.0.1:{settings.port}"\nroot-certificates = "{folder.authority}"\n'
    )
    write_atomic(folder.root / "flwr" / "config.toml", text.encode(), 0o600)


def flwr(folder: ServerFolder, *arguments: str) -> dict[str, Any]:
    """One of Flower's commands, with its answer as JSON.

    Raises:
        UserError: it failed; with what it said.
    """
    command = [tool("flwr"), *arguments, "--format", "json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **folder.environment()}
    )
    try:
        answer = dict(json.loads(done.stdout[done.stdout.index("{") :]))
    except ValueError:
        answer = {}
    if done.returncode or not answer.get("success", True):
        said = answer.get("error-message") or done.stderr.strip() or done.stdout.strip()
        raise UserError(
            f"Flower refused '{' '.join(arguments[:2])}': {said[-600:]}\n"
            f"(does the server run? 'forefed server start {folder.root}')"
        )
    return answer


def admit(folder: ServerFolder, name: str, key: Path) -> None:
    """Register a site's public key under its name.

    Raises:
        UserError: no such file, or Flower refuses the key.
    """
    if not key.is_file():
        raise UserError(f"{key}: there is no such key; a site's is node.pub in its folder")
    answer = flwr(folder, "supernode", "register", str(key), CONNECTION, "--name", name)
    write_json(folder.sites, {**admitted(folder), name: str(answer["node-id"])})


def admitted(folder: ServerFolder) -> dict[str, str]:
    """The registered sites, and the numbers that Flower gave them."""
    return dict(json.loads(folder.sites.read_text())) if folder.sites.exists() else {}


def start_server(root: Path, say: Callable[[str], None]) -> None:
    """Run Flower's SuperLink and SuperExec until a signal ends them.

    Raises:
        UserError: no server there, or something that a new start does not mend.
    """
    need_flower()
    folder, settings = read_server(root)
    write_flower_connection(folder, settings)
    say(f"serving on {settings.host}:{settings.port}; logs in {folder.logs}")
    try:
        programs = folder.programs(settings.host, settings.port)
        supervise(programs, folder.logs, folder.environment(), say)
    except Stopped as error:
        raise UserError(str(error)) from None


def status_table(folder: ServerFolder) -> Table:
    """Sites and runs, as Flower knows them.

    Raises:
        UserError: the server does not answer.
    """
    table = Table("what", "number", "state")
    nodes = {n["node-id"]: n for n in flwr(folder, "supernode", "list", CONNECTION)["nodes"]}
    for name, number in admitted(folder).items():
        table.add_row(f"site {name}", number, nodes.get(number, {}).get("status", "not registered"))
    for run in flwr(folder, "list", CONNECTION)["runs"]:
        table.add_row("run", str(run["run-id"]), str(run["status"]))
    return table
