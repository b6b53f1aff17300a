"""Flower's process at an aggregator: one run of its own SuperLink that lasts as long as it does.

Its Grid reaches the sites below; on the socket where a site has its worker, it answers what comes
from the server above (deploy/aggregator.py). So an aggregator is Flower's own programs twice, and
nothing of Flower is changed for it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from forefed.deploy.aggregator import Aggregator
from forefed.deploy.aggregator_folder import AggregatorFolder
from forefed.deploy.flower_post import GridPost
from forefed.deploy.places import read_node
from forefed.deploy.worker import serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Answer until the process is ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    folder = AggregatorFolder(Path(str(context.run_config["folder"])))
    name = read_node(folder.up.root).name
    serve(folder.up.socket, Aggregator(name, GridPost(grid)))
