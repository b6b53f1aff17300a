"""The page and the terminal's tables: what they say, what they hide, and that nothing leaks in."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from forefed.core.errors import UserError
from forefed.models.objectives.classes import by_class
from forefed.report import pictures, plots, read_run, write_report
from forefed.report.clients import served
from forefed.report.content import terminal
from forefed.report.draw import DASHES, INK, MARKERS, SERIES, colour, look
from forefed.report.facts import (
    cost_rows,
    down_per_order,
    folded,
    partition_table,
    quality_rows,
    settings_rows,
    up_per_answer,
)
from forefed.report.headline import headline
from forefed.report.page import report_page, terminal_tables
from forefed.report.pictures import is_map, smoothing
from forefed.report.sections import protected
from report_records import LABELS, read_lines, record, write_lines

EVIL = '<script>alert("&")</script>'


class Page(HTMLParser):
    """Collects tags, ids and visible text, and checks that elements are closed in order."""

    void = frozenset({"meta", "br", "link", "img"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.references, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "srcset", "action", "data"):
                self.references.append(value)
            assert not name.startswith("on")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def shown(table, width=140):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal(table))
    return console.export_text()


def change(folder, file, change):
    lines = read_lines(folder / file)
    change(lines)
    write_lines(folder / file, lines)
    return folder


def test_the_page_is_one_file_without_scripts_or_references(tmp_path):
    runs = [read_run(record(tmp_path / name, lost=0.1, own=True)) for name in ("a", "b")]
    target = tmp_path / "out" / "report.html"
    write_report(runs, target)
    text = target.read_text()
    assert text == report_page(runs)  # the same runs give the same page
    page = Page(text)
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    inside = {reference for reference in page.references if reference.startswith("#")}
    outside = set(page.references) - inside
    assert all(reference.startswith("data:image/png") for reference in outside)
    assert len(page.ids) == len(set(page.ids)) and {r[1:] for r in inside} <= set(page.ids)
    used = set(re.findall(r"url\(#([^)]*)\)", text))
    assert used and used <= set(page.ids)
    assert page.tags.count("figure") == 6
    images = re.findall(r'<svg role="img" aria-label="([^"]*)"', text)
    assert len(images) == 6 and "a: 25.0 % to 77.3 %" in images[0]
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_everything_of_the_user_is_escaped(tmp_path):
    folder = record(
        tmp_path / "a",
        name=EVIL,
        rounds=2,
        labels=[EVIL, "$a$ and $b$", "日本"],
        settings={"data": {"path": EVIL}, EVIL: {"kind": EVIL}},
    )
    change(folder, "rounds.jsonl", lambda lines: lines[0].update(lost={EVIL: 2}))
    for runs in ([read_run(folder)], [read_run(folder), read_run(folder)]):
        text = report_page(runs)
        assert "<script" not in text and "&lt;script&gt;" in text
        page = Page(text)
        assert EVIL in page.text and "$a$ and $b$" in page.text and "日本" in page.text


def test_a_map_escapes_its_labels_too():
    partition = {"labels": [EVIL, "$a$", *"abcdefg"], "sizes": [9], "counts": [[1] * 9]}
    svg = pictures.partition(partition).svg
    assert "<script" not in svg and "&lt;script&gt;" in svg
    assert ">$a$<" in svg  # no formula


@pytest.mark.parametrize(
    ("top", "majority", "said"),
    [
        (0.8, 0.27, "points above the most frequent class, 27.0 %"),
        (0.5, 0.48, "no better than the most frequent class, 48.0 %"),
        (0.5, 0.7, "worse than the most frequent class, 70.0 %"),
    ],
)
def test_the_headline_is_honest_about_the_majority(tmp_path, top, majority, said):
    text = headline([read_run(record(tmp_path / "a", top=top, majority=majority))])
    assert text.startswith("Finished after 20 rounds. ") and said in text
    assert "before training it was 25.0 %" in text


def test_the_headline_mentions_a_better_past(tmp_path):
    folder = record(tmp_path / "a", rounds=4)
    change(folder, "evaluations.jsonl", lambda lines: lines[1].update(accuracy=0.95))
    assert "It had been better: 95.0 % at round 2." in headline([read_run(folder)])


def test_the_headline_of_language_models_and_of_unfinished_runs(tmp_path):
    text = headline([read_run(record(tmp_path / "lm", lm=True))])
    assert (
        "2.720 bits per byte on 2,000 test tokens, 21.8 % less than the 3.480 before training"
        in text
    )
    text = headline([read_run(record(tmp_path / "going", rounds=5, planned=40))])
    assert text.startswith("Not finished: 5 of 40 rounds are recorded.") and "at round 4" in text
    assert "most frequent class, 27.0 %" in text
    lost = record(tmp_path / "nan", rounds=2, lm=True)
    change(lost, "evaluations.jsonl", lambda lines: lines[-1].update(bits_per_byte=None))
    assert "diverged" in headline([read_run(lost)])


def test_a_comparison_says_what_chance_explains_and_what_it_cost(tmp_path):
    near = [read_run(record(tmp_path / f"n{i}", top=0.80 + 0.01 * i)) for i in range(2)]
    assert "neither is shown to be better" in headline(near)
    dear = read_run(record(tmp_path / "dear", top=0.9, up=420_000, down=9_000, forwards=9600.0))
    text = headline([near[0], dear])
    assert "dear ends with the best result" in text and "larger than what" in text
    assert "dear took 10 times the bytes and 3.0 times the forward-equivalents of n0." in text
    poor = read_run(record(tmp_path / "poor", top=0.26))
    assert "No better than the most frequent class: poor" in headline([dear, poor])


@pytest.mark.parametrize("state", ["started", "one round", "losses are null", "silent"])
def test_incomplete_runs_have_a_page(tmp_path, state):
    folder = record(tmp_path / "a", rounds=0 if state == "started" else 1, planned=9)
    if state == "started":
        (folder / "evaluations.jsonl").unlink()
    if state == "losses are null":
        change(folder, "rounds.jsonl", lambda lines: lines[0].update(loss=None))
    if state == "silent":
        nobody = {"replies": 0, "lost": {"offline": 8}, "bytes_up": 0, "bytes_down": 0}
        nobody["memory"] = {"peak_above_weights": None, "rss": 1}
        change(folder, "rounds.jsonl", lambda lines: lines[0].update(nobody))
    page = Page(report_page([read_run(folder)]))
    said = {
        "started": "Nothing to draw yet",
        "one round": "1 of 9, not finished",
        "losses are null": "Quality over rounds",
        "silent": "In 1 round nobody answered",
    }
    assert said[state] in page.text
    assert ("Training loss" in page.text) == (state in ("one round", "silent"))


def classes_of(confusion):
    true, said = np.sum(confusion, 1), np.sum(confusion, 0)
    cells = zip(np.diag(confusion).tolist(), true.tolist(), said.tolist(), strict=True)
    return [by_class(*each) for each in cells]


def test_a_run_answers_its_users_questions(tmp_path):
    """Did it learn, what is confused, who is served badly, may it be believed: a picture each."""
    confusion = [[50, 2, 0, 0], [9, 40, 0, 0], [0, 0, 30, 7], [0, 20, 0, 0]]
    details = {
        "confusion": confusion,
        "by_class": classes_of(confusion),
        "calibration": [[40.0, 0.4, 0.2], [60.0, 0.9, 0.8]],
    }
    baseline = {"closed_form_head": 0.71, "bag_of_words": None, "<b>": 0.1}
    folder = record(tmp_path / "a", rounds=4, own=True, details=details, baseline=baseline)
    page = Page(report_page([read_run(folder)]))
    text = page.text.replace("\u00a0", " ")
    for title in (
        "Did it learn?",
        "What does it confuse?",
        "Whom does it serve badly?",
        "May its probabilities be believed?",
        "What did it cost?",
        "What protects the clients?",
    ):
        assert title in page.text
    assert "Sci/Tech for Sports (20), Sports for World (9)" in page.text
    assert "Never found: Sci/Tech." in page.text and "81.6 %" in text  # recall of Sports
    assert "70 % sure, and right in 56 % of cases: it is surer than it should be." in text
    assert "the mean is 60.0 %; a tenth are at 30.0 % or worse, and the worst is at 20.0 %" in text
    assert "closed form head" in page.text and "71.0" in page.text and "<b>" in page.text
    assert "bag of words" not in page.text
    assert "points above closed form head, 71.0 %" in headline([read_run(folder)])
    assert page.tags.count("figure") == 9
    assert "note warning" not in report_page([read_run(folder)])
    poor = record(tmp_path / "b", rounds=4, top=0.4, details=details, baseline=baseline)
    assert "Worse than closed form head, 0.710" in report_page([read_run(poor)])
    write_lines(folder / "evaluations.jsonl", read_lines(folder / "evaluations.jsonl")[:-2])
    assert "What does it confuse?" not in report_page(
        [read_run(folder)]
    )  # details of a later round


def test_every_client_is_named_the_worst_first(tmp_path):
    folder = record(tmp_path / "a", rounds=4, own=True, clients=8, details={})
    each = [{"client": c, "n": 5 + c, "clients": q} for c, q in ((0, 0.9), (1, None), (2, 0.25))]
    (folder / "clients.json").write_text(json.dumps({"round": 4, "clients": each}))
    (table,) = served(read_run(folder)).tables
    assert [row[0] for row in table.rows] == [*"20134567"] and table.heads[-1] == "accuracy"
    assert [row[-2:] for row in table.rows[:3]] == [["7", "25.0 %"], ["5", "90.0 %"], ["6", "–"]]
    assert "Every client" in report_page([read_run(folder)])
    (folder / "clients.json").unlink()
    assert "Clients over the rounds" in report_page([read_run(folder)])
    plain = served(read_run(record(tmp_path / "b", rounds=1, clients=8)))
    assert "set evaluate.clients" in plain.texts[0] and len(plain.tables[0].rows) == 8


def test_what_the_start_took_is_counted(tmp_path):
    folder = record(tmp_path / "a", rounds=4, up=100, down=1000, forwards=50.0)
    start = {"bytes_up": 7000, "bytes_down": 30, "forwards": 9.0, "seconds": 2.0, "notes": [EVIL]}
    start["steps"] = {"kept": False, "rows": 50, "quality": [0.86, 0.8]}
    (folder / "start.json").write_text(json.dumps(start))
    run = read_run(folder)
    assert run.spent("bytes")[0] == 7030 and run.spent("bytes")[1] == 7030 + 8 * 1100
    assert run.spent("forwards")[4] == 9 + 4 * 50 and up_per_answer(run) == 100
    rows = dict(cost_rows([run]))
    assert rows["bytes up in all"] == "10.2 kB"
    assert rows["before round 1 (the solved head)"] == "7.00 kB up, 30 B down, 2 s"
    assert "with its solved head alone it was 25.0 %" in headline([run])
    said = "left out: 80.0 % with them on 50 held-out rows, 86.0 % without"
    assert dict(quality_rows([run]))["steps after the solved head"] == said
    assert "<script" not in report_page([run])


def test_what_protects_and_what_was_measured_beside_the_run(tmp_path):
    folder = record(tmp_path / "a", rounds=2)
    assert (
        "Nothing beside the rows' staying where they are"
        in protected([read_run(folder)], "a").texts[0]
    )
    spent = {"epsilon": 2.5, "text": f"(2.5, 1e-5) {EVIL}"}
    change(folder, "rounds.jsonl", lambda lines: lines[1].update(privacy=[spent]))
    for file, more in (
        ("environment.json", {"protects": [{"what": "secure sum", "text": EVIL}]}),
        ("summary.json", {"privacy": [spent]}),
        ("baselines.json", {"lines": [{"name": "tf-idf", "accuracy": 0.99, "about": ""}]}),
    ):
        path = folder / file
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**old, **more}))
    run = read_run(folder)
    section = protected([run], ["a"])
    assert [row[0] for row in section.tables[0].rows] == ["secure sum", "privacy ledger"]
    assert section.figures[0].alt.endswith("a: 2.5 to 2.5")
    assert run.baselines["tf-idf"] == 0.99 and "worse than tf-idf, 0.990" in run.shortfalls[0]
    assert "<script" not in report_page([run])


def test_many_classes_are_folded_and_mapped(tmp_path):
    names = [f"class {i}" for i in range(60)]
    confusion = np.eye(60, dtype=int).tolist()
    details = {"confusion": confusion, "by_class": classes_of(confusion)}
    folder = record(tmp_path / "a", rounds=1, labels=names, details=details)
    text = report_page([read_run(folder)])
    assert "<summary>60 classes one by one</summary>" in text
    assert "No test text is put into a wrong class." in text
    assert text.count("<text") < 400  # not a number per cell


def test_several_labels_and_numbers_have_their_own_pictures(tmp_path):
    labels = [{"examples": 3, "recall": 0.5, "precision": None, "f1": None}] * 4
    folder = record(tmp_path / "a", rounds=1, details={"by_class": labels})
    assert "What is found" in report_page([read_run(folder)])
    folder = record(tmp_path / "b", rounds=1, details={"scatter": [[1.0, 1.5], [2.0, 1.0]]})
    assert "Said and true" in report_page([read_run(folder)])


def test_a_torn_line_is_told(tmp_path):
    folder = record(tmp_path / "a", rounds=2, planned=3)
    with (folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3,')
    assert "1 line at the end of a record file was cut off" in report_page([read_run(folder)])


def test_unfit_requests_are_refused(tmp_path):
    lm = read_run(record(tmp_path / "lm", rounds=1, lm=True))
    classes = read_run(record(tmp_path / "classes", rounds=1))
    with pytest.raises(UserError, match=r"bits per byte and .* measures accuracy"):
        write_report([lm, classes], tmp_path / "x.html")
    with pytest.raises(UserError, match="at least one run"):
        write_report([], tmp_path / "x.html")
    with pytest.raises(UserError, match="is a folder"):
        write_report([lm], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report([lm], tmp_path / "file" / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_only_differing_settings_stand_outside_the_fold(tmp_path):
    runs = [
        read_run(record(tmp_path / "a", rounds=1)),
        read_run(record(tmp_path / "b", rounds=1, settings={"codec": {"kind": "dense", "x": 1}})),
    ]
    differing, same = folded(settings_rows(runs), ["a", "b"], "settings")
    assert differing.rows == [("codec.kind", "scalars", "dense"), ("codec.x", "–", "1")]
    assert not differing.folded and same.folded.endswith("settings that all runs share")
    assert "data.max_length" in [row[0] for row in same.rows]


def test_results_are_the_records_numbers(tmp_path):
    folder = record(tmp_path / "a", rounds=4, up=100, down=1000, forwards=50.0)
    change(folder, "rounds.jsonl", lambda lines: lines[0].update(
        lost={"crash": 3}, replies=5, bytes_up=500))  # fmt: skip
    run = read_run(folder)
    assert up_per_answer(run) == (500 + 3 * 800) / 29 == 100
    assert down_per_order(run) == 1000
    rows = dict([*quality_rows([run]), *cost_rows([run])])
    assert rows["bytes up in all"] == "2.90 kB" and rows["forward-equivalents"] == "200"
    assert rows["answers lost"] == "3 of 32 (crash 3)"
    assert rows["local steps skipped"] == "1 of 256"
    assert rows["final accuracy"].endswith("77.3 % (75.4 to 79.0)")
    text = shown(terminal_tables([run])[1])
    assert all(value in text for value in rows.values())


def test_the_terminal_shows_names_as_they_are(tmp_path):
    run = read_run(record(tmp_path / "a", rounds=1, name="[red]x[/red]", labels=["[b]", "c"]))
    assert "[red]x[/red]" in shown(terminal_tables([run])[1])
    assert "[b]" in shown(partition_table(run.partition))


def test_the_partition_table_goes_from_the_largest_to_the_smallest(tmp_path):
    partition = read_run(record(tmp_path / "a", rounds=1, clients=40)).partition
    text = shown(partition_table(partition))
    found = re.findall(r"^ +(\d+) +(\d+) ", text, re.MULTILINE)
    assert all(partition["sizes"][int(client)] == int(size) for client, size in found)
    rows = [int(size) for _, size in found]
    assert len(rows) == 12 and rows == sorted(rows, reverse=True)
    assert rows[0] == max(partition["sizes"]) and rows[-1] == min(partition["sizes"])
    assert text.count("█") > 24 and "█" * 25 not in text and "12 of 40 clients" in text
    empty = {"kind": "iid", "clients": 2, "labels": [], "sizes": [3, 0], "counts": [[], []]}
    assert "smallest / median / largest client: 0 / 1.5 / 3" in shown(partition_table(empty))


def test_many_clients_or_labels_become_a_map():
    def partition(clients, labels):
        counts = [[i + 1] * labels for i in range(clients)]
        return {"labels": list(LABELS * 9)[:labels], "sizes": [sum(c) for c in counts],
                "counts": counts}  # fmt: skip

    assert not is_map(partition(40, 8)) and "<image" not in pictures.partition(partition(40, 8)).svg
    for clients, labels in ((41, 2), (3, 9)):
        assert is_map(partition(clients, labels))
        assert "<image" in pictures.partition(partition(clients, labels)).svg
    assert "<image" not in pictures.partition(partition(300, 0)).svg  # a language model's clients
    assert pictures.partition({"sizes": [], "labels": []}) is None


def test_a_wide_span_of_bytes_gets_a_logarithmic_axis():
    def drawn(*xs):
        curve = plots.Curve("a", [0.0, *xs], [0.5] * (len(xs) + 1))
        return plots.lines("k", "t", "c", [curve], plots.AXES["bytes"], plots.Axis("y")).svg

    alone, both = drawn(1e4, 3e4), drawn(1e2, 3e4)
    assert ">0 B<" in alone and ">0 B<" not in both
    assert ">10.0 kB<" in both


def test_runs_differ_by_more_than_colour():
    sheet = (Path(plots.__file__).parent / "templates" / "style.css").read_text()
    named = {**INK, **{f"c{i}": value for i, value in enumerate(SERIES)}}
    found = re.findall(r"--(\w+): (#\w+);", sheet)
    assert dict(found[: len(named)]) == named and [n for n, _ in found[len(named) :]] == [*named]
    for part in (0, 1):
        looks = {(colour(i), look(i)[part]) for i in range(32)}
        assert len(looks) == 32 == len(SERIES) * len(DASHES)
    assert len(MARKERS) == len(DASHES)
    assert all(look(i)[0] != look(i + 1)[0] for i in range(31) if (i + 1) % len(SERIES))
    assert smoothing(40) == 1 and smoothing(60) == 5 and smoothing(1000) == 50
