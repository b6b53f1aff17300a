"""``forefed site``, ``server``, ``aggregator`` and ``peer``: each command a few lines around a
function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forefed.core.commands import AcceptChanges
from forefed.core.terminal import console, printable

site = typer.Typer(no_args_is_help=True, help="Take part in a federation with your own rows.")
server = typer.Typer(no_args_is_help=True, help="Lead a federation of sites.")
aggregator = typer.Typer(
    no_args_is_help=True,
    help="""Stand between a server and sites of your own: you add up, the server sees your sums.

    Runs with channel.kind = 'partial_sums' end with the same bits as without you. Towards the
    server you are a node like a site; towards your sites you are a server ('forefed server admit',
    'status', 'revoke' and 'renew' take your folder). What your sites send, you see.
    """,
)
peer = typer.Typer(no_args_is_help=True, help="Train with others without a server.")
out = console()

Folder = Annotated[Path, typer.Argument(help="Folder with everything local to it.")]
ServerDir = Annotated[Path, typer.Option("--dir", help="The server's folder.")]


def say(text: str) -> None:
    """A line as it is: logs of a service are not folded, and paths are no markup."""
    out.print(printable(text), soft_wrap=True)


@site.command("init")
def site_init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="As the server's operator shall register it.")],
    server_address: Annotated[str, typer.Option("--server", help="host:port of the server.")],
    ca: Annotated[Path, typer.Option(help="The server's ca.crt.")],
    data: Annotated[Path | None, typer.Option(help="File or folder with this site's rows.")] = None,
    script: Annotated[
        Path | None,
        typer.Option(help="In its place: a script that trains, by forefed.hf.federate(trainer)."),
    ] = None,
    graph: Annotated[
        Path | None,
        typer.Option(
            help="In its place: a folder of 'forefed site graph', for a site without torch."
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Local port of this site's node.")] = 9094,
) -> None:
    """Make a site: its settings, its key pair, and a look at its data."""
    from forefed.deploy.site_folder import init_site

    made, about = init_site(folder, name, data, server_address, ca, port, script, graph)
    say(about)
    say(
        f"settings: {made.root / 'site.toml'}\n"
        f"send this public key to the server's operator: {made.public}"
    )


@site.command("check")
def site_check(folder: Folder) -> None:
    """Read the settings and the data, as the site will."""
    from forefed.deploy.places import read_node

    if (graph := read_node(folder).graph) is not None:
        from forefed.deploy.slim_site import check_slim

        say(check_slim(folder / graph))
        return
    from forefed.deploy.settings import read_site
    from forefed.deploy.site_folder import describe

    say(describe(read_site(folder)))


@site.command("graph")
def site_graph(
    config: Annotated[Path, typer.Argument(help="The run's settings, as the server has them.")],
    folder: Annotated[Path, typer.Argument(help="Gets graph, tokeniser and settings.")],
    data: Annotated[
        Path | None, typer.Option(help="The site's rows; without it the site adds rows.jsonl.")
    ] = None,
) -> None:
    """Write what a site without torch trains with, for one run (extra 'onnx')."""
    from forefed.config.config import configure
    from forefed.deploy.slim_folder import write_site

    write_site(configure(config), folder, data)
    say(f"{folder}: send it to the site, which takes it by 'forefed site init --graph'")


@site.command("start")
def site_start(folder: Folder) -> None:
    """Take part until stopped (Ctrl-C); whatever ends is started again."""
    from forefed.deploy.site_folder import start_site

    start_site(folder, say)


@site.command("renew")
def site_renew(
    folder: Folder,
    ca: Annotated[
        Path | None, typer.Option(help="The server's new ca.crt; without it: a new key pair.")
    ] = None,
) -> None:
    """Take the server's new certificate, or make a new key in the place of a revoked one."""
    from forefed.deploy.site_folder import renew_authority, renew_key

    if ca is not None:
        say(f"the server's certificate is believed until {renew_authority(folder, ca)}")
        return
    say(f"send this new public key to the server's operator: {renew_key(folder)}")


@server.command("init")
def server_init(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 8443,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="A name or address by which sites reach the server."),
    ] = None,
) -> None:
    """Make a server: its own certificates, a secret, and files for systemd and nginx."""
    from forefed.deploy.server_folder import init_server

    made = init_server(folder, {"host": host, "port": port, "names": names or ["localhost"]})
    say(f"give this file to every site: {made.authority}")


@server.command("start")
def server_start(folder: Folder) -> None:
    """Serve until stopped (Ctrl-C); whatever ends is started again."""
    from forefed.deploy.server_folder import start_server

    start_server(folder, say)


@server.command("admit")
def server_admit(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The site's name.")],
    key: Annotated[Path, typer.Argument(help="Its public key (node.pub).")],
) -> None:
    """Let a site in: its key may connect, and speaks for this name only."""
    from forefed.deploy.admission import admit
    from forefed.deploy.server_folder import read_server

    key_print = admit(read_server(folder)[0], name, key)
    say(f"{name} may connect with the key {key_print}")


@server.command("revoke")
def server_revoke(
    folder: Folder, name: Annotated[str, typer.Argument(help="The site's name.")]
) -> None:
    """Shut a site out, at once and for good: its key is never taken again."""
    from forefed.deploy.admission import revoke
    from forefed.deploy.server_folder import read_server

    revoke(read_server(folder)[0], name)
    say(f"{name} is shut out; another key of it may be admitted")


@server.command("renew")
def server_renew(folder: Folder) -> None:
    """A new certificate for the server, with the names in server.toml."""
    from forefed.deploy.certificates import end_of, read_certificate
    from forefed.deploy.server_folder import read_server, renew

    place, settings = read_server(folder)
    before = end_of(read_certificate(place.authority))
    new_authority = renew(place, settings)
    until = end_of(read_certificate(place.certificate))
    say(f"certificate until {until}; it is used when the server is started again")
    if new_authority:
        say(
            f"the authority's is new, too: give {place.authority} to every site before {before} "
            "('forefed site renew FOLDER --ca ca.crt')"
        )


@server.command("run")
def server_run(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file with partition.kind = 'sites'.")
    ] = None,
    folder: ServerDir = Path("server"),
    sets: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint, bit for bit.")
    ] = False,
    accept_changes: AcceptChanges = False,
) -> None:
    """Run a federation with the sites, and follow it. Ctrl-C leaves it running."""
    from forefed.config.config import configure
    from forefed.config.reveals import reveals
    from forefed.core.boundary import UNTRAINED
    from forefed.deploy.runs import follow, start_run
    from forefed.deploy.server_folder import read_server
    from forefed.run.summary import FINISHED

    place, _ = read_server(folder)
    chosen = configure(config, sets or (), {"out": str(place.runs)})
    say(reveals(chosen))
    number = start_run(place, chosen, resume, accept_changes)
    say(f"run {number}: {chosen.folder}")
    ended = follow(place, chosen, number, say)
    if ended is not None and ended["status"] != FINISHED:
        raise typer.Exit(UNTRAINED)


@server.command("stop")
def server_stop(
    folder: Folder, number: Annotated[str, typer.Argument(help="As 'status' shows it.")]
) -> None:
    """End a run; its finished rounds are kept, and --resume goes on from there."""
    from forefed.core.errors import UserError
    from forefed.deploy.server_folder import CONNECTION, flwr, read_server

    if not number.isdecimal():
        raise UserError(f"{number!r}: no number of a run; 'forefed server status' shows them")
    flwr(read_server(folder)[0], "stop", number, CONNECTION)
    say(f"run {number} stopped")


@server.command("status")
def server_status(folder: Folder) -> None:
    """The certificate's end; who is connected, since when, with which key; and what runs."""
    from forefed.deploy.admission import status
    from forefed.deploy.server_folder import read_server

    for line in status(*read_server(folder)):
        say(line)


@aggregator.command("init")
def aggregator_init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="As the server's operator shall register it.")],
    server_address: Annotated[str, typer.Option("--server", help="host:port of the server above.")],
    ca: Annotated[Path, typer.Option(help="The ca.crt of the server above.")],
    host: Annotated[str, typer.Option(help="Interface to listen on, for your sites.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="On which your sites reach you.")] = 8444,
    reached: Annotated[
        list[str] | None,
        typer.Option("--reached-by", help="A name or address by which your sites reach you."),
    ] = None,
    node_port: Annotated[int, typer.Option(help="Local port of your own node.")] = 9093,
) -> None:
    """Make an aggregator: certificates for your sites, a key pair for the server above."""
    from forefed.deploy.aggregator_folder import init_aggregator

    below = {"host": host, "port": port, "names": reached or ["localhost"]}
    made = init_aggregator(folder, below, name, server_address, ca, node_port)
    say(
        f"send this public key to the server's operator: {made.up.public}\n"
        f"give this file to every site below: {made.server.authority}\n"
        f"let them in: forefed server admit {made.root} NAME node.pub"
    )


@aggregator.command("start")
def aggregator_start(folder: Folder) -> None:
    """Add up until stopped (Ctrl-C); whatever ends is started again."""
    from forefed.deploy.aggregator_folder import start_aggregator

    start_aggregator(folder, say)


@peer.command("init")
def peer_init(
    folders: Annotated[
        list[Path], typer.Argument(help="Folder of a peer, named as the peer; or of several.")
    ],
    data: Annotated[str, typer.Option(help="Its rows; {name} stands for the peer's name.")],
    config: Annotated[Path, typer.Option(help="TOML file with the run's settings.")],
    address: Annotated[
        str, typer.Option(help="host:port by which others reach it; of several the first's.")
    ] = "127.0.0.1:7101",
) -> None:
    """Make a peer: its settings, its key, and NAME.peer for the others.

    Several folders at once know each other already, to try a run on one machine.
    """
    from forefed.deploy.peer_folder import init_peers

    made = init_peers(folders, data, config, address)
    for folder in made:
        (card,) = folder.root.glob("*.peer")
        say(f"{folder.settings}; give this file to every other peer: {card}")


@peer.command("know")
def peer_know(
    folder: Folder,
    files: Annotated[list[Path], typer.Argument(help="NAME.peer of the others.")],
) -> None:
    """Take other peers' files; prints a fingerprint that all owners compare, by telephone."""
    from forefed.deploy.peer_folder import know

    say(f"all known peers: {know(folder, files)}")


@peer.command("start")
def peer_start(folder: Folder) -> None:
    """Take part until the run is over (Ctrl-C stops it; the same command goes on)."""
    from forefed.deploy.peer import start_peer

    start_peer(folder.resolve(), say)
