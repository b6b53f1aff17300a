"""Run in a process of its own by test_plugins.py: a run, its resumption, use and replay, and sites,
with nothing but a configuration that names what an installed package offers."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

from deployment import FakePost, connect_by, deployed, make_sites
from federation import Interrupted, StopAfter, World
from forefed import cli
from forefed.run import run
from forefed.run.rebuild import replay_log
from forefed.use.predict import predict

LION = "client.optimiser={kind='lion', lr=0.01}"


def main(world: World, out: Path) -> dict[str, object]:
    sets = ["strategy=fedlion", "codec=scalars", "directions.head_k=8", "server=lion"]
    whole = world.run(out, *sets, "name=whole")
    config = world.config(out, *sets, "name=stopped")
    try:
        run(config, watcher=StopAfter(1))
    except Interrupted:
        resumed = run(config, resume=True)
    connect = connect_by(FakePost(make_sites(world, out)))
    between = run(deployed(world, out, "strategy=fedavg", LION, "rounds=2"), connect=connect)
    return {
        "whole": whole.summary["digest"],
        "resumed": resumed.summary["digest"],
        "replayed": replay_log(whole.folder).digest,
        "predicted": str(next(iter(predict(whole.folder, ["w5 w6"])))),
        "listed": listed(),
        "heard": [json.loads(x)["replies"] for x in open(between.folder / "rounds.jsonl")],
    }


def listed() -> str:
    """`forefed list optimizers`, through the program's own entry point."""
    sys.argv = ["forefed", "list", "optimizers"]
    with redirect_stdout(io.StringIO()) as said, suppress(SystemExit):
        cli.main()
    return said.getvalue()


if __name__ == "__main__":
    out, *paths = map(Path, sys.argv[1:])
    print(json.dumps(main(World(*paths), out)))
