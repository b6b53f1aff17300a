"""An aggregator's folder: a server's, for its own sites, and in ``up`` a site's, for its server."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from forefed.core.errors import UserError
from forefed.core.files import is_locked, write_atomic
from forefed.core.settings import parse
from forefed.deploy.certificates import read_authority, write_key_pair, write_secret
from forefed.deploy.install import unit
from forefed.deploy.names import usable_folder, with_port
from forefed.deploy.places import (
    SITE,
    NodeSettings,
    ServerFolder,
    SiteFolder,
    need_flower,
    read_node,
)
from forefed.deploy.runs import write_app
from forefed.deploy.server_folder import (
    CONNECTION,
    check_certificates,
    flwr,
    init_server,
    read_server,
    write_flower_connection,
)
from forefed.deploy.site_folder import distrust, quoted
from forefed.deploy.supervise import Program, Stopped, supervise
from forefed.deploy.worker import MAX_PATH

TEMPLATE = """\
# Towards the server above; ../server.toml is for the sites below.
name = {name}
server = {server}
port = {port}          # of the node's own interface, on loopback
"""


BEGINS_S = 120.0
"""In which the relay begins to answer."""
LOOK_S = 1.0


@dataclass(frozen=True)
class AggregatorFolder:
    """What ``forefed aggregator init`` makes."""

    root: Path

    server = property(lambda self: ServerFolder(self.root))
    up = property(lambda self: SiteFolder(self.root / "up"))
    number = property(lambda self: self.root / "relay-run")
    """File with Flower's number of the run that answers."""

    def programs(self, node: NodeSettings) -> list[Program]:
        """The SuperLink and the SuperExec for the sites below; the relay between both sides; the
        SuperNode and its SuperExec towards the server above."""
        _, settings = read_server(self.root)
        below = self.server.programs(settings.host, settings.port)
        _, supernode, executor = self.up.programs(node.server, node.port)
        relay = Program(
            "relay", [sys.executable, "-m", "forefed.deploy.start_aggregator", str(self.root)]
        )
        above = self.up.environment()
        return [
            *below,
            relay,
            replace(supernode, environment=above),
            replace(executor, name="superexec-up", environment=above),
        ]


def init_aggregator(
    root: Path, raw: Mapping[str, object], name: str, server: str, authority: Path, port: int
) -> AggregatorFolder:
    """A new aggregator: all that a server has for its sites, and a site's keys for its server.

    Args:
        raw: settings as a server's (``server.toml``).
        authority: the certificate of the server above.
        port: of its own node, on loopback.

    Raises:
        UserError: as for ``init_server``, or the server above cannot be named so.
    """
    need_flower()
    folder = AggregatorFolder(usable_folder(root))
    if len(str(folder.up.socket).encode()) > MAX_PATH:
        raise UserError(
            f"{folder.up.socket}: longer than the {MAX_PATH} bytes that the address of a socket "
            "may have; choose a shorter path"
        )
    if not authority.is_file():
        raise UserError(f"{authority}: there is no such certificate; the server's is its ca.crt")
    read_authority(authority)
    parse(NodeSettings, {"name": name, "server": server, "port": port})
    init_server(folder.root, raw)
    up = folder.up
    up.root.mkdir(mode=0o700)
    shutil.copyfile(authority, up.authority)
    write_key_pair(up.key, up.public, name)
    write_secret(up.secret)
    text = TEMPLATE.format(name=quoted(name), server=quoted(server), port=port)
    write_atomic(up.root / SITE, text.encode(), 0o600)
    install = folder.root / "install"
    (install / "forefed-server.service").unlink()
    service = unit("aggregator", folder.root)
    write_atomic(install / "forefed-aggregator.service", service.encode())
    return folder


def start_aggregator(root: Path, say: Callable[[str], None]) -> None:
    """Serve the sites below and take part above until a signal ends it.

    Raises:
        UserError: no aggregator there, a certificate that has ended, or something else that a new
            start does not mend.
    """
    need_flower()
    folder = AggregatorFolder(root.resolve())
    if not (folder.up.root / SITE).exists():
        raise UserError(f"{root}: no aggregator here; 'forefed aggregator init' makes one")
    server, settings = read_server(folder.root)
    node = read_node(folder.up.root)
    read_authority(folder.up.authority)
    write_flower_connection(server, settings)
    for text in check_certificates(server):
        say(text)
    say(
        f"{node.name} adds up for {node.server}; its sites reach it on "
        f"{with_port(settings.host, settings.port)}; logs in {server.logs}"
    )
    if reason := distrust(node.server, folder.up.authority):
        say(reason)
    try:
        supervise(folder.programs(node), server.logs, server.environment(), say)
    except Stopped as error:
        raise UserError(str(error)) from None


def relay(folder: AggregatorFolder) -> None:
    """Start the run that answers, and return when it has ended (it is started anew then).

    Raises:
        UserError: Flower refuses it; at first because the SuperLink is not there yet.
    """
    server: ServerFolder = folder.server
    if folder.number.exists():  # of a former start, which the SuperLink may still wait for
        before = folder.number.read_text(encoding="utf-8")
        try:
            flwr(server, "stop", before, CONNECTION)
        except UserError as error:
            print(f"run {before} is over: {error}", flush=True)
    app = server.apps / "relay" / "app"
    write_app(app, "aggregator")
    values = f'folder="{folder.root}"'
    number = str(flwr(server, "run", str(app), CONNECTION, "--run-config", values)["run-id"])
    write_atomic(folder.number, number.encode())
    lock = folder.up.socket.with_suffix(".lock")
    last = time.monotonic() + BEGINS_S
    while not is_locked(lock) and time.monotonic() < last:
        time.sleep(LOOK_S)
    while is_locked(lock):
        time.sleep(LOOK_S)
