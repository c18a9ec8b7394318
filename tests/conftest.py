"""Shared set-up: importing the package repairs and registers BasicSR; few threads, since tests run in parallel."""

import signal

import pytest
import torch

import diffir_sr  # noqa: F401

torch.set_num_threads(1)

# What a shell starts in the background ignores Ctrl-C, and so would all processes of the tests of it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Every test runs in a folder of its own: runs write experiments/ and results/ where they are started."""
    monkeypatch.chdir(tmp_path)
