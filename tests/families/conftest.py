"""`--measurements FILE`: what the tests of families measured, for docs/make_models.py.

A test's checkpoints (`harness.Checkpoint`) note what they measure; of tests that pass, it goes into FILE as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--measurements", metavar="FILE", help="Write what the tests of families measured, as JSON.")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("measurements") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Collector(Path(config.getoption("measurements"))))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.when == "call":
        made = [value for value in getattr(item, "funcargs", {}).values() if hasattr(value, "measured")]
        for checkpoint in made:
            if call.excinfo is None:
                item.user_properties += [("measured", fact) for fact in checkpoint.measured]
            checkpoint.measured.clear()


class _Collector:
    def __init__(self, path: Path) -> None:
        self.path, self.facts = path, list[Any]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.facts += [fact for name, fact in report.user_properties if name == "measured"]

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(self.facts) + "\n", encoding="utf-8")
