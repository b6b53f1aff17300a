"""An aggregator between a server and two of its three sites, in the real processes of this machine:
``make test-deploy``."""

from __future__ import annotations

import json
import signal

import pytest

from deployment import rehearsal
from forefed.run import run
from real import Federation, forefed, free_port, start

pytestmark = pytest.mark.deploy
BELOW = ("large", "main")


def test_two_sites_below_an_aggregator_end_with_the_bits_of_the_rehearsal(
    federation: Federation, tmp_path
):
    sums = ["strategy=fedavg", "channel=partial_sums"]
    alone = run(rehearsal(federation.world, tmp_path / "alone", *sums))
    for name in BELOW:
        federation.running[name].send_signal(signal.SIGTERM)
        federation.running[name].wait(60)
    east, port = federation.root / "east", free_port()
    forefed(
        *("aggregator", "init", east, "--name", "east", "--ca", federation.server / "ca.crt"),
        *("--server", f"127.0.0.1:{federation.port}", "--port", port),
        *("--node-port", free_port()),
    )
    forefed("server", "admit", federation.server, "east", east / "up" / "node.pub")
    started = {"east": start("aggregator", "start", east, log=federation.root / "east.out")}
    federation.until(
        lambda: forefed("server", "status", east, check=False).returncode == 0, pause=2.0
    )
    model = json.dumps(str(federation.world.bert))
    for name in BELOW:
        site = federation.root / f"below-{name}"
        place = ["--server", f"127.0.0.1:{port}", "--ca", east / "ca.crt", "--port", free_port()]
        forefed("site", "init", site, "--name", name, "--data", federation.files[name], *place)
        settings = site / "site.toml"
        settings.write_text(settings.read_text().replace('minilm = "minilm"', f"{model} = {model}"))
        forefed("server", "admit", east, name, site / "node.pub")
        started[name] = start("site", "start", site, log=federation.root / f"below-{name}.out")
    try:
        federation.until(
            lambda: forefed("server", "status", east).stdout.count("online") == 2, pause=3.0
        )
        federation.online(2)  # east, and the site that is not below it
        together = federation.run("two-levels", *sums)
        rounds = together.finish()
        assert all(line["replies"] == 3 for line in rounds)
        assert together.digest == alone.summary["digest"]
    finally:
        for process in started.values():
            process.send_signal(signal.SIGTERM)
        for process in started.values():
            process.wait(60)
        for name in BELOW:
            federation.start_site(name)
