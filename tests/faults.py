"""`make faults`: docs/FAULTS.md, written from the outcomes of the tests that show them.

A test carries its row: ``@fault("site: ClientApp killed", "mid-round", "one loss, 'crash'")``. The
outcome is what the test asserts; the page says of each row whether it came about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

HEAD = """\
# Faults

Made by `make faults`: every row is a test, its outcome is what the test asserts, and the day is
the last on which it was run with every point of its kills (`FOREFED_FAULTS=all`). "Same bits"
compares the final parameters with a run without the fault in which the same replies arrive. Rows
marked (real) kill, stop or misuse the real processes of three sites and a server with TLS on one
machine; the others need no network.

| fault | when | outcome | last run | test |
|---|---|---|---|---|
"""


def fault(what: str, when: str, outcome: str) -> pytest.MarkDecorator:
    """One row of the page."""
    return pytest.mark.fault(what=what, when=when, outcome=outcome)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", metavar="PAGE", help="write the table of faults to this page")


def pytest_configure(config: pytest.Config) -> None:
    if page := config.getoption("--faults"):
        config.pluginmanager.register(Table(Path(page)))


@dataclass
class Table:
    """Collects the rows of a session; those of tests that did not run now stay as they were."""

    page: Path
    rows: dict[str, str] = field(default_factory=dict)
    """By the test's name; a test that ran in several phases is told by its worst."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Iterator[None]:  # the generator's result is the report
        report: pytest.TestReport = yield  # type: ignore[misc]
        mark = item.get_closest_marker("fault")
        if mark is not None and (report.when == "call" or not report.passed):
            row, real = mark.kwargs, item.get_closest_marker("deploy") is not None
            outcome = row["outcome"] if report.passed else f"**{report.outcome}**"
            what = row["what"] + (" (real)" if real else "")
            name = f"`{item.path.stem}::{item.name}`"
            day = datetime.now(UTC).date()
            self.rows[name] = f"| {what} | {row['when']} | {outcome} | {day} | {name} |\n"
        return report  # type: ignore[return-value]

    def pytest_sessionfinish(self) -> None:
        rows = read(self.page) | self.rows
        text = HEAD + "".join(rows[name] for name in sorted(rows))
        self.page.write_text(text, encoding="utf-8")


def read(page: Path) -> dict[str, str]:
    """The rows of an earlier page, by the test's name."""
    if not page.exists():
        return {}
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    return {line.rsplit("|", 2)[1].strip(): line for line in lines if "::" in line}
