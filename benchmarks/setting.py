"""Where a benchmark ran, as its result says it: the code and the machine."""

import os
import platform
import re
import subprocess
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def commit():
    """The commit, marked where the working copy differs from it."""
    return subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=REPO, text=True).strip()


def processor():
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return model[1] if model else platform.processor()


def machine():
    return f"{os.cpu_count()} cores, {processor()}"
