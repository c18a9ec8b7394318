"""Shared set-up: importing the package repairs and registers BasicSR; few threads, since tests run in parallel."""

import os
import signal

# Before torch is imported; the processes that tests start inherit both.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

import diffir_sr  # noqa: F401

torch.set_num_threads(1)

# What a shell starts in the background ignores Ctrl-C, and so would all processes of the tests of it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _one_thread():
    """Processes that tests fork would wait forever for threads that computed beside the parent's."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Every test runs in a folder of its own: runs write experiments/ and results/ where they are started."""
    monkeypatch.chdir(tmp_path)


# In CI every test runs: what is skipped there has lost a package or a program without anybody noticing. A graphics card
# cannot be installed, and a browser not by pip; what it shows is tested without one, too.
_skipped: dict[str, str] = {}


def pytest_collection_modifyitems(config, items):
    asked = {True: [], False: []}
    for item in items:
        asked[all(os.environ.get(mark.args[0]) == "all" for mark in item.iter_markers("long"))].append(item)
    config.hook.pytest_deselected(items=asked[False])
    items[:] = asked[True]


def _note_skip(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "CUDA" not in reason and "browser" not in reason:
            _skipped[report.nodeid] = reason


pytest_runtest_logreport = pytest_collectreport = _note_skip


def pytest_sessionfinish(session, exitstatus):
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    if in_ci and _skipped and not hasattr(session.config, "workerinput") and exitstatus in (0, 5):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        for name, reason in _skipped.items():
            terminalreporter.write_line(f"skipped in CI, which fails the run: {name}: {reason}", red=True)
