"""Which groups of tests ran and which were left out, as one line at the end; conftest.py takes its hooks from here.

With ``--none-left-out`` whatever a ComfyUI or browser test lacks is named before the first test, and a test that would
be skipped fails.
"""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Generator
from typing import Any

import comfy_server
import frontends
import pytest

CORE = "core"  # the tests without a mark
GROUPS = (CORE, "comfyui", "browser", "gpu", "slow")
FIRST = ("slow", "gpu", "browser", "comfyui")  # where a test has several marks, it belongs to the first of these
TARGETS = {"comfyui": "make test-comfyui", "browser": "make test-comfyui", "slow": "make test-slow"}
WIDTH, REASONS = 110, 3  # characters of a reason, and how many of them are told

_group_of = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--none-left-out", action="store_true", help="fail where a test would be skipped")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_group_of] = {}


def pytest_itemcollected(item: pytest.Item) -> None:
    group = next((mark for mark in FIRST if item.get_closest_marker(mark)), CORE)
    item.config.stash[_group_of][item.nodeid] = group


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.getoption("none_left_out"):
        return
    groups = {session.config.stash[_group_of][item.nodeid] for item in session.items}
    lacks = [comfy_server.missing()] if groups & {"comfyui", "browser"} else []
    if "browser" in groups:
        lacks += [frontends.missing_tool(), *map(frontends.missing_version, frontends.versions())]
    if any(lacks):
        raise pytest.UsageError("\n".join(filter(None, lacks)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.config.getoption("none_left_out") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"left out: {reason(report)}"
    return report


def reason(report: Any) -> str:
    """Why a test was skipped, without what pytest puts before it."""
    told = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return textwrap.shorten(told.removeprefix("Skipped: "), WIDTH, placeholder=" ...")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(summary(terminalreporter.stats, config.stash[_group_of]))


def summary(stats: dict[str, list[Any]], group_of: dict[str, str]) -> str:
    """The line: each group with how many of its tests ran, and how many were left out for what.

    Args:
        stats: the reports of pytest's terminal reporter by their category.
        group_of: the group of each collected test by its id; what is not in it failed to be collected.
    """
    ran: dict[str, set[str]] = defaultdict(set)
    out: dict[str, Counter[str]] = defaultdict(Counter)
    for category in ("passed", "failed", "error", "xfailed", "xpassed"):
        for report in stats.get(category, []):
            ran[group_of.get(report.nodeid, CORE)].add(report.nodeid)
    for report in stats.get("skipped", []):
        out[group_of.get(report.nodeid, CORE)][reason(report)] += 1
    for item in stats.get("deselected", []):
        group = group_of.get(item.nodeid, CORE)
        out[group]["not asked for" + (f": {TARGETS[group]}" if group in TARGETS else "")] += 1
    return "Test groups: " + "; ".join(told(group, len(ran[group]), out[group]) for group in GROUPS)


def told(group: str, ran: int, out: Counter[str]) -> str:
    if not ran and not out:
        return f"{group} LEFT OUT (none collected)"
    why = ", ".join(f"{count}: {text}" for text, count in out.most_common(REASONS))
    why += ", ..." if len(out) > REASONS else ""
    if not ran:
        return f"{group} LEFT OUT ({why})"
    return f"{group} ran ({ran}; left out {why})" if out else f"{group} ran ({ran})"
