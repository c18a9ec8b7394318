"""Whether another process still runs, by which half-written files are told from those that nobody finishes."""

from __future__ import annotations

import os


def is_running(process: int) -> bool:
    """Whether a process of this number runs; where that cannot be asked without harm, it is taken to run."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)  # asks only: signal 0 is not sent
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
