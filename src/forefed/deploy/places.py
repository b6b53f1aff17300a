"""The folders of a server and of a site: everything local to one of them, and what runs there."""

from __future__ import annotations

import os
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from forefed.core.errors import UserError
from forefed.core.settings import Settings, parse
from forefed.deploy.names import Address, Port, SiteName, with_port
from forefed.deploy.supervise import Pause, Program, tool

SITE = "site.toml"
SITE_FOLDER = "FOREFED_SITE"
"""Tells a script that a site has started where that site is."""
BAD_KEYS = frozenset({302, 303, 304, 602, 603, 604, 605, 606})
"""Exit codes of Flower that a new start does not mend: keys, certificates, paths, versions."""
REFUSED = {
    305: Pause(
        5.0,
        "the server does not let it in. After a crash that lasts up to a minute; otherwise it has "
        "not admitted this key",
    ),
    0: Pause(
        10.0,
        "it ended by itself, as it does when the server does not accept its signature: is this "
        "machine's clock right (at most 5 s ahead of the server's, 5 minutes behind)?",
    ),
}
"""Flower tells no reason. A node that was killed counts as connected until it has missed its
heartbeats."""


@dataclass(frozen=True)
class ServerFolder:
    """What ``forefed server init`` makes."""

    root: Path

    authority = property(lambda self: self.root / "ca.crt")
    authority_key = property(lambda self: self.root / "ca.key")
    certificate = property(lambda self: self.root / "server.crt")
    key = property(lambda self: self.root / "server.key")
    secret = property(lambda self: self.root / "superexec.secret")
    settings = property(lambda self: self.root / "server.toml")
    logs = property(lambda self: self.root / "logs")
    runs = property(lambda self: self.root / "runs")
    apps = property(lambda self: self.root / "apps")
    sites = property(lambda self: self.root / "sites.json")
    revoked = property(lambda self: self.root / "revoked.json")

    def environment(self) -> dict[str, str]:
        return environment(self.root)

    def programs(self, host: str, port: int) -> list[Program]:
        """The SuperLink, and the SuperExec that starts a run's process; both on this machine."""
        link = [
            *(tool("flower-superlink"), "--isolation", "process", "--enable-supernode-auth"),
            *("--host", host, "--port", str(port)),
            *("--ssl-ca-certfile", str(self.authority), "--ssl-certfile", str(self.certificate)),
            *("--ssl-keyfile", str(self.key), "--database", str(self.root / "state.db")),
            *("--superexec-auth-secret-file", str(self.secret)),
            "--disable-runtime-dependency-installation",
        ]
        executor = [
            *(tool("flower-superexec"), "--runtime-api-address", with_port(reachable(host), port)),
            *("--root-certificates", str(self.authority)),
            *("--superexec-auth-secret-file", str(self.secret)),
        ]
        return [
            Program("superlink", link, BAD_KEYS),
            Program("superexec", executor, BAD_KEYS),
        ]


@dataclass(frozen=True)
class SiteFolder:
    """What ``forefed site init`` makes."""

    root: Path

    authority = property(lambda self: self.root / "ca.crt")
    key = property(lambda self: self.root / "node.key")
    public = property(lambda self: self.root / "node.pub")
    secret = property(lambda self: self.root / "superexec.secret")
    socket = property(lambda self: self.root / "worker.sock")
    logs = property(lambda self: self.root / "logs")

    def environment(self) -> dict[str, str]:
        return {**environment(self.root), SITE_FOLDER: str(self.root)}

    def programs(
        self, server: str, port: int, script: Path | None = None, slim: bool = False
    ) -> list[Program]:
        """The warm worker, that of a site without torch, or a script that trains in its place; the
        SuperNode; and the SuperExec that starts a process per message, both with short pauses
        (flower_site.py).

        Process isolation here too: in the other mode Flower asks no secret of whoever fetches
        tasks from the node's port.
        """
        program = "slim_site" if slim else "start_worker"
        module = ["-m", f"forefed.deploy.{program}", str(self.root)]
        worker = [sys.executable, *(module if script is None else [str(self.root / script)])]
        node = [
            *(sys.executable, "-m", "forefed.deploy.flower_site", "flower-supernode"),
            *("--superlink", server, "--isolation", "process"),
            *("--root-certificates", str(self.authority)),
            *("--auth-supernode-private-key", str(self.key)),
            *("--superexec-auth-secret-file", str(self.secret)),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--node-config", f'socket="{self.socket}"'),
        ]
        executor = [
            *(sys.executable, "-m", "forefed.deploy.flower_site", "flower-superexec"),
            *("--runtime-api-address", f"127.0.0.1:{port}"),
            *("--insecure", "--superexec-auth-secret-file", str(self.secret)),
        ]
        return [
            Program("worker", worker, frozenset({2})),
            Program("supernode", node, BAD_KEYS, REFUSED),
            Program("superexec", executor, BAD_KEYS),
        ]


class NodeSettings(Settings):
    """The part of site.toml that it takes to start a node."""

    name: SiteName
    """As the server's operator registers it."""
    server: Address
    """host:port of the server."""
    port: Port = 9094
    """Of the node's own interface, on loopback only; another one for every site of a machine."""
    script: Path | None = None
    """A Python script that trains here, by ``forefed.hf.federate(trainer)``; a relative path is
    meant from this folder. It has its own rows and model, so no ``data`` is named then."""
    graph: Path | None = None
    """A folder that ``forefed site graph`` has written: then no torch is needed here."""


def read_node(root: Path) -> NodeSettings:
    """What of a site's settings it takes to start it; the worker reads them all.

    Raises:
        UserError: no site there, or mistakes in these settings.
    """
    raw = read_toml(root / SITE, "site")
    known = {k: v for k, v in raw.items() if k in NodeSettings.model_fields}
    return parse(NodeSettings, known, str(root / SITE))


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The settings of a server or a site.

    Raises:
        UserError: no such file, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except NotADirectoryError:
        raise UserError(f"{path.parent}: is a file; name the folder of the {what}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no {what} here; 'forefed {what} init' makes one") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def need_flower() -> None:
    """Raises UserError where Flower is not installed, and on a system without what it needs."""
    if sys.platform == "win32":
        raise UserError(
            "runs between machines need Linux or macOS (sockets of files, groups of processes); "
            "on Windows there are rehearsals: 'forefed run'"
        )
    if find_spec("flwr") is None:
        raise UserError("runs between machines need Flower: pip install 'forefed[flower]'")


def environment(root: Path) -> dict[str, str]:
    """For Flower's programs: nothing reported to anybody, nothing installed, all files in one
    folder, and a task fetched soon."""
    return {
        "FLWR_HOME": str(root / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }


def reachable(host: str) -> str:
    """Where this machine itself finds a server that listens on this interface."""
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host
