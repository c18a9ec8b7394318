"""Install basicsr 1.4.2 into the running Python, on Python 3.13 as well: `python scripts/install_basicsr.py`.

basicsr 1.4.2 exists as a source archive only, and installing that the plain way has two faults:

- Its setup.py reads the version with `exec(...)` in a function and then asks `locals()` for it. Since Python 3.13
  (PEP 667) `locals()` is a copy, so the installation ends with KeyError: '__version__'.
- It asks for torch at build time, which makes pip fetch and unpack a second torch that nothing uses.

So this calls pip with the caller's own settings (indexes, proxies, certificates), without build isolation, and lets
the build process, and no other, start with an `exec` that leaves its names with the caller as Python 3.12 did.
The packages that basicsr needs at run time are left to the installation of diffir_sr.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

WANTED = "basicsr==1.4.2"

# Python imports a module of this name at start-up from any folder on PYTHONPATH.
SITECUSTOMIZE = """\
import builtins
import sys

plain_exec = builtins.exec


def exec_where_called(code, globals=None, locals=None, **keywords):
    if globals is None:
        caller = sys._getframe(1)
        globals = caller.f_globals
        locals = caller.f_locals if locals is None else locals  # writes through to the caller, unlike locals()
    return plain_exec(code, globals, locals, **keywords)


builtins.exec = exec_where_called
"""


def main() -> int:
    """Install basicsr unless this Python has it already; the exit status is pip's."""
    if is_installed():
        return 0
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("wheel") is None:
        failed = pip("setuptools", "wheel")
        if failed:
            return failed
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
        return pip("--no-deps", "--no-build-isolation", "--use-pep517", WANTED, start_up=folder)


def is_installed() -> bool:
    """Whether exactly the wanted release is there."""
    name, version = WANTED.split("==")
    try:
        return importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def pip(*arguments: str, start_up: str = "") -> int:
    """Run `pip install` for this Python, with `start_up` first on PYTHONPATH; return its exit status."""
    environment = dict(os.environ)
    if start_up:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [start_up, environment.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
