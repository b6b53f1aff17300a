"""A server's folder: made, started, its certificates renewed; and Flower's commands there.

Without torch, as the process that looks after the others shall be small.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forefed.core.errors import UserError
from forefed.core.files import write_atomic
from forefed.core.settings import Settings, parse
from forefed.deploy.certificates import (
    SERVER_DAYS,
    days_left,
    end_of,
    read_certificate,
    write_authority,
    write_secret,
    write_server,
)
from forefed.deploy.install import NGINX, unit
from forefed.deploy.names import HostName, Port, usable_folder, with_port
from forefed.deploy.places import ServerFolder, need_flower, reachable, read_toml
from forefed.deploy.supervise import Stopped, supervise, tool

CONNECTION = "forefed"  # the name of our server in Flower's own configuration
SOON = 60  # days before a certificate's end from which every start says so


class ServerSettings(Settings):
    """server.toml: where the server listens."""

    host: HostName = "127.0.0.1"
    """The interface to listen on. Others than loopback need a firewall that lets nothing but
    /v1/fleet through; a reverse proxy does (install/nginx.conf)."""
    port: Port = 8443
    names: tuple[HostName, ...] = ("localhost", "127.0.0.1")
    """Names and addresses by which sites reach the server; they stand in its certificate, which
    'forefed server renew' writes anew."""

    def all_names(self) -> list[str]:
        """Of the certificate, with those by which this machine reaches its own server."""
        own = [reachable(self.host), "localhost", "127.0.0.1"]
        return list(dict.fromkeys([*self.names, *own]))


def init_server(root: Path, raw: Mapping[str, object]) -> ServerFolder:
    """A new server: certificates, secret, settings, and the units and proxy to install.

    Raises:
        UserError: there is one already, or settings that no server can have.
    """
    need_flower()
    folder = ServerFolder(usable_folder(root))
    settings = parse(ServerSettings, dict(raw))
    if folder.settings.exists():
        raise UserError(f"{folder.settings}: there is a server here already")
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.root.chmod(0o700)
    write_authority(folder.authority, folder.authority_key)
    names = settings.all_names()
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
    own = with_port(reachable(settings.host), settings.port)
    text = (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "{own}"\nroot-certificates = "{folder.authority}"\n'
    )
    write_atomic(folder.root / "flwr" / "config.toml", text.encode(), 0o600)


def flwr(folder: ServerFolder, *arguments: str) -> dict[str, Any]:
    """One of Flower's commands, with its answer as JSON.

    Raises:
        UserError: it failed, with what it said; or the server's certificate has ended.
    """
    check_certificates(folder)
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


def renew(folder: ServerFolder, settings: ServerSettings) -> bool:
    """A new certificate for the names in server.toml; the authority's, too, where it would end
    before that one. Its key stays, so sites believe the server with the former ca.crt until that
    ends. Returns whether there is a new ca.crt.

    Raises:
        UserError: the authority's files cannot be read.
    """
    short = days_left(read_certificate(folder.authority)) <= SERVER_DAYS
    if short:
        write_authority(folder.authority, folder.authority_key)
    names = settings.all_names()
    write_server(folder.certificate, folder.key, names, folder.authority, folder.authority_key)
    return short


def check_certificates(folder: ServerFolder) -> list[str]:
    """What is to be said of certificates that end soon.

    Raises:
        UserError: one has ended, or cannot be read.
    """
    said = []
    for path in (folder.certificate, folder.authority):
        found = read_certificate(path)
        left, remedy = days_left(found), f"'forefed server renew {folder.root}' makes a new one"
        if left <= 0:
            raise UserError(
                f"{path}: this certificate ended on {end_of(found)}; {remedy}, and then start the "
                "server again"
            )
        if left <= SOON:
            said.append(f"{path} ends in {left:.0f} days, on {end_of(found)}; {remedy}")
    return said


def start_server(root: Path, say: Callable[[str], None]) -> None:
    """Run Flower's SuperLink and SuperExec until a signal ends them.

    Raises:
        UserError: no server there, certificates that have ended, or something else that a new
            start does not mend.
    """
    need_flower()
    folder, settings = read_server(root)
    write_flower_connection(folder, settings)
    for text in check_certificates(folder):
        say(text)
    say(f"serving on {with_port(settings.host, settings.port)}; logs in {folder.logs}")
    try:
        programs = folder.programs(settings.host, settings.port)
        supervise(programs, folder.logs, folder.environment(), say)
    except Stopped as error:
        raise UserError(str(error)) from None
