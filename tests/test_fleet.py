"""Very many pictures: each once in the manifest, with the bytes of `diffir restore`, whatever is killed.

A few pictures run with all tests; `DIFFIR_FLEET=all pytest tests/test_fleet.py` restores 2,000 and kills workers, and
twice the whole fleet, until it is through.
"""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from toy import NETWORK

from diffir_sr.archs.diffir_arch import DiffIRS2
from diffir_sr.cli import main
from diffir_sr.errors import InputError
from diffir_sr.files.picture import Picture, encode, encode_png
from diffir_sr.files.processes import hold
from diffir_sr.inference.files import digest
from diffir_sr.weights_files import write_card_file

pa = pytest.importorskip("pyarrow", reason="needs the extra ray")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra ray")
pytest.importorskip("ray.data", reason="needs the extra ray")

from diffir_sr import fleet  # noqa: E402 - only with the packages above

ALL = os.environ.get("DIFFIR_FLEET") == "all"
COUNT, WORKER_KILLS, FLEET_KILLS = (2000, 12, 2) if ALL else (40, 1, 0)
SEED = int(os.environ.get("DIFFIR_FLEET_SEED", "0"))


def make(folder, count):
    """A network, and small pictures of several formats; the last is damaged, and two have the same content."""
    torch.manual_seed(0)
    write_card_file(DiffIRS2(task="sr", scale=2, **NETWORK).state_dict(), {}, folder / "net.safetensors")
    source = np.random.default_rng(0)
    for number in range(count):
        image = source.integers(0, 256, (16, 24, 3), dtype=np.uint8)
        name, data = (
            (f"p{number}.png", encode_png(image)) if number % 3 else (f"p{number}.jpg", encode(Picture(image), "jpeg"))
        )
        path = folder / "in" / ("sub" if number % 2 else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "in/p1.png").write_bytes((folder / "in/sub/p1.png").read_bytes())
    (folder / "in/bad.png").write_bytes(encode_png(image)[:60])


def run(*words, out="out"):
    return main(["fleet", "in", "-o", out, "-w", "net.safetensors", "--workers", "2", "--cpus", "1", *words])


def table(out="out"):
    return pq.read_table(f"{out}/manifest.parquet")


def images():
    return list(fleet.listed(["in"], column="path"))


def worker(*model, out="out"):
    """A worker without a cluster, and its order, from the arguments of the command line."""
    words = ["fleet", "in", "-o", out, *(model or ("-w", "net.safetensors"))]
    from diffir_sr.cli import diffir_parser

    args = diffir_parser("fleet").parse_args(words)
    fleet.check_numbers(args)
    order, _ = fleet._order(args, Path(out).absolute())
    return fleet.Worker(order), order


def rows_of(made):
    return made.filter(made["stop"].is_null()).drop_columns(["stop"]).to_pylist()


def given(pictures):
    return pa.Table.from_pylist([picture._asdict() for picture in pictures])


def descendants(process):
    try:
        return [one for one in psutil.Process(process.pid).children(recursive=True) if one.is_running()]
    except psutil.NoSuchProcess:
        return []


def workers_of(process):
    found = []
    for one in descendants(process):
        try:
            if "MapWorker" in " ".join(one.cmdline()):
                found.append(one)
        except psutil.Error:
            pass
    return found


def results():
    return len(list(Path("out/results").rglob("*.[pj][np]g")))


@pytest.mark.slow
def test_every_picture_is_once_in_the_manifest_with_the_bytes_of_restore_whatever_is_killed(tmp_path):
    make(tmp_path, COUNT)
    draw = random.Random(SEED)
    total = COUNT + 2
    words = ["fleet", "in", "-o", "out", "-w", "net.safetensors", "--workers", "2", "--cpus", "1"]
    moments = sorted(draw.sample(range(1, total - 12), WORKER_KILLS))
    ends = sorted(draw.sample(range(total // 10, total - 20), FLEET_KILLS))
    killed = 0
    for stop in [*ends, None]:
        with open("said.txt", "w") as said:
            process = subprocess.Popen([sys.executable, "-m", "diffir_sr", *words], stdout=said, stderr=said)
        while process.poll() is None:
            count = results()
            if stop is not None and count >= stop:
                process.send_signal(signal.SIGKILL)
                process.wait()
                break
            if moments and count >= moments[0] and (alive := workers_of(process)):
                draw.choice(alive).kill()
                moments.pop(0)
                killed += 1
            time.sleep(0.02)
    assert killed >= min(1, WORKER_KILLS)
    said = Path("said.txt").read_text()
    assert process.returncode == 1, said  # one picture is damaged
    assert "bad.png: damaged or truncated" in said
    assert "Traceback" not in said
    every_picture_is_there_once(COUNT)


def every_picture_is_there_once(count):
    """The manifest has a row for every picture, and results have the bytes of restore."""
    main(["restore", "in", "-o", "plain", "-w", "net.safetensors"])
    rows = table().to_pylist()
    names = [row["source"] for row in rows]
    assert names == sorted(names)
    assert names == sorted(str(path.absolute()) for path in Path("in").rglob("*.*g"))
    for row in rows:
        if row["source"].endswith("bad.png"):
            assert row["error"]
            assert row["output"] is None
            continue
        made = Path("out", row["output"]).read_bytes()
        assert made == Path("plain", Path(row["source"]).relative_to(Path("in").absolute())).read_bytes()
        assert row["output_digest"] == digest(made)
        assert row["source_digest"] == digest(Path(row["source"]).read_bytes())
        assert (row["height"], row["width"], row["output_bytes"], row["error"]) == (32, 48, len(made), None)
    assert results() == count  # two pictures with the same content are one result
    assert sorted(os.listdir("out")) == ["manifest.parquet", "results"]
    assert not list(Path("out").rglob(".*partial*"))


@pytest.mark.long("DIFFIR_FLEET")  # it starts three nodes of a cluster
def test_a_lost_node_loses_no_picture(tmp_path):
    from ray.cluster_utils import Cluster

    make(tmp_path, 300)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        kept, lost = (nodes.add_node(num_cpus=1) for _ in range(2))
        nodes.wait_for_nodes()
        words = ["fleet", "in", "-o", "out", "-w", "net.safetensors", "--address", nodes.address]
        with open("said.txt", "w") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "diffir_sr", *words, "--workers", "2", "--cpus", "1"], stdout=said, stderr=said
            )
        while process.poll() is None and results() < 100:
            time.sleep(0.05)
        assert process.poll() is None, Path("said.txt").read_text()
        nodes.remove_node(lost, allow_graceful=False)
        assert process.wait(600) == 1  # one picture is damaged
    finally:
        nodes.shutdown()
    said = Path("said.txt").read_text()
    assert "is lost; what it had in hand is taken again by the 2 others" in said
    assert "Traceback" not in said
    every_picture_is_there_once(300)


def test_a_worker_gives_rows_and_takes_a_result_that_exists_and_is_whole(tmp_path):
    make(tmp_path, 4)
    work, _ = worker()
    first = rows_of(work(given(images())))
    good = [row for row in first if row["error"] is None]
    assert len(good) == 5
    assert sum(row["seconds"] is None for row in good) == 1  # the second picture with the same content
    assert len({row["output"] for row in good}) == 4
    target = Path("out", good[0]["output"])
    whole = target.read_bytes()
    target.write_bytes(whole[:-20])  # a disk that lost its end
    again = rows_of(work(given(images())))
    assert [row["seconds"] is not None for row in again if row["error"] is None].count(True) == 1
    assert target.read_bytes() == whole
    assert not list(Path("out/.fleet/attempts").iterdir())


def test_a_picture_over_which_workers_die_becomes_an_error(tmp_path):
    make(tmp_path, 2)
    work, order = worker()
    picture = images()[1]
    path = fleet._attempt(order.output, picture)
    path.parent.mkdir(parents=True)
    path.write_text("another run\n" * 9 + f"{order.run}\n" * 3)
    (row,) = rows_of(work(given([picture])))
    assert row["tries"] == 4
    assert "3 workers died while restoring it" in row["error"]
    (row,) = rows_of(work(given([picture])))  # --retry-errors of another run
    assert (row["tries"], row["error"]) == (1, None)
    target, path = Path("out", row["output"]), fleet._attempt(order.output, picture)
    half = target.with_name(f".{target.name}.partial-4194305")  # no process has this number
    half.write_bytes(target.read_bytes()[:30])
    target.unlink()
    path.write_text("another run\n")  # which was killed while it wrote
    (row,) = rows_of(work(given([picture])))
    assert row["tries"] == 1
    assert sorted(Path("out/results").rglob("*.*")) == [target]


def test_a_full_disk_stops_all_with_the_rows_so_far(tmp_path, monkeypatch):
    make(tmp_path, 4)
    work, _ = worker()
    written = []

    def write(data, path):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)

    monkeypatch.setattr(fleet, "write_atomically", write)
    made = work(given(images()[1:]))
    assert len(rows_of(made)) == 2
    (said,) = made["stop"].drop_null().to_pylist()
    assert "No space left on device" in said
    assert "run the same command again, which continues from there" in said
    assert work(given(images()))["stop"].null_count == 0  # and does nothing more


def test_a_full_disk_stops_all_where_attempts_are_counted(tmp_path, monkeypatch):
    make(tmp_path, 2)
    work, order = worker()

    def begin(self, image):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(fleet._attempt(order.output, image)))

    monkeypatch.setattr(fleet.Worker, "_begin", begin)
    (said,) = work(given(images()))["stop"].drop_null().to_pylist()
    assert "No space left on device" in said


def test_a_machine_with_other_weights_is_refused(tmp_path):
    make(tmp_path, 2)
    _, order = worker()
    torch.manual_seed(1)
    write_card_file(DiffIRS2(task="sr", scale=2, **NETWORK).state_dict(), {}, Path("net.safetensors"))
    other = fleet.Worker(order)
    assert "weights or settings differ" in other(given(images()))["stop"][0].as_py()
    Path("net.safetensors").unlink()
    assert "no such weights file" in fleet.Worker(order)(given(images()))["stop"][0].as_py()


def test_a_blend_of_two_shipped_models_is_given_by_their_names(tmp_path, monkeypatch):
    make(tmp_path, 2)
    model = ["--model", "sr_x4", "--blend", "sr_x4_sharp", "0.35"]
    _, order = worker(*model)
    assert (order.restorer["model"], order.restorer["blend"]) == ("sr_x4", ("sr_x4_sharp", 0.35))
    assert main(["restore", "in", "-o", "plain", *model]) == 1  # one picture is damaged
    Path("other").mkdir()
    pictures = given(images())
    monkeypatch.chdir("other")  # another machine, where the package may lie elsewhere
    rows = [row for row in rows_of(fleet.Worker(order)(pictures)) if row["error"] is None]
    assert len(rows) == 3
    for row in rows:
        name = Path(row["source"]).relative_to(tmp_path / "in")
        assert (tmp_path / "out" / row["output"]).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    _, plain = worker("--model", "sr_x4", out="../out")
    assert plain.settings != order.settings


def test_notes_of_restore_are_in_the_row(tmp_path):
    make(tmp_path, 2)
    Path("in/p0.jpg").unlink()
    rgba = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    Path("in/clear.png").write_bytes(encode_png(rgba))
    work, _ = worker()
    (row,) = [row for row in rows_of(work(given(images()))) if row["source"].endswith("clear.png")]
    assert "its transparency is kept" in row["notes"]


def test_an_image_that_changes_while_it_is_read_is_taken_again(tmp_path, monkeypatch):
    make(tmp_path, 2)
    work, order = worker()
    plain = fleet.read_file

    def read(path):
        data = plain(path)
        os.utime(path, (1, 1))
        return data

    monkeypatch.setattr(fleet, "read_file", read)
    pictures = [picture for picture in images() if "bad" not in picture.source]
    made = work(given(pictures)).drop_columns(["stop"])
    settings = json.dumps(order.settings, sort_keys=True)
    assert len(fleet.plan(pictures, made, Path("out").absolute(), settings=settings, retry=False).todo) == len(pictures)


def test_what_is_left_to_do(tmp_path):
    make(tmp_path, 4)
    work, order = worker()
    settings = json.dumps(order.settings, sort_keys=True)
    rows, out = fleet.Rows(Path("out").absolute()), Path("out").absolute()
    everything = images()
    made = work(given(everything))
    rows.add(made.drop_columns(["stop"]))
    rows.flush()
    rows.add(made.drop_columns(["stop"]))  # Ray or an earlier run gave them twice
    merged = rows.merge()
    assert merged.num_rows == len(everything)
    assert merged["source"].to_pylist() == sorted(picture.source for picture in everything)

    def plan(retry=False, settings=settings):
        found = fleet.plan(everything, rows.read(), out, settings=settings, retry=retry)
        return len(found.todo), found.done, found.failed

    assert plan() == (0, 5, 1)
    assert plan(retry=True) == (1, 5, 0)
    bad = Path("in/bad.png")
    whole, times = bad.read_bytes(), (bad.stat().st_atime_ns, bad.stat().st_mtime_ns)
    bad.write_bytes(Path("in/p0.jpg").read_bytes())  # copied again, so that it may work now
    assert plan() == (1, 5, 0)
    bad.write_bytes(whole)
    os.utime(bad, ns=times)
    changed = Path("in/sub/p3.jpg")
    changed.write_bytes(changed.read_bytes() + b"\0")
    assert plan() == (1, 4, 1)
    Path("in/p2.png").unlink()  # removed after it was done
    Path(out, merged.filter(pa.compute.ends_with(merged["source"], "p0.jpg"))["output"][0].as_py()).unlink()
    assert plan() == (2, 3, 1)
    with pytest.raises(InputError, match="other settings or weights .seed 0, now 7"):
        plan(settings=json.dumps(order.settings | {"seed": 7}, sort_keys=True))
    Path("out/manifest.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(InputError, match="cannot be read as rows of a fleet"):
        rows.read()


def test_an_image_whose_mask_changed_is_taken_again(tmp_path):
    make(tmp_path, 2)
    masks = tmp_path / "masks"
    (masks / "sub").mkdir(parents=True)
    everything = [one for one in images() if not one.source.endswith("bad.png")]

    def write_mask(image, value):
        path = masks / Path(image.relative).with_suffix(".png")
        path.write_bytes(encode_png(np.full((16, 24, 3), value, np.uint8)))

    for one in everything:
        write_mask(one, 0)
    rows, out = fleet.Rows(Path("out").absolute()), Path("out").absolute()
    found = [fleet.digest(Path(one.source).read_bytes()) + fleet._mask_digest(str(masks), one) for one in everything]
    stats = [os.stat(one.source) for one in everything]
    results = [f"results/{number}.png" for number in range(len(everything))]
    (out / "results").mkdir(parents=True)
    for name in results:
        (out / name).write_bytes(b"a result")
    filled = dict.fromkeys(fleet.schema().names, [None] * len(everything)) | {
        "source": [one.source for one in everything],
        "source_digest": found,
        "source_bytes": [one.st_size for one in stats],
        "source_mtime_ns": [one.st_mtime_ns for one in stats],
        "output": results,
        "settings": ["{}"] * len(everything),
    }
    rows.add(pa.table(filled, schema=fleet.schema()))

    def todo(mask=str(masks)):
        return fleet.plan(everything, rows.merge(), out, settings="{}", retry=False, mask=mask).todo

    assert todo() == []
    changed = everything[-1]
    write_mask(changed, 255)
    assert todo() == [changed]
    (masks / Path(changed.relative).with_suffix(".png")).unlink()
    assert todo() == [changed]
    assert todo("#ff0000") == everything


def test_lists_are_parquet_files_with_paths_relative_to_them(tmp_path):
    make(tmp_path, 4)
    Path("in/film.mp4").write_bytes(b"x")
    names = ["in/p0.jpg", str(Path("in/p2.png").absolute()), "in/p0.jpg", "in/film.mp4"]
    pq.write_table(pa.table({"path": names, "n": range(4)}), "some.parquet")
    found = list(fleet.listed(["some.parquet"], column="path"))
    assert [Path(one.source) for one in found] == [Path(name).absolute() for name in names[:2]]
    assert [one.relative for one in found] == ["in/p0.jpg", "p2.png"]
    for column, sentence in (("file", "has no column 'file', only path, n"), ("n", "type int64, expected text")):
        with pytest.raises(InputError, match=sentence):
            list(fleet.listed(["some.parquet"], column=column))
    Path("cut.parquet").write_bytes(Path("some.parquet").read_bytes()[:50])
    for wrong, sentence in (("cut.parquet", "cannot be read as a Parquet list"), ("no.parquet", "cannot be read")):
        with pytest.raises(InputError, match=sentence):
            list(fleet.listed([wrong], column="path"))
    with pytest.raises(InputError, match="lists 0 images"):
        list(fleet.listed(["in/film.mp4"], column="path"))


@pytest.mark.parametrize(
    ("resources", "workers", "cpus", "expected"),
    [
        ({"CPU": 3}, None, 1, (2, 0)),
        ({"CPU": 3}, 2, 1, (2, 0)),
        ({"CPU": 64, "GPU": 4}, None, 2, (4, 1)),
        ({"CPU": 8, "GPU": 4}, None, 2, (3, 1)),
        ({"CPU": 2}, 2, 1, None),
        ({"CPU": 2}, None, 2, None),
        ({"CPU": 64, "GPU": 4}, 5, 2, None),
    ],
)
def test_one_cpu_always_stays_free(resources, workers, cpus, expected):
    if expected is None:
        with pytest.raises(InputError, match="one CPU stays free for Ray"):
            fleet.fitting(resources, workers=workers, cpus=cpus, use_gpus=True)
        return
    found = fleet.fitting(resources, workers=workers, cpus=cpus, use_gpus=True)
    assert (found.count, found.gpus) == expected
    assert found.count * cpus < resources["CPU"]
    assert found.device == ("auto" if found.gpus else "cpu")


def test_what_cannot_work_is_one_sentence(tmp_path, capsys):
    make(tmp_path, 2)
    with hold(Path("out").absolute()):
        assert run() == 1
    assert "another process is writing there" in capsys.readouterr().err
    for words, sentence in (
        (["--workers", "0"], "--workers: expected 1 or more, got 0"),
        (["--address", "127.0.0.1:9"], "the Ray cluster 127.0.0.1:9 cannot be used"),
        (["--samples", "0"], "--samples: expected 1 or more"),
    ):
        assert run(*words) == 1
        assert sentence in capsys.readouterr().err
    assert main(["fleet", "in", "-o", "in/out", "-w", "net.safetensors"]) == 1
    assert "or inside it" in capsys.readouterr().err
