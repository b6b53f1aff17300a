"""``forefed site`` and ``forefed server`` without a network: folders, rights, refusals."""

from __future__ import annotations

import stat
import subprocess
import tomllib

import pytest

from commands import mistake
from deployment import FakePost, deployed, deployed_sets, make_sites, rehearsal
from federation import lines
from forefed.config.compat import DEPLOYED, check
from forefed.core.errors import UserError
from forefed.core.files import write_json
from forefed.deploy import places, runs
from forefed.deploy.connect import connect_by
from forefed.run import configure, run

CASES = {
    "deadline_s": ["deadline_s"],
    "data.task.labels": ["labels"],
    "data.task.range": ["data.task.kind=regression"],
    "engine.kind = 'auto'": ["engine.kind=auto"],
    "engine.emulate": ["strategy=spry", "engine.emulate=true"],
    "faults are": ["faults.crash=0.1"],
    "data.limit": ["data.limit=20"],
    "model.adapter": ["model.adapter=somewhere"],
    "evaluate.clients": ["evaluate.clients=2"],
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_deployment_cannot_do_is_refused_with_its_reason(world, tmp_path, case):
    sets = CASES[case]
    more = [s for s in sets if "=" in s]
    if "data.task.kind=regression" in more:
        base = [x for x in deployed_sets(world, tmp_path) if not x.startswith("data.task.labels")]
        config = configure(sets=[*base, *more])
    else:
        config = deployed(world, tmp_path, *more)
    if sets == ["deadline_s"]:
        config = config.model_copy(update={"deadline_s": None})
    if sets == ["labels"]:
        task = config.data.task.model_copy(update={"labels": None})
        data = config.data.model_copy(update={"task": task})
        config = config.model_copy(update={"data": data})
    with pytest.raises(UserError, match=case):
        check(config, deployed=True)


def test_every_reason_has_its_case(world, tmp_path):
    assert len(CASES) == len(DEPLOYED)
    check(deployed(world, tmp_path), deployed=True)


def test_a_rehearsal_and_a_deployment_are_not_mistaken_for_each_other(world, tmp_path):
    with pytest.raises(UserError, match="forefed server run"):
        check(deployed(world, tmp_path), deployed=False)
    with pytest.raises(UserError, match=r"partition\.names"):
        check(rehearsal(world, tmp_path), deployed=True)


def test_a_minimum_above_the_cohort_is_refused():
    with pytest.raises(UserError, match="cohort_min"):
        check(configure(sets=["cohort=3", "cohort_min=4"]))


def test_without_flower_the_remedy_is_named(forefed_command, monkeypatch, tmp_path):
    monkeypatch.setattr(places, "find_spec", lambda _: None)
    mistake(forefed_command("server", "init", tmp_path / "s"), "forefed[flower]")


def rights(folder):
    return {
        str(p.relative_to(folder)): stat.S_IMODE(p.stat().st_mode)
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.fixture
def made(forefed_command, world, tmp_path):
    """A server's and a site's folder."""
    pytest.importorskip("flwr")
    server, site = tmp_path / "server", tmp_path / "site"
    said = forefed_command("server", "init", server, "--port", 18999, "--name", "hub.example")
    assert said.status == 0, said
    arguments = ["--name", "north", "--data", world.texts, "--ca", server / "ca.crt"]
    said = forefed_command("site", "init", site, *arguments, "--server", "hub.example:443")
    assert said.status == 0 and "63 rows" in said.out and "node.pub" in said.out, said
    return server, site


def test_secrets_are_their_owners(made):
    server, site = made
    for folder, private in (
        (server, {"ca.key", "server.key", "superexec.secret"}),
        (site, {"node.key", "superexec.secret", "site.toml"}),
    ):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        found = rights(folder)
        assert all(found[name] == 0o600 for name in private)


def test_certificates_prove_the_server_to_its_sites(made):
    server, site = made
    command = ["openssl", "verify", "-verify_hostname", "hub.example", "-CAfile"]
    done = subprocess.run(
        [*command, site / "ca.crt", server / "server.crt"], capture_output=True, text=True
    )
    assert done.returncode == 0, done
    wrong = subprocess.run(
        [*command[:3], "other.example", "-CAfile", site / "ca.crt", server / "server.crt"],
        capture_output=True,
    )
    assert wrong.returncode != 0


def test_nothing_listens_on_other_than_loopback_unless_told_so(made):
    server, site = made
    settings = tomllib.loads((server / "server.toml").read_text())
    assert settings["host"] == "127.0.0.1"
    programs = places.ServerFolder(server).programs(settings["host"], settings["port"])
    programs += places.SiteFolder(site).programs("hub.example:443", 9094)
    for program in programs:
        words = list(program.command)
        hosts = [words[i + 1] for i, w in enumerate(words) if w == "--host"]
        assert hosts in ([], ["127.0.0.1"])
        if any("flower-" in w for w in words):
            assert "--superexec-auth-secret-file" in words
        if any(w.endswith(("superlink", "supernode")) for w in words):
            assert words[words.index("--isolation") + 1] == "process"


def test_nobody_is_told_anything(made):
    environment = places.ServerFolder(made[0]).environment()
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_HOME"].startswith(str(made[0]))


def test_the_proxy_lets_the_fleet_interface_through_and_nothing_else(made):
    text = (made[0] / "install" / "nginx.conf").read_text()
    assert "server_name hub.example;" in text
    assert text.count("proxy_pass") == 1 and "location /v1/fleet/ {" in text
    assert "location / {\n        return 403;" in text
    unit = (made[0] / "install" / "forefed-server.service").read_text()
    assert f'server start "{made[0]}"' in unit


def test_no_folder_is_made_twice(made, forefed_command, world):
    server, site = made
    before = {**rights(server), **rights(site)}
    mistake(forefed_command("server", "init", server), "there is a server here already")
    arguments = ["--name", "x", "--data", world.texts, "--ca", server / "ca.crt"]
    said = forefed_command("site", "init", site, *arguments, "--server", "h:1")
    mistake(said, "there is a site here already")
    assert {**rights(server), **rights(site)} == before


NO_AUTHORITY = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

MISTAKES = {
    "no data": (["--data", "nowhere.csv"], "nowhere.csv"),
    "no certificate": (["--ca", "nowhere.crt"], "nowhere.crt"),
    "a certificate that is none": (["--ca", "{none}"], "holds no certificate"),
    "a certificate of no authority": (["--ca", "{server}/server.crt"], "no authority's"),
    "a key for a certificate": (["--ca", "{server}/ca.key"], "holds no certificate"),
    "name": (["--name", "a b"], "name"),
    "name that is a folder": (["--name", ".."], "begins with a letter"),
    "name that is an option": (["--name=-x"], "begins with a letter"),
    "name with a colour": (["--name", "a[red]"], "letters, digits"),
    "name with a line break": (["--name", "a\n"], "letters, digits"),
    "name of 65 letters": (["--name", "a" * 65], "1 to 64"),
    "no name": (["--name", ""], "1 to 64"),
    "port": (["--port", "70000"], "port"),
    "port 0": (["--port", "0"], "port"),
    "server without a port": (["--server", "hub"], "host:port"),
    "server's port 0": (["--server", "hub:0"], "between 1 and 65535"),
    "server's port 70000": (["--server", "hub:70000"], "between 1 and 65535"),
    "server with a space": (["--server", "my hub:1"], "no name or address"),
    "server with a scheme": (["--server", "https://hub:1"], "no name or address"),
    "server that is half an address": (["--server", "10.0.0.999:1"], "no name or address"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_of_a_new_site(made, forefed_command, world, tmp_path, case):
    more, word = MISTAKES[case]
    (tmp_path / "none.crt").write_text(NO_AUTHORITY)
    more = [x.format(none=tmp_path / "none.crt", server=made[0]) for x in more]
    plain = ["--name", "x", "--data", world.texts, "--ca", made[0] / "ca.crt", "--server", "h:1"]
    folder = tmp_path / "new"
    mistake(forefed_command("site", "init", folder, *plain, *more), word)
    assert not folder.exists()


SERVER_MISTAKES = {
    "port 0": (["--port", "0"], "port"),
    "port 70000": (["--port", "70000"], "port"),
    "port -1": (["--port=-1"], "port"),
    "a name with a space": (["--name", "my hub"], "names.0"),
    "a name with a semicolon": (["--name", "hub;return"], "names.0"),
    "an empty name": (["--name", ""], "names.0"),
    "an interface with a space": (["--host", "0.0.0.0 "], "host"),
    "an interface with a quote": (["--host", 'a"'], "host"),
}


@pytest.mark.parametrize("case", SERVER_MISTAKES)
def test_mistakes_of_a_new_server(forefed_command, tmp_path, case):
    pytest.importorskip("flwr")
    more, word = SERVER_MISTAKES[case]
    mistake(forefed_command("server", "init", tmp_path / "new", *more), word)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ['a"b', "it's", "a\\b", "a;b", "a{b}", "a\nb", "$HOME"])
def test_a_folder_that_flower_cannot_name_is_refused(made, forefed_command, world, tmp_path, name):
    folder = tmp_path / name
    plain = ["--name", "x", "--data", world.texts, "--ca", made[0] / "ca.crt", "--server", "h:1"]
    for command in (["server", "init", folder], ["site", "init", folder, *plain]):
        mistake(forefed_command(*command), "choose one without quotes")
    assert not folder.exists()


def test_a_folder_that_is_a_file_is_named(forefed_command, world):
    pytest.importorskip("flwr")
    mistake(forefed_command("server", "init", world.texts), "this is a file")


def test_a_folder_with_blanks_keeps_its_name_for_systemd_and_nginx(forefed_command, tmp_path):
    pytest.importorskip("flwr")
    folder = tmp_path / "our 100% server"
    assert forefed_command("server", "init", folder, "--host", "::1").status == 0
    unit = (folder / "install" / "forefed-server.service").read_text()
    quoted = str(folder).replace("%", "%%")
    assert f'server start "{quoted}"' in unit and f'ReadWritePaths="{quoted}"' in unit
    assert f'ssl_certificate "{folder}/server.crt";' in (
        (folder / "install" / "nginx.conf").read_text()
    )
    flower = tomllib.loads((folder / "flwr" / "config.toml").read_text())
    assert flower["superlink"]["forefed"]["address"] == "[::1]:8443"


def test_where_nothing_is_the_remedy_is_named(forefed_command, tmp_path):
    pytest.importorskip("flwr")
    for what in ("site", "server"):
        mistake(forefed_command(what, "start", tmp_path), f"forefed {what} init")


def test_a_site_looks_at_its_data_again(made, forefed_command):
    said = forefed_command("site", "check", made[1])
    assert said.status == 0 and "63 rows" in said.out


def test_who_watches_a_run_outlives_the_servers_restart(world, tmp_path, monkeypatch):
    config, answers, said = deployed(world, tmp_path), iter(["gone", "gone", "back"]), []

    summary = {
        "status": "finished",
        "rounds": 3,
        "digest": "d" * 64,
        "baseline": {"majority": 0.5, "untrained": 0.25},
        "final": {"accuracy": 0.75, "n": 8, "low": 0.4, "high": 0.9},
    }

    def flower(*_: object) -> dict[str, object]:
        if next(answers) == "gone":
            raise UserError("the server does not answer")
        write_json(config.folder / "summary.json", summary)
        return {"runs": [{"status": "running"}]}

    monkeypatch.setattr(runs, "flwr", flower)
    monkeypatch.setattr(runs, "ASK_S", -1.0)
    monkeypatch.setattr(runs, "POLL_S", 0.0)
    ended = runs.follow(places.ServerFolder(tmp_path), config, "1", said.append)
    assert ended == summary
    assert [text.split(";")[0] for text in said] == [
        "the server does not answer",
        "finished: accuracy 0.750 (8 test texts",
        "to compare: the most frequent class 0.500, untrained 0.250",
        f"adapter: {config.folder / 'adapter'}   record: {config.folder}",
    ]


def test_who_watches_sees_quality_interval_and_baseline_of_every_round(world, tmp_path):
    config = deployed(world, tmp_path, "strategy=fedavg")
    result = run(config, connect=connect_by(FakePost(make_sites(world, tmp_path))))
    said = []
    runs.follow(places.ServerFolder(tmp_path), config, "1", said.append)
    tests = {line["round"]: line for line in lines(config.folder, "evaluations.jsonl")}
    base = result.summary["baseline"]["majority"]
    for number, text in enumerate(said[:4]):
        test = tests[number]
        assert text.startswith(f"round {number}: accuracy" if number else "untrained: accuracy")
        assert f"accuracy {test['accuracy']:.3f} (7 test texts; 95 %: {test['low']:.3f} to" in text
        assert f"the most frequent class {base:.3f}" in text
    assert said[4].startswith("finished: accuracy") and len(said) == 7


def test_a_run_that_trained_nothing_says_why(world, tmp_path):
    config, said = deployed(world, tmp_path), []
    why = {"status": "diverged", "reason": "the loss is no number since round 2"}
    ended = {**why, "digest": "", "rounds": 2, "final": {}, "baseline": {}}
    write_json(config.folder / "summary.json", ended)
    runs.follow(places.ServerFolder(tmp_path), config, "1", said.append)
    assert said == [f"ended as 'diverged': the loss is no number since round 2 ({config.folder})"]


def test_a_server_that_does_not_run_is_named(made, forefed_command):
    mistake(forefed_command("server", "status", made[0]), "does the server run?")


def test_accepted_changes_reach_the_run_at_the_server(world, tmp_path, monkeypatch):
    """From the command's options, by Flower's settings of a run, to ``forefed.run``."""
    pytest.importorskip("flwr")
    from types import SimpleNamespace

    from forefed.deploy import flower_server
    from forefed.deploy.places import ServerFolder

    config = deployed(world, tmp_path)
    config.folder.mkdir(parents=True)
    (config.folder / "config.json").write_text("{}")
    given, heard = [], []
    monkeypatch.setattr(runs, "flwr", lambda *words: given.append(words) or {"run-id": 7})
    monkeypatch.setattr(flower_server, "run", lambda config, **named: heard.append(named))
    place = ServerFolder(tmp_path / "server")
    with pytest.raises(UserError, match="goes with --resume"):
        runs.start_run(place, config, accept_changes=True)
    for accept in (False, True):
        assert runs.start_run(place, config, resume=True, accept_changes=accept) == "7"
        chosen = tomllib.loads(given[-1][-1].replace(" ", "\n"))
        app = tomllib.loads((place.apps / config.name / "app" / "pyproject.toml").read_text())
        assert chosen.keys() == app["tool"]["flwr"]["app"]["config"].keys()
        monkeypatch.chdir(tmp_path)
        flower_server.main(None, SimpleNamespace(run_config=chosen))
        assert (heard[-1]["resume"], heard[-1]["accept_changes"]) == (True, accept)


def test_a_system_without_sockets_of_files_is_told(forefed_command, monkeypatch, tmp_path):
    monkeypatch.setattr(places.sys, "platform", "win32")
    mistake(forefed_command("server", "init", tmp_path / "s"), "Linux or macOS", "forefed run")
