"""Files are written whole or not at all, and two processes never write into one place."""

import builtins
import contextlib
import io
import json
import multiprocessing
import os
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import psutil
import pytest
from pictures import photo

from diffir_sr.cli import main
from diffir_sr.data.sources import open_source, read_manifest, read_meta
from diffir_sr.errors import InputError
from diffir_sr.files import processes
from diffir_sr.files.atomic import check_writable, partial_name, replacing, sweep, write_atomically, write_report
from diffir_sr.files.processes import hold, is_running

FORK = multiprocessing.get_context("fork")  # a new interpreter would take seconds to import all this


def hold_until(target, held, message, ended):
    """What another process does: hold a place, or find out that it cannot."""
    try:
        with hold(Path(target)):
            held.release()
            ended.wait()
    except InputError:
        message.release()


def put(path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(path, photo(96, 64))


@pytest.fixture
def dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("name", ["a.png", "b" * 251 + ".png", "ä" * 120 + ".mp4", "x.partial-1"])
def test_temporary_names_fit_every_file_system(name, tmp_path, dead):
    partial = partial_name(name, suffix=".mp4")
    assert len(os.fsencode(partial)) <= 120  # some encrypted file systems take 143 bytes
    write_atomically(b"1", tmp_path / name)
    left = tmp_path / partial.replace(str(os.getpid()), str(dead))
    left.touch()
    (tmp_path / partial).touch()  # of a process that runs
    assert sweep(tmp_path, of=f"other{name}"[:255]) == []
    assert sweep(tmp_path, of=name) == [left]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, partial])


def test_processes_of_one_number_on_two_machines_write_one_file(tmp_path, monkeypatch):
    path = tmp_path / "result.png"
    with replacing(path) as ours:
        ours.write_bytes(b"whole")
        monkeypatch.setattr("platform.node", lambda: "another")
        with replacing(path) as theirs:
            theirs.write_bytes(b"wh")  # and is killed there, or goes on
            assert ours.read_bytes() == b"whole"
            theirs.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there_and_names_the_result(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_report("before", path)

    def stopped():
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space") as caught:
        write_report("after", path)
    assert caught.value.filename == str(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "file").touch()
    for bad in (tmp_path, tmp_path / "file" / "a.txt"):
        with pytest.raises(OSError, match="directory") as caught:
            check_writable(bad)
        assert caught.value.filename == str(bad)
    check_writable(tmp_path / "new" / "folder" / "a.txt")
    assert not (tmp_path / "new").exists()


def test_content_and_name_are_on_the_disk_before_the_name_counts(tmp_path, monkeypatch):
    order = []
    sync, rename = os.fsync, os.replace
    place = "/proc/self/fd/{}".format
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append(os.readlink(place(handle))), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("rename"), rename(*paths)))
    write_atomically(b"1", tmp_path / "a")
    assert order == [str(tmp_path / partial_name("a")), "rename", str(tmp_path)]
    with replacing(tmp_path / "b") as partial:
        partial.mkdir()
        (partial / "inside").touch()
    folder = str(tmp_path / partial_name("b"))
    assert order[3:] == [f"{folder}/inside", folder, "rename", str(tmp_path)]


def test_a_lock_says_who_holds_it_and_death_releases_it(tmp_path):
    target = tmp_path / "out.lmdb"
    held, ended = FORK.Semaphore(0), FORK.Event()
    holder = FORK.Process(target=hold_until, args=(target, held, None, ended))
    holder.start()
    assert held.acquire(timeout=30)
    message = rf"out\.lmdb: another process is writing there: .*process {holder.pid} on .*since 2.*choose another name"
    with pytest.raises(InputError, match=message), hold(target):
        pass
    holder.kill()
    holder.join()
    with hold(target):
        assert json.loads((tmp_path / ".out.lmdb.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"pid": "dead"},
        {"started": 5.0},  # the number was given to another process since
        {"pid": None},
        {"pid": 10**30},
        {"host": "elsewhere"},  # does not renew it
    ],
)
def test_locks_of_the_dead_are_taken_over(tmp_path, change, dead):
    record = processes._record() | change
    record["pid"] = dead if record["pid"] == "dead" else record["pid"]
    (tmp_path / ".a.lock").write_text(json.dumps(record))
    with hold(tmp_path / "a", watch_s=0.2):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0" * 50])
def test_a_lock_that_says_nothing_is_taken_over(tmp_path, text, monkeypatch):
    monkeypatch.setattr(processes, "_SETTLE_S", 0.01)
    (tmp_path / ".a.lock").write_text(text)
    with hold(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_machine_that_is_renewed_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_BEAT_S", 0.05)
    with hold(tmp_path / "a"):
        record = json.loads((tmp_path / ".a.lock").read_text())
        (tmp_path / ".a.lock").write_text(json.dumps(record | {"host": "elsewhere"}))
        with pytest.raises(InputError, match="on elsewhere"), hold(tmp_path / "a", watch_s=5):
            pass


def test_of_many_that_find_a_dead_lock_one_gets_it(tmp_path, dead):
    (tmp_path / ".a.lock").write_text(json.dumps(processes._record() | {"pid": dead}))
    held, output, ended = FORK.Semaphore(0), FORK.Semaphore(0), FORK.Event()
    others = [FORK.Process(target=hold_until, args=(tmp_path / "a", held, output, ended)) for _ in range(6)]
    for other in others:
        other.start()
    assert all(output.acquire(timeout=30) for _ in range(5))
    assert held.acquire(timeout=30)
    ended.set()
    for other in others:
        other.join(30)
    assert not held.acquire(block=False)


def test_locks_need_nothing_that_only_unix_has(tmp_path, monkeypatch):
    plain = builtins.__import__

    def without(name, *rest, **named):
        if name in ("fcntl", "resource", "pwd"):
            raise ImportError(name)
        return plain(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delattr(os, "sync")
    monkeypatch.delattr(os, "O_DIRECTORY")
    with hold(tmp_path / "a"):
        with replacing(tmp_path / "b") as partial:
            partial.write_bytes(b"1")
        assert is_running(os.getpid())
    assert not is_running(10**30)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_of_two_builds_of_one_lmdb_the_winner_keeps_its_manifest(tmp_path, capsys):
    put("in/a.png")
    with hold(Path("out.lmdb")):
        assert main(["prepare", "lmdb", "in", "-o", "out.lmdb", "--codec", "raw", "--jobs", "1"]) == 1
    assert "out.lmdb: another process is writing there: " in capsys.readouterr().err
    assert not Path("out.lmdb.manifest.jsonl").exists()
    assert main(["prepare", "lmdb", "in", "-o", "out.lmdb", "--jobs", "1"]) == 0
    before = Path("out.lmdb.manifest.jsonl").read_bytes()
    assert main(["prepare", "lmdb", "in", "-o", "out.lmdb", "--codec", "raw", "--jobs", "1"]) == 1
    assert Path("out.lmdb.manifest.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["subimages", "in", "--size", "32"], "out"),
        (["downscale", "in", "--scale", "2"], "out"),
        (["masks", "--count", "2"], "out/thin_256"),
        (["shake", "in"], "out/input"),
    ],
)
def test_a_folder_that_another_job_fills_is_left_alone(words, output, capsys):
    put("in/a.png")
    with hold(Path(output)):
        assert main(["prepare", *words, "-o", "out", "--jobs", "1"]) == 1
        assert f"{output}: another process is writing there" in capsys.readouterr().err
    assert not list(Path().rglob("*.png.*")) + list(Path("out").rglob("*.png"))


def test_memory_and_processors_are_known_without_linux(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sysconf", raising=False)
    monkeypatch.setattr(processes, "_GROUPS", tmp_path / "absent")
    assert processes.available_cpus() == os.cpu_count()
    assert processes.memory_bytes() == psutil.virtual_memory().total
    assert 0 < processes.free_memory() <= processes.memory_bytes()


@pytest.mark.parametrize("second", [True, False])
def test_the_limits_of_containers_count(monkeypatch, tmp_path, second):
    monkeypatch.setattr(processes, "_GROUPS", tmp_path)
    if second:
        files = {"cpu.max": "150000 100000", "memory.max": 2**30, "memory.current": 2**29, "memory.stat": "file 4096"}
    else:
        files = {
            "cpu/cpu.cfs_quota_us": 100000,
            "cpu/cpu.cfs_period_us": 100000,
            "memory/memory.limit_in_bytes": 2**30,
            "memory/memory.usage_in_bytes": 2**29,
            "memory/memory.stat": "cache 1\ntotal_cache 4096",
        }
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    assert processes.available_cpus() <= 2
    assert processes.memory_bytes() == 2**30
    assert processes.free_memory() == 2**29 + 4096
    for name in files:
        (tmp_path / name).write_text("max\n" if second else "-1\n" if "cpu" in name else f"{2**63 - 4096}\n")
    assert processes.memory_bytes() == psutil.virtual_memory().total


@pytest.mark.parametrize(
    "listed",
    [
        "\ufeffsub/a.png (96,64,3)\r\nb.png (96,64,3)\r\n",
        "./sub/a.png (96,64,3)\n./b.png\n",
        "sub\\a.png\n.\\b.png\n",
        "{here}/sub/a.png (96,64,3)\n{here}/b.png (96,64,3)\n",
        "\n sub//a.png\n\n../in/b.png\n".replace(" ", "").replace("../in/", ""),
    ],
)
def test_lists_are_read_however_they_were_written(listed):
    put("in/sub/a.png")
    put("in/b.png")
    Path("meta.txt").write_text(listed.format(here=Path("in").absolute()), encoding="utf-8", newline="")
    assert open_source("in", meta_info="meta.txt").names == ["sub/a", "b"]


def test_a_backslash_that_is_part_of_a_name_stays():
    put("in/a\\b.png")
    Path("meta.txt").write_text("a\\b.png\n")
    assert open_source("in", meta_info="meta.txt").names == ["a\\b"]


def test_a_number_without_end_is_reported_with_its_line(tmp_path):
    (tmp_path / "meta.txt").write_text(f"a.png (1,1,3)\nb.png ({'9' * 5000},1,3)\n")
    with pytest.raises(InputError, match=r"meta\.txt, line 2: a size of more than 9 digits"):
        read_meta(tmp_path / "meta.txt")


HEAD = {"diffir_manifest": 1, "job": "lmdb", "parameters": {}, "source": "in", "version": "1", "count": 1}
LINE = {"name": "a", "from": "a.png", "size": [1, 1, 3], "bytes": 3, "sha256": "0"}


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["{}"],
        ["[]", "[]"],
        ["null"],
        ["[" * 100_000],
        [json.dumps(HEAD | {"parameters": []}), json.dumps(LINE)],
        [json.dumps(HEAD | {"source": None}), json.dumps(LINE)],
        *([json.dumps(HEAD), json.dumps(LINE | odd)] for odd in ({"name": 5}, {"size": [1, 1]}, {"size": ["1", 1, 1]})),
        [json.dumps(HEAD), f'{{"name": {"9" * 5000}}}'],
    ],
)
def test_a_manifest_of_another_shape_is_reported(lines, tmp_path):
    path = tmp_path / "a.manifest.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match="cannot be read as a manifest"):
        read_manifest(path)


@pytest.mark.parametrize("note", ["", "{", "[]", '{"job": 3, "parameters": {}}', '{"job": "downscale"}', "[" * 100_000])
def test_an_unreadable_note_of_a_stopped_job_is_reported_with_the_way_out(note, capsys):
    put("in/a.png")
    Path("out").mkdir()
    Path("out.unfinished.json").write_text(note)
    words = ["prepare", "downscale", "in", "-o", "out", "--scale", "2", "--jobs", "1"]
    assert main(words) == 1
    assert "out.unfinished.json: an unreadable record of an interrupted job" in capsys.readouterr().err
    Path("out.unfinished.json").unlink()
    Path("out").rmdir()
    assert main(words) == 0


def limited(words, size, message):
    """The command, in a process where files may have `size` bytes at most, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(words)
    message.put((code, errors.getvalue()))


@pytest.mark.parametrize(
    "words",
    [
        ["lmdb", "in", "-o", "out.lmdb", "--jobs", "1"],
        ["subimages", "in", "-o", "out", "--size", "60", "--jobs", "2"],
    ],
)
def test_a_disk_that_takes_no_more_is_one_sentence(words):
    for name in "abc":
        put(f"in/{name}.png")
    answer = FORK.Queue()
    process = FORK.Process(target=limited, args=(["prepare", *words], 4096, answer))
    process.start()
    code, output = answer.get(timeout=60)
    process.join()
    assert code == 1
    assert "arge" in output  # File too large, in LMDB's words or the system's
    assert [path for path in Path().iterdir() if path.name.startswith("out") and path.suffix == ".lmdb"] == []
    assert not list(Path().rglob("*partial*"))


def test_a_folder_that_may_not_be_written_is_one_sentence(capsys):
    put("in/a.png")
    if os.geteuid() == 0:  # root may write everywhere but into the system's own folders
        locked = Path("/sys")
    else:
        locked = Path("locked")
        locked.mkdir(mode=0o555)
    assert main(["prepare", "lmdb", "in", "-o", str(locked / "out.lmdb"), "--jobs", "1"]) == 1
    assert f"{locked}/out.lmdb: cannot be written (Permission denied)" in capsys.readouterr().err
