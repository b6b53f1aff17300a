"""Flower's own simulator as another carrier: the same post, sites in Ray's processes, same bits."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from deployment import NAMES, STRATEGIES, deployed, rehearsal, site_settings, write_rows
from federation import World
from forefed.deploy.connect import connect_by
from forefed.deploy.site import Site
from forefed.run import run

pytest.importorskip("flwr")
pytest.importorskip("ray", reason="Flower's simulator needs Ray: pip install 'forefed[flower-sim]'")

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

from forefed.deploy.flower_post import GridPost
from forefed.deploy.flower_records import from_records, to_records

pytestmark = pytest.mark.deploy


@cache
def site(world: World, out: Path, name: str) -> Site:
    """As the warm worker: one for all messages of a process."""
    folder = out / "sites" / name
    folder.mkdir(parents=True, exist_ok=True)
    return Site(site_settings(world, name, write_rows(out / "rows")), folder)


def test_flowers_simulator_ends_with_the_bits_of_the_rehearsal(world, tmp_path):
    """All strategies in one simulation, as Ray takes longer to start than they to run."""
    patience = ("partition.join_s=600", "deadline_s=600")
    out = tmp_path / "b"
    configs = [deployed(world, out / name, *STRATEGIES[name], *patience) for name in STRATEGIES]
    server, client = ServerApp(), ClientApp()

    @server.main()
    def main(grid, context):
        for config in configs:
            run(config, connect=connect_by(GridPost(grid)))

    @client.train()
    def answer(message, context):
        from flwr.app import Message

        name = NAMES[int(context.node_config["partition-id"])]
        answered = site(world, out, name)(from_records(message.content))
        return Message(to_records(answered), reply_to=message)

    ray = {"num_cpus": 1, "include_dashboard": False}
    backend = {"client_resources": {"num_cpus": 1}, "init_args": ray}
    run_simulation(server, client, num_supernodes=len(NAMES), backend_config=backend)
    for config, (name, more) in zip(configs, STRATEGIES.items(), strict=True):
        alone = run(rehearsal(world, tmp_path / "a" / name, *more))
        summary = json.loads((config.folder / "summary.json").read_text())
        assert summary["digest"] == alone.summary["digest"], name
        assert summary["rounds"] == 3
