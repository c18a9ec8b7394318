"""Shared set-up: importing the package repairs and registers BasicSR; few threads, since tests run in parallel."""

import pytest
import torch

import diffir_sr  # noqa: F401

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Every test runs in a folder of its own: runs write experiments/ and results/ where they are started."""
    monkeypatch.chdir(tmp_path)
