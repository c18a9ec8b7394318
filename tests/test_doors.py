"""The ways in: light commands, completion, connecting to BasicSR whenever it is imported, and errors in one place."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffir_sr import cli, devices, failures, progress
from diffir_sr.errors import InputError

HEAVY = ("torch", "basicsr", "cv2", "numpy", "PIL", "scipy", "pydantic", "yaml", "lmdb")


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["restor", "x"], ["completion", "bash"], ["restore", "--help"]]
)
def test_what_needs_no_network_imports_none(words):
    code = (
        "import sys\nfrom diffir_sr.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        f"sys.stderr.write(' '.join(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert not done.stderr.split("\n")[-1]


def test_a_misspelt_command_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["restor", "a.png"])
    assert ended.value.code == 2
    assert "unknown command 'restor'; did you mean 'restore'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_says_the_same_of_itself_in_the_list_and_in_full(command):
    listed = next(line for line in cli.diffir_parser("").format_help().splitlines() if line.split()[:1] == [command])
    full = next(line for line in cli.diffir_parser(command).format_help().splitlines() if line.split()[:1] == [command])
    assert listed == full


@pytest.mark.parametrize(
    ("line", "expected"), [("diffir re", "restore"), ("diffir restore --ti", "--tile"), ("basicsr tr", "train")]
)
def test_bash_completes(line, expected):
    program = line.split()[0]
    folder = Path(sys.executable).parent
    script = (
        f'eval "$({folder}/diffir completion bash)"; COMP_LINE="{line}"; COMP_POINT={len(line)}; COMP_TYPE=9; '
        f"COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}; _python_argcomplete {program}; "
        'echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert expected in done.stdout, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_name_both_programs(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "diffir" in script
    assert "basicsr" in script


BUILD = "build_network(dict(type='DiffIRS2', n_denoise_res=1, dim=8, num_blocks=[1, 1, 1, 1], heads=[1, 1, 1, 1]))"


@pytest.mark.parametrize(
    "imports",
    [
        "import diffir_sr\nimport basicsr",
        "import diffir_sr",
        "import diffir_sr.models.restoration_model",
        "import diffir_sr.data.pairs\nimport diffir_sr.models.diffir_models",
        "import diffir_sr.registration, diffir_sr.compat",
        "import diffir_sr, importlib\nassert importlib.util.find_spec('basicsr')",
    ],
)
def test_basicsr_knows_our_names_in_whatever_order_things_are_imported(imports):
    output = python(
        f"{imports}\nfrom basicsr.archs import build_network\nprint(type({BUILD}).__name__)\n"
        "from basicsr.utils.registry import MODEL_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY\n"
        "print('DiffIRS2Model' in MODEL_REGISTRY, 'PairedDataset' in DATASET_REGISTRY.keys(), "
        "dict(iter(LOSS_REGISTRY))['KDLoss'])"
    )
    assert output.splitlines()[0] == "DiffIRS2"
    assert output.splitlines()[1].startswith("True True <class")


def test_importing_the_package_imports_nothing_heavy_and_keeps_its_public_names():
    output = python(
        f"import sys, diffir_sr\nprint([name for name in {HEAVY!r} if name in sys.modules])\n"
        "print(sorted(set(diffir_sr.__all__) - set(dir(diffir_sr))))\nprint(diffir_sr.load_restorer.__name__)"
    )
    assert output.splitlines() == ["[]", "[]", "load_restorer"]


# Errors


def crashing(monkeypatch, error):
    def run(args):
        raise error

    def add(commands):
        commands.add_parser("describe").set_defaults(run=run)

    monkeypatch.setattr("diffir_sr.weights_commands.add_describe_parser", add)
    return cli.main(["describe"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "x", "out/a.png"), "error: out/a.png: No space left on device; free disk space"),
        (OSError(errno.EROFS, "x", "a"), "error: a: Read-only file system; the file system is read-only"),
        (PermissionError(errno.EACCES, "x", "a", None, "b"), "error: a -> b: Permission denied; check the permissions"),
        (FileNotFoundError(errno.ENOENT, "x", b"a\xff"), "No such file or directory; check the name"),
        (OSError(errno.ENAMETOOLONG, "x", "a" * 300), "File name too long; choose a shorter name"),
        (MemoryError(), "error: out of memory; free memory"),
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "error: out of memory (CUDA out of memory.); free"),
        (UnicodeEncodeError("ascii", "a\u00e9", 1, 2, "x"), "'\u00e9' cannot be written in ascii"),
        (InputError("what: where"), "error: what: where\n"),
    ],
)
def test_refusals_of_the_machine_are_one_sentence(monkeypatch, capsys, error, expected):
    assert crashing(monkeypatch, error) == 1
    output = capsys.readouterr().err
    assert expected in output
    assert output.count("\n") == 1
    assert not list(Path().glob("diffir-crash*"))


def test_a_fault_of_the_program_is_reported_in_a_file_to_send(monkeypatch, capsys):
    assert crashing(monkeypatch, ZeroDivisionError("division by nothing")) == cli.CRASHED
    output = capsys.readouterr().err
    assert "ZeroDivisionError in test_doors.py, line" in output
    assert "Traceback" not in output
    (report,) = Path().glob("diffir-crash-*.txt")
    assert str(report.absolute()) in output
    text = report.read_text()
    for part in (
        "command: diffir describe",
        "division by nothing",
        "Traceback",
        f"torch {torch.__version__[:3]}",
        "in run",
    ):
        assert part in text


def test_a_report_goes_elsewhere_where_the_folder_takes_none(monkeypatch, tmp_path):
    monkeypatch.setattr(failures.Path, "cwd", lambda: tmp_path / "absent")
    monkeypatch.setattr(failures.tempfile, "gettempdir", lambda: str(tmp_path))
    assert failures.write_crash_report(ValueError("x"), ["diffir"]).parent == tmp_path


def test_a_pipe_that_nobody_reads_ends_quietly():
    code = "from diffir_sr.cli import main\nimport sys\nsys.exit(main(['options', 'list']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    output = process.stderr.read().decode()
    process.wait(60)
    assert output == ""


def test_a_name_that_the_terminal_cannot_show_does_not_end_the_work():
    code = "import sys\nfrom diffir_sr.cli import main\nsys.exit(main(['describe', 'caf\u00e9.pth']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=60
    )
    assert done.returncode == 1
    assert b"caf\\xe9.pth" in done.stderr


# Home folders


def test_home_is_expanded_and_unknown_users_are_names(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert cli.main(["options", "copy", "train_DiffIRS2_x4", "-o=~/mine"]) == 0
    assert (tmp_path / "home/mine/train_DiffIRS2_x4.yml").is_file()
    assert not Path("~").exists()
    assert cli.main(["describe", "~nobody-of-this-name.pth"]) == 1
    assert "~nobody-of-this-name.pth" in capsys.readouterr().err


# Devices


def test_devices_are_what_torch_reports(monkeypatch):
    assert devices.device_of("cpu").type == "cpu"
    assert devices.device_of("auto") == devices.default_device()
    for name in ("meta", "nonsense", "mps:7"):
        with pytest.raises(InputError, match=r"choose auto, cpu"):
            devices.device_of(name)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    assert devices.default_device().type == "mps"
    assert devices.device_of("mps").type == "mps"
    assert devices.widest_float(torch.device("mps")) == torch.float32
    with pytest.raises(InputError, match="'cuda': this machine has 0 of this kind; choose auto, cpu, mps"):
        devices.device_of("cuda")


# Progress


def test_bars_are_whole_lines_where_nobody_watches(monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    with open(tmp_path / "log", "w+") as log:
        with progress.progress_bar(total=3, unit="image", desc="work", file=log) as bar:
            for _ in range(3):
                bar.update()
            progress.tqdm.write("said meanwhile", file=log)
        log.seek(0)
        text = log.read()
    assert "\r" not in text
    assert text.endswith("\n")
    assert "said meanwhile\n" in text
    assert "3/3" in text.splitlines()[-1]


def test_short_work_draws_no_bar(tmp_path):
    with open(tmp_path / "log", "w+") as log:
        for _ in progress.progress_bar(range(5), file=log):
            pass
        log.seek(0)
        assert log.read() == ""


# JSON


def test_describe_as_json(tmp_path, capsys):
    from pictures import write_network

    file = write_network()
    assert cli.main(["describe", str(file), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["arch"] == "DiffIRS2"
    assert record["restores"] is True
    assert record["arguments"]["dim"] == 8
    assert record["numbers"] > 1000


COMMANDS_WITH_PATHS = [
    ["restore", "{}", "-o", "out"],
    ["restore", "p.png", "-o", "out", "-w", "{}"],
    ["restore", "p.png", "-o", "out", "-w", "inpaint.pth", "--mask", "{}"],
    ["evaluate", "{}", "{}", "--preset", "sr"],
    ["doctor", "data", "{}"],
    ["describe", "{}"],
    ["prepare", "lmdb", "{}", "-o", "x.lmdb"],
    ["options", "check", "{}"],
    ["bench", "{}"],
    ["ablate", "{}"],
]


@pytest.mark.parametrize("words", COMMANDS_WITH_PATHS, ids=lambda words: " ".join(words[:2]))
def test_a_name_that_begins_as_a_home_of_nobody_is_a_name_in_every_command(words, capsys):
    from pictures import photo, write_network

    Image.fromarray(photo(16)).save("p.png")
    write_network("inpaint.pth", task="inpaint", scale=1)
    code = cli.main([word.format("~nobody-of-this-name.png") for word in words])
    output = "".join(capsys.readouterr())
    assert code == 1
    assert "~nobody-of-this-name.png" in output
    assert not list(Path().glob("diffir-crash*"))
