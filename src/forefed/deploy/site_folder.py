"""A site's folder: made, looked at, and started."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from forefed.core.errors import UserError
from forefed.core.files import write_atomic
from forefed.core.settings import parse
from forefed.deploy.certificates import end_of, read_authority, write_key_pair, write_secret
from forefed.deploy.install import unit
from forefed.deploy.names import split_address, usable_folder
from forefed.deploy.places import SITE, NodeSettings, SiteFolder, need_flower, read_node
from forefed.deploy.supervise import Stopped, supervise
from forefed.deploy.worker import MAX_PATH

if TYPE_CHECKING:
    from forefed.deploy.settings import SiteSettings

TEMPLATE = """\
# What this site decides by itself. The server learns none of it, but memory where a run asks.
name = {name}
server = {server}
port = {port}          # of the node's own interface, on loopback
device = "cpu"
# memory = "4GB"       # what weights and a step may take here: for runs that give ranks by it

{rows}
[models]               # what may be trained; to the right what is loaded for it here
minilm = "minilm"
# smollm2 = "smollm2"

[policy]
# strategies = ["fedavg", "spry"]
# max_epochs = 5
# max_steps = 200
# max_rounds = 100
# min_examples = 20
# metrics = ["loss", "steps"]
# channels = ["secure_sum"]   # the server sees sums over sites, never this site's own update
# min_group = 5               # of sites in such a sum, at least
"""
ROWS = """\
[data.source]
kind = "files"
path = {}

# [data.columns]       # where they are called otherwise than in the task: text, label, ...
# text = "note"
"""
SCRIPT = """\
script = {}          # trains here: forefed.hf.federate(trainer)
"""


GRAPH = """\
# A site without torch. It takes part in the one run that its graph was written for.
name = {name}
server = {server}
port = {port}          # of the node's own interface, on loopback
graph = {graph}
"""


def init_site(
    root: Path,
    name: str,
    data: Path | None,
    server: str,
    authority: Path,
    port: int,
    script: Path | None = None,
    graph: Path | None = None,
) -> tuple[SiteFolder, str]:
    """A new site: settings, keys, and what its data looks like.

    Args:
        data: file or folder with its rows.
        script: what trains in the place of a worker, with rows of its own (``forefed.hf``).
        graph: a folder of ``forefed site graph``: a site without torch, which has its rows there.

    Raises:
        UserError: there is one already, not one of rows, script and graph, the data cannot
            be read, the certificate is none, or the path cannot be used.
    """
    need_flower()
    folder = SiteFolder(usable_folder(root))
    path = folder.root / SITE
    if path.exists():
        raise UserError(f"{path}: there is a site here already")
    if len(str(folder.socket).encode()) > MAX_PATH:
        raise UserError(
            f"{folder.socket}: longer than the {MAX_PATH} bytes that the address of a socket may "
            "have; choose a shorter path"
        )
    if not authority.is_file():
        raise UserError(f"{authority}: there is no such certificate; the server's is its ca.crt")
    read_authority(authority)
    if sum(x is not None for x in (data, script, graph)) != 1:
        raise UserError(
            "a site has rows (--data), a script that has its own (--script), or a graph"
        )
    where = str((data or script or graph or root).resolve())
    raw: dict[str, object] = {"name": name, "server": server, "port": port}
    if graph is not None:
        from forefed.deploy.slim_site import check_slim

        parse(NodeSettings, {**raw, "graph": where})
        about = check_slim(graph)
    else:
        from forefed.deploy.settings import SiteSettings

        if data is not None:
            raw["data"] = {"source": {"kind": "files", "path": where}}
        if script is not None:
            raw["script"] = where
        about = describe(parse(SiteSettings, raw))
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.root.chmod(0o700)
    shutil.copyfile(authority, folder.authority)
    write_key_pair(folder.key, folder.public, name)
    write_secret(folder.secret)
    rows = (ROWS if script is None else SCRIPT).format(quoted(where))
    named = {"name": quoted(name), "server": quoted(server), "rows": rows}
    text = TEMPLATE.format(port=port, **named)
    if graph is not None:  # it reads neither a policy nor models: it takes part in one run
        text = GRAPH.format(port=port, graph=quoted(where), **named)
    write_atomic(path, text.encode(), 0o600)
    write_atomic(
        folder.root / "install" / "forefed-site.service", unit("site", folder.root).encode()
    )
    return folder, about


def describe(site: SiteSettings) -> str:
    """Files, rows and columns, as this site sees them; none of it leaves.

    Raises:
        UserError: the data cannot be read, or there is no such script.
    """
    from forefed.data.sources import Files

    if site.data is None:
        assert site.script is not None, "SiteSettings wants one of them"
        if not site.script.is_file():
            raise UserError(f"script: there is no '{site.script}'; name the script that trains")
        return f"{site.script} trains here, on rows of its own"
    rows = site.data.source.load(None).rows
    where = site.data.source.path if isinstance(site.data.source, Files) else site.data.source.kind
    return f"{where}: {len(rows)} rows with the columns {', '.join(rows.column_names)}"


def start_site(root: Path, say: Callable[[str], None]) -> None:
    """Run the worker and Flower's node until a signal ends them.

    Raises:
        UserError: no site there, a certificate that has ended, or something else that a new start
            does not mend.
    """
    need_flower()
    folder = SiteFolder(root.resolve())
    site = read_node(folder.root)
    read_authority(folder.authority)
    say(f"{site.name} takes part at {site.server}; logs in {folder.logs}")

    def told(text: str) -> None:
        say(text)
        if text.startswith("supernode ") and (reason := distrust(site.server, folder.authority)):
            say(reason)

    if reason := distrust(site.server, folder.authority):
        say(reason)
    try:
        slim = site.graph is not None
        programs = folder.programs(site.server, site.port, site.script, slim)
        supervise(programs, folder.logs, folder.environment(), told)
    except Stopped as error:
        raise UserError(str(error)) from None


def distrust(server: str, authority: Path, patience_s: float = 5.0) -> str:
    """Why the server's certificate is not believed; "": it is, or nobody answers there."""
    host, port = split_address(server)
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with (
            socket.create_connection((host, port), patience_s) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return (
            f"{server}: the server's certificate is not believed ({error.verify_message}); its "
            "operator can renew it ('forefed server renew'), and this site goes on asking"
        )
    except OSError:
        return ""


def renew_authority(root: Path, authority: Path) -> str:
    """Believe this certificate from the next start on; returns the day of its end.

    Raises:
        UserError: no site there, or the file is no certificate of an authority that is valid.
    """
    read_node(root)
    found = read_authority(authority)
    write_atomic(SiteFolder(root.resolve()).authority, authority.read_bytes())
    return end_of(found)


def renew_key(root: Path) -> Path:
    """A new key pair, for example after the former one was revoked; returns the public key's file.

    Raises:
        UserError: no site there.
    """
    site, folder = read_node(root), SiteFolder(root.resolve())
    write_key_pair(folder.key, folder.public, site.name)
    return folder.public


def quoted(text: str) -> str:
    """As a TOML string."""
    return json.dumps(text, ensure_ascii=False)
