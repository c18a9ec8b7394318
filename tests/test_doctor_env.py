"""`diffir doctor env`: what it tells, and what it warns of."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from diffir_sr.cli import main
from diffir_sr.doctor import environment
from diffir_sr.doctor.environment import basicsr_facts, belongs_here, measure_disk
from diffir_sr.doctor.findings import Severity
from diffir_sr.errors import InputError
from diffir_sr.files.processes import available_cpus, memory_bytes


def package(folder):
    """A package basicsr in a folder, as a cloned repository has it."""
    path = Path(folder, "basicsr").resolve()
    path.mkdir(parents=True)
    (path / "__init__.py").touch()
    return path


def severities(facts):
    return [(fact.name, fact.severity) for fact in facts]


def test_everything_is_reported_with_values(capsys):
    code = main(["doctor", "env", "--json"])
    report = json.loads(capsys.readouterr().out)
    record = {fact["name"]: fact["value"] for fact in report["facts"]}
    assert code == report["exit_code"]
    assert {"python", "torch", "torchvision", "basicsr", "opencv-python", "numpy", "lmdb"} <= record.keys()
    assert {"cpu", "memory", "driver", "weights vgg16", "command diffir", "command basicsr"} <= record.keys()
    assert record["basicsr"].startswith("1.4.2, ")
    assert any("MiB/s" in value for name, value in record.items() if name.startswith("disk "))
    assert all(record.values())


def test_the_table_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(Path.cwd()))
    assert main(["doctor", "env"]) == 3
    out = capsys.readouterr().out
    assert "command diffir" in out
    assert "warning: not on PATH" in out
    assert "-> activate the environment" in out
    assert list(Path.cwd().iterdir()) == []  # what measured the disk is gone


def test_the_installed_release_is_fine():
    installed = package("site-packages")
    facts = list(basicsr_facts(installed, "1.4.2", installed, [str(installed.parent)]))
    assert severities(facts) == [("basicsr", None)]


def test_a_fork_that_hides_the_installed_package_is_an_error():
    installed, fork = package("site-packages"), package("clone")
    facts = list(basicsr_facts(fork, "1.4.2", installed, [str(fork.parent), str(installed.parent)]))
    assert severities(facts) == [("basicsr", Severity.ERROR)]
    assert str(fork) in facts[0].value
    assert str(installed) in facts[0].do


def test_a_fork_that_could_hide_it_is_a_warning():
    installed, fork = package("site-packages"), package("clone")
    facts = list(basicsr_facts(installed, "1.4.2", installed, [str(installed.parent), str(fork.parent)]))
    assert severities(facts) == [("basicsr", None), ("another basicsr", Severity.WARNING)]
    assert facts[1].value == str(fork)


@pytest.mark.parametrize("version", ["1.3.5", "1.4.2.1"])
def test_another_release_is_an_error(version):
    installed = package("site-packages")
    assert severities(basicsr_facts(installed, version, installed, [])) == [("basicsr", Severity.ERROR)]


def test_a_copy_that_was_never_installed_or_none_at_all_is_an_error():
    assert severities(basicsr_facts(package("clone"), None, None, [])) == [("basicsr", Severity.ERROR)]
    assert severities(basicsr_facts(None, None, None, [])) == [("basicsr", Severity.ERROR)]


def test_a_command_of_another_python_does_not_belong_here():
    for name, start, ours in (
        ("mine", f"#!{sys.executable}\nfrom diffir_sr.cli import main\n", True),
        ("elsewhere", "#!/elsewhere/bin/python\nfrom diffir_sr.cli import main\n", False),
        ("other", f"#!{sys.executable}\nfrom basicsr.train import main\n", False),
    ):
        Path(name).write_text(start)
        assert belongs_here(Path(name)) is ours
    assert not belongs_here(Path("absent"))


def test_small_shared_memory_is_a_warning(monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(environment.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: usage._replace(total=64 * 2**20, free=2**20))
    facts = {fact.name: fact for fact in environment._machine()}
    assert facts["shared memory"].severity is Severity.WARNING
    assert "--shm-size" in facts["shared memory"].do


def test_disk_speed_is_measured_and_nothing_stays():
    Path("data").mkdir()
    speed = measure_disk(Path("data"))
    assert speed.write_mib_s > 0
    assert speed.read_mib_s > 0
    assert 0 < speed.mib <= 64
    assert list(Path("data").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(capsys):
    with pytest.raises(InputError, match="cannot write to"):
        measure_disk(Path("absent"))
    assert main(["doctor", "env", "--folder", "absent"]) == 1
    assert "choose a writable folder" in capsys.readouterr().out


def test_the_machine_has_a_processor_and_memory():
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
    memory = memory_bytes()
    assert memory is None or memory > 2**27
