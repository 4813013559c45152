"""Settings for all tests, and the record of what model families were tried with."""

import json
from pathlib import Path

import pytest
from hypothesis import settings

from tests.families import FAMILIES

# Machines differ in speed, so no example has a deadline; the same examples every time, so a failure is a finding.
settings.register_profile("dattn", deadline=None, derandomize=True)
settings.load_profile("dattn")

SUPPORT = "support"


def pytest_addoption(parser):
    parser.addoption("--support", metavar="FILE", help="record in FILE what tests/test_families.py finds")


def pytest_configure(config):
    if config.getoption("--support") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(config.getoption("--support"))))


class Recorder:
    """Writes down, for every family and condition, that it works or why it cannot."""

    def __init__(self, path):
        self.path: Path = path
        self.found: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report):
        noted = dict(report.user_properties).get(SUPPORT)
        if noted is None or (report.when != "call" and report.passed):
            return
        family, condition = noted
        known = self.found.setdefault(family, {})
        if report.failed:
            known[condition] = "failed"
        elif report.skipped and known.get(condition) != "failed":
            known[condition] = report.longrepr[2].removeprefix(f"Skipped: {family}: ")
        else:
            known.setdefault(condition, "")

    def pytest_sessionfinish(self):
        """What this run did not try stays as it was on record."""
        old = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        record = {family: old.get(family, {}) | tried for family, tried in self.found.items()}
        record = {family: tried for family, tried in (old | record).items() if family in FAMILIES}
        self.path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@pytest.fixture
def noted(request, record_property):
    """Under ``--support``, which family and condition the test is about."""
    asked = request.node.callspec.params
    by_name = {"test_full_graph": "compile", "test_repeated_blocks": "compile_repeated_blocks"}
    condition = asked.get("condition") or by_name.get(request.node.originalname, "patterns")
    record_property(SUPPORT, [asked["family"], condition])
