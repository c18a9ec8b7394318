"""Shards: tar files that other tools read, written whole or not at all, and every fault of one named."""

import gc
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import tarfile
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from toy import train_options, write_options, write_pairs

from diffir_sr.cli import main
from diffir_sr.data.checks import check_dataset_options
from diffir_sr.data.labelled_dataset import LabelledPairsDataset
from diffir_sr.data.pairs import PairedDataset, SingleDataset
from diffir_sr.data.sources import (
    Entry,
    FolderSource,
    Manifest,
    ShardSource,
    check_backend,
    open_source,
    read_manifest,
    write_manifest,
)
from diffir_sr.errors import InputError
from diffir_sr.files import shards as shard_files
from diffir_sr.files.picture import encode_png
from diffir_sr.inference.files import input_files
from diffir_sr.options.load import load_options
from diffir_sr.prepare import shards as prepare_shards
from diffir_sr.prepare.shards import bytes_of, encode
from diffir_sr.training import plan as plans


def image(number, size=48):
    photo = skimage.data.astronaut()
    return np.ascontiguousarray(photo[10 * number : 10 * number + size, 20:60])


def folder(path="in", count=6):
    """Pictures of several formats, in a sub-folder too, with names that are no keys."""
    for number in range(count):
        file = Path(path, "v1.0 (ä)" if number % 2 else ".", f"p{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(image(number)))
    Path(path, "photo.jpg").write_bytes(cv2.imencode(".jpg", image(7))[1].tobytes())
    return Path(path)


def prepare(*words, source="in", out="out"):
    return main(["prepare", "shards", source, "-o", out, "--jobs", "1", "--shard-size", "12kB", *words])


def foreign(path, members):
    """A shard as other tools make it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def samples(count=3, *, start=0, size=48):
    """Samples of two images and a caption, as WebDataset groups them by name."""
    made = {}
    for number in range(start, start + count):
        made[f"{number:06d}.gt.png"] = encode_png(image(number, size))
        made[f"{number:06d}.lq.png"] = encode_png(image(number, size)[::4, ::4])
        made[f"{number:06d}.txt"] = b"a caption"
    return made


def state(path="out"):
    return {file.name: file.read_bytes() for file in sorted(Path(path).iterdir())}


# What is stored


@pytest.mark.parametrize("codec", ["keep", "png", "raw"])
def test_shards_hold_the_images_of_their_folder(codec):
    folder()
    assert prepare("--codec", codec) == 0
    plain, stored = open_source("in"), open_source("out")
    assert len(list(Path("out").glob("*.tar"))) > 2
    assert stored.names == plain.names
    for name in plain.names:
        assert np.array_equal(stored.read(name), plain.read(name))
        assert stored.shape(name) == plain.shape(name)
        part = np.s_[3:17, 5:9]
        assert np.array_equal(stored.view(name)[part], plain.read(name)[part])
    assert stored.is_8bit
    again = pickle.loads(pickle.dumps(stored))
    assert np.array_equal(again.read("p0"), plain.read("p0"))
    listed = [json.loads(line) for line in Path("out.manifest.jsonl").read_text().splitlines()]
    assert [line["from"] for line in listed[1:]] == [
        f"{name}.{'jpg' if name == 'photo' else 'png'}" for name in plain.names
    ]


def test_other_tools_read_the_shards():
    folder()
    assert prepare() == 0
    source, seen = open_source("in"), {}
    for shard in sorted(Path("out").glob("*.tar")):
        assert shard.stat().st_size <= 12_000
        assert shard.stat().st_size % 10240 == 0
        with tarfile.open(shard) as tar:
            for member in tar:
                base, _, suffix = member.name.rpartition("/")[2].partition(".")  # as WebDataset splits names
                assert suffix in ("png", "jpg")
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
                seen[member.name] = hashlib.sha256(tar.extractfile(member).read()).hexdigest()
    files = [source.file(name) for name in source.names]
    assert list(seen.values()) == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_raw_pixels_are_arrays_of_numpy():
    folder()
    assert main(["prepare", "lmdb", "in", "-o", "raw.lmdb", "--codec", "raw", "--jobs", "1"]) == 0
    assert prepare(source="raw.lmdb") == 0
    found = {}
    for shard in Path("out").glob("*.tar"):
        with tarfile.open(shard) as tar:
            found |= {one.name: np.load(io.BytesIO(tar.extractfile(one).read())) for one in tar}
    assert len(found) == 7
    assert np.array_equal(found["p0.npy"], open_source("in").read("p0"))
    assert prepare("--codec", "png", source="raw.lmdb", out="png") == 0
    for name in open_source("in").names:
        assert np.array_equal(open_source("png").read(name), open_source("in").read(name))


def test_16_bits_are_kept_and_never_become_bytes():
    Path("in").mkdir()
    Path("in/deep.png").write_bytes(encode_png(image(0).astype(np.uint16) * 257))
    assert prepare() == 0
    assert open_source("out").read("deep").dtype == np.uint16
    assert not open_source("out").is_8bit
    assert prepare("--codec", "png", out="png") == 1
    assert prepare("--codec", "png", "--to-8bit", out="png") == 0
    assert open_source("png").is_8bit


def test_shards_of_others_are_indexed_and_their_samples_taken_apart(capsys):
    foreign("data/a-000.tar", samples())
    foreign("data/a-001.tar", samples(start=3))
    with pytest.raises(InputError, match=r"2 of 2 shards have no index .* diffir prepare index data"):
        open_source("data")
    assert main(["prepare", "index", "data", "--jobs", "1"]) == 0
    assert "12 images in 2 shards indexed, 0 shards were indexed before" in capsys.readouterr().out
    with pytest.raises(
        InputError, match=r"consist of several images \(gt, lq\); choose one, such as data/gt or data/lq"
    ):
        open_source("data")
    with pytest.raises(InputError, match="no sample has an image 'mask', only gt, lq"):
        open_source("data/mask")
    with pytest.raises(InputError, match=r"a-000\.tar: a single shard; give the folder of the shards, data"):
        open_source("data/a-000.tar")
    data = PairedDataset(dict(dataroot_gt="data/gt", dataroot_lq="data/lq", scale=4, phase="val", name="x"))
    assert len(data) == 6
    assert data[4]["lq_path"] == data[4]["gt_path"] == "000004"
    assert np.array_equal(data.sources[0].gt.read("000004"), image(4))
    assert main(["doctor", "data", "--lq", "data/lq", "--gt", "data/gt", "--scale", "4"]) in (0, 1)
    assert "12 images" in capsys.readouterr().out
    foreign("data/a-002.tar", samples(start=6))
    assert main(["prepare", "index", "data", "--jobs", "1"]) == 0
    assert "6 images in 1 shards indexed, 2 shards were indexed before" in capsys.readouterr().out
    assert len(open_source("data/gt").names) == 9


def test_names_that_tar_writes_with_dots_and_slashes_are_plain():
    assert shard_files.sample_of("./sub/0001.png") == ("sub/0001", "")
    assert shard_files.sample_of("0001.lq.PNG") == ("0001", "lq")
    assert shard_files.sample_of("v1.0/0001.npy") == ("v1.0/0001", "")
    assert shard_files.sample_of("v1.0/._0001.png") is None
    assert shard_files.sample_of("0001.json") is None
    long = "a" * 150
    foreign("data/0.tar", {f"./{long}/b.png": encode_png(image(0)), "./pax/c.png": encode_png(image(1))})
    assert main(["prepare", "index", "data", "--jobs", "1"]) == 0
    assert open_source("data").names == [f"{long}/b", "pax/c"]
    assert np.array_equal(open_source("data").read(f"{long}/b"), image(0))


def test_names_may_contain_any_byte_and_separators_of_lines(capsys):
    names = ["a\u2028b", "c\x85d", "e\nf", os.fsdecode(b"\xff\xfe"), "g\\h"]
    Path("in").mkdir()
    for number, name in enumerate(names):
        Path("in", f"{name}.png").write_bytes(encode_png(image(number)))
    foreign("data/0.tar", {f"{name}.png": encode_png(image(number)) for number, name in enumerate(names)})
    assert main(["prepare", "index", "data", "--jobs", "1"]) == 0
    assert main(["prepare", "lmdb", "in", "-o", "in.lmdb", "--jobs", "1"]) == 0
    for _ in range(2):  # made, then kept
        assert prepare() == 0
    for place in ("data", "out", "out.manifest.jsonl", "in.lmdb", "in.lmdb.manifest.jsonl"):
        source = open_source(place)
        assert sorted(source.names) == sorted(names)
        for number, name in enumerate(names):
            assert np.array_equal(source.read(name), image(number))
    capsys.readouterr()
    assert main(["doctor", "data", "out"]) in (0, 3)
    assert "manifest" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../up", "a/../../up", "/abs/x", "%2E%2E%2Fup", "%2E%2E", "nul%00"])
def test_names_that_lead_out_of_a_folder_are_refused(name):
    foreign("data/0.tar", {f"{name}.png": encode_png(image(0)), "fine.png": encode_png(image(1))})
    assert main(["prepare", "index", "data", "--jobs", "1"]) == 0
    with pytest.raises(
        InputError, match=r"data: 1 names are not paths inside a folder: '.*'; store these images again"
    ):
        open_source("data")
    write_pairs("toy", count=1)
    meta = Path("toy/gt.lmdb/meta_info.txt")
    meta.write_text(meta.read_text().replace("p0", name))
    with pytest.raises(InputError, match="names are not paths inside a folder"):
        open_source("toy/gt.lmdb")


def test_an_archive_beside_the_images_that_were_unpacked_from_it_is_no_shard():
    folder("photos/unpacked")
    foreign("photos/all.tar", {"a.png": encode_png(image(0))})
    Path("photos/other.tar.gz").touch()
    assert open_source("photos").describe().startswith("folder ")
    Path("photos/unpacked").rename("elsewhere")
    Path("photos/unpacked").symlink_to(Path("elsewhere").absolute())
    Path("elsewhere/up").symlink_to(Path("photos").absolute())
    assert open_source("photos").describe().startswith("folder ")
    Path("photos/other.tar.gz").unlink()
    assert main(["prepare", "index", "photos", "--jobs", "1"]) == 0  # which says what is meant
    assert open_source("photos").names == ["a"]
    Path("photos/preview.png").write_bytes(encode_png(image(1)))
    with pytest.raises(InputError, match=r"1 images beside the shards \(preview\.png\); move them"):
        open_source("photos")
    foreign("shards/0.tar", {"a.png": encode_png(image(0))})
    Path("shards/logs").mkdir()
    with pytest.raises(InputError, match="1 of 1 shards have no index"):
        open_source("shards")
    assert main(["prepare", "index", "shards", "--jobs", "1"]) == 0
    with pytest.raises(
        InputError, match=r"shards/lq: does not exist, and the shards .* one image per sample; give shards"
    ):
        open_source("shards/lq")


def test_memory_does_not_grow_with_the_members_that_were_scanned(monkeypatch):
    foreign("data/0.tar", samples(40, size=8))
    alive = []

    def describe(*args, **options):
        if options["name"] == "000039.lq.png":
            alive.extend(one for one in gc.get_objects() if type(one) is tarfile.TarInfo)
        return (8, 8, 3), True

    monkeypatch.setattr(shard_files, "describe", describe)
    assert len(shard_files.scan(Path("data/0.tar"))[0]) == 80
    assert 0 < len(alive) < 10


def test_a_folder_of_many_images_takes_few_bytes_for_each(monkeypatch):
    paths = [f"v1.0/{number // 100:04d}/photo {number:08d}.png" for number in range(20_000)]
    monkeypatch.setattr("diffir_sr.data.sources._image_files", lambda folder: iter(paths))
    tracemalloc.start()
    try:
        source = open_source(Path.cwd())
        assert isinstance(source, FolderSource)
        wanted = prepare_shards.plan(source, codec="keep", compress_level=1, to_8bit=False)
        taken = tracemalloc.get_traced_memory()[0] / len(wanted)
    finally:
        tracemalloc.stop()
    assert taken < 500
    assert wanted[7].where == str(Path.cwd() / paths[7])


def test_a_manifest_is_written_and_read_in_the_memory_of_its_entries():
    entries = [
        Entry(f"photos/{number:08d}", f"photos/{number:08d}.png", (480, 480, 3), number, f"{number:064x}")
        for number in range(20_000)
    ]
    made = Manifest("shards", {}, "photos", "1", entries)
    tracemalloc.start()
    try:
        path = write_manifest(Path("out"), made)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        found = read_manifest(path)
        kept, read = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == made
    assert written < 50 * len(entries)
    assert read < kept + 50 * len(entries)


@pytest.mark.parametrize(
    ("text", "expected"), [("1GB", 10**9), ("500 mb", 5 * 10**8), ("2GiB", 2**31), ("1.5k", 1500), ("4KiB", 4096)]
)
def test_sizes_of_shards_are_as_written(text, expected):
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "big", "-1GB", "0", "1XB"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="--shard-size"):
        bytes_of(text)


# The job


def test_a_killed_job_leaves_whole_shards_and_continues_to_the_same_bytes(monkeypatch):
    folder(count=14)
    Path("in/a b").mkdir()
    Path("in/a b/p.png").write_bytes(encode_png(image(20)))
    words = ["prepare", "shards", "in", "--jobs", "1", "--shard-size", "12kB"]

    def slow(one):
        time.sleep(0.05)
        return encode(one)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_shards, "encode", slow)
        process = multiprocessing.get_context("fork").Process(target=main, args=([*words, "-o", "out"],))
        process.start()
    while not Path("out/00002.tar").exists():
        time.sleep(0.01)
        assert process.is_alive()
    process.kill()
    process.join()
    with pytest.raises(InputError, match="has not finished; .* run the same command again"):
        open_source("out")
    Path("out/00000.tar.index.jsonl").unlink()  # killed between a shard and its index
    whole = {name: data for name, data in state().items() if name.endswith(".tar")}
    assert main([*words, "-o", "out"]) == 0
    assert main([*words, "-o", "other"]) == 0
    made = state()
    assert whole.items() <= made.items()
    assert {k: v for k, v in made.items() if k.endswith(".tar")} == {
        k: v for k, v in state("other").items() if k.endswith(".tar")
    }
    assert Path("out.manifest.jsonl").read_bytes() == Path("other.manifest.jsonl").read_bytes()
    assert not [name for name in os.listdir("out") if name.startswith(".")]
    assert len(open_source("out").names) == 16


def test_more_images_become_more_shards_and_other_parameters_are_refused(capsys):
    folder()
    assert prepare("--dry-run") == 0
    assert not Path("out").exists()
    assert prepare() == 0
    before = state()
    assert prepare() == 0
    assert "7 images (0 made, 7 kept" in capsys.readouterr().out
    assert state() == before
    Path("in/z.png").write_bytes(encode_png(image(9)))
    assert prepare() == 0
    assert before.items() <= state().items()
    assert open_source("out").names == open_source("in").names
    assert prepare("--codec", "raw") == 1
    assert "made with other parameters (codec 'keep', now 'raw')" in capsys.readouterr().err
    folder("elsewhere", count=2)
    for words in ([], ["--overwrite"]):  # its p0 is another image
        assert prepare(*words, source="elsewhere") == 1
        assert f"(source '{Path('in').absolute()}', now '{Path('elsewhere').absolute()}')" in capsys.readouterr().err
    assert prepare("--codec", "raw", "--overwrite") == 0
    assert all(open_source("out").stored(name)[1].is_raw for name in open_source("in").names)
    assert main(["prepare", "shards", "out", "-o", "more"]) == 1
    assert "to index shards that exist: diffir prepare index out" in capsys.readouterr().err
    Path("busy").mkdir()
    Path("busy/notes.txt").touch()
    assert prepare(out="busy") == 1
    assert "contains other files (notes.txt)" in capsys.readouterr().err


def test_a_damaged_image_stops_the_job_and_a_full_disk_too(capsys, monkeypatch):
    folder()
    good = Path("in/p2.png").read_bytes()
    Path("in/p2.png").write_bytes(good[:-30])
    assert prepare() == 1
    assert "1 of 7 images failed" in capsys.readouterr().err
    with pytest.raises(InputError, match="has not finished"):
        open_source("out")
    Path("in/p2.png").write_bytes(good)
    plain = tarfile.TarFile.addfile

    def full(self, info, data):
        if info.name.startswith("p2"):
            raise OSError(28, "No space left on device")
        plain(self, info, data)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "addfile", full)
        assert prepare() == 1
    assert "cannot be written (No space left on device); make room" in capsys.readouterr().err
    assert prepare() == 0
    assert open_source("out").names == open_source("in").names


# Damage


@pytest.fixture
def shards():
    folder()
    assert prepare() == 0
    return sorted(Path("out").glob("*.tar"))


def test_a_flipped_byte_is_found_when_it_is_read(shards, capsys):
    name, stored = "p2", open_source("out")
    shard, member = stored.stored(name)
    data = bytearray(shard.read_bytes())
    data[member.start + member.size // 2] ^= 1
    shard.write_bytes(data)
    fresh = open_source("out")
    with pytest.raises(InputError, match=r"out/\d+\.tar\[p2\.png\]: its sha256 differs from that in the index"):
        fresh.read(name)
    assert np.array_equal(fresh.read("p1" if "p1" in fresh else "p0"), image(0))
    assert main(["doctor", "data", "out"]) == 1
    assert "p2.png" in (said := capsys.readouterr().out)
    assert "a shard differs from its index" in said or "damaged or truncated" in said


def test_a_shard_cut_short_or_replaced_is_found_at_the_start(shards):
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"00001\.tar: truncated, .* its index says 10,240; copy it again"):
        open_source("out")
    with pytest.raises(InputError, match="damaged or truncated"):
        shard_files.scan(shards[1])
    foreign(shards[1], {"other.png": encode_png(image(9))})
    with pytest.raises(InputError, match=r"00001\.tar: changed after it was indexed; .* diffir prepare index out"):
        open_source("out")
    assert main(["prepare", "index", "out", "--jobs", "1"]) == 0
    assert "other" in open_source("out")


def test_a_missing_shard_or_index_is_named(shards):
    shards[2].rename("away.tar")
    with pytest.raises(InputError, match=r"1 shards are missing \(00002\.tar\), only their indexes exist"):
        open_source("out")
    Path("away.tar").rename(shards[2])
    shard_files.index_path(shards[0]).unlink()
    with pytest.raises(InputError, match=r"1 of \d shards have no index \(00000\.tar\)"):
        open_source("out")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:-1],
        lambda lines: [*lines[:-1], lines[-1][: len(lines[-1]) // 2]],
        lambda lines: [lines[0], *(line.replace('"start": ', '"start": 9999999') for line in lines[1:])],
        lambda lines: [lines[0], *(line.replace('"sha256": "', '"sha256": "x') for line in lines[1:])],
        lambda lines: [lines[0], *(line.replace('"shape": [48', f'"shape": [{2**32}') for line in lines[1:])],
        lambda lines: [lines[0].replace('"diffir_shard": 1', '"diffir_shard": 2'), *lines[1:]],
        lambda lines: [],
    ],
)
def test_a_damaged_index_is_refused(shards, change):
    index = shard_files.index_path(shards[0])
    index.write_text("\n".join(change(index.read_text().splitlines())))
    with pytest.raises(
        InputError, match=r"00000\.tar\.index\.jsonl: cannot be read as the index of a shard .* make it"
    ):
        open_source("out")


def test_a_shard_that_shrinks_in_a_running_training_is_an_error_and_no_crash(shards):
    source = open_source("out")
    for shard in shards:
        os.truncate(shard, 600)
    with pytest.raises(InputError, match=r"\.tar: truncated at byte 600; copy it again"):
        source.read("p0")
    for shard in shards:
        shard.unlink()
    again = pickle.loads(pickle.dumps(source))
    with pytest.raises(InputError, match=r"\.tar: cannot be read \(No such file or directory\)"):
        again.read("p0")


def test_scanning_finds_what_tar_readers_pass_over():
    foreign("data/0.tar", samples())
    data = bytearray(Path("data/0.tar").read_bytes())
    place = data.find(b"000001.gt.png")
    data[place + 1] ^= 0xFF  # a damaged header in the middle, which tarfile takes for the end
    Path("data/0.tar").write_bytes(data)
    with pytest.raises(InputError, match="damaged or truncated .*neither the header of a member nor the end"):
        shard_files.scan(Path("data/0.tar"))
    for content, sentence in (
        (b"\x1f\x8b" + bytes(600), r"compressed \(gzip\); decompress it"),
        (b"no archive" * 99, "damaged or truncated"),
        (bytes(10240), "contains no images"),
    ):
        Path("data/0.tar").write_bytes(content)
        with pytest.raises(InputError, match=sentence):
            shard_files.scan(Path("data/0.tar"))
    foreign("data/0.tar", {"a.png": encode_png(image(0))[:20], "b.npy": shard_files.raw_bytes(np.zeros((3, 3)))})
    with pytest.raises(InputError, match=r"(?s)2 members cannot be used:.*a\.png.*b\.npy.*float64 \(3, 3\), expected"):
        shard_files.scan(Path("data/0.tar"))
    with tarfile.open("data/0.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "b.png"
        tar.addfile(link)
    with pytest.raises(InputError, match="a link or a sparse file"):
        shard_files.scan(Path("data/0.tar"))
    Path("data/0.tar").rename("data/0.tar.gz")
    with pytest.raises(InputError, match=r"0\.tar\.gz compressed, which allows no access to single images"):
        open_source("data")


def test_two_images_of_one_name_and_images_without_partner_are_named():
    foreign("data/0.tar", {"a.png": encode_png(image(0)), "b.png": encode_png(image(1))})
    foreign("data/1.tar", {"a.png": encode_png(image(2))})
    assert main(["prepare", "index", "data", "--jobs", "1"]) == 0
    with pytest.raises(InputError, match=r"same name: data/0\.tar\[a\.png\] and data/1\.tar\[a\.png\]; rename"):
        open_source("data")
    members = samples()
    del members["000001.lq.png"]
    foreign("pairs/0.tar", members)
    assert main(["prepare", "index", "pairs", "--jobs", "1"]) == 0
    with pytest.raises(InputError, match=r"1 of 3 ground-truth images have no partner: 000001"):
        PairedDataset(dict(dataroot_gt="pairs/gt", dataroot_lq="pairs/lq", scale=4, phase="val", name="x"))


def test_open_files_are_bounded(shards, monkeypatch):
    monkeypatch.setattr(shard_files, "_MOST_OPEN", 2)
    source = open_source("out")
    assert isinstance(source, ShardSource)
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for name in source.names * 3:
        assert source.read(name).shape == (48, 40, 3)
        assert len(source._shards._open) <= 2
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 2


# Options


def test_a_backend_is_recognised_and_contradictions_are_refused(shards):
    opt = dict(type="SingleDataset", name="x", dataroot_lq="out")
    for kind in ("disk", "lmdb"):
        with pytest.raises(InputError, match=r"out is a folder of shards; set it to 'webdataset'"):
            check_backend({**opt, "io_backend": {"type": kind}})
    with pytest.raises(InputError, match="is a folder of image files; set it to 'disk'"):
        check_backend({**opt, "dataroot_lq": "in", "io_backend": {"type": "webdataset"}})
    assert len(SingleDataset({**opt, "io_backend": {"type": "webdataset"}})) == 7
    theirs = dict(name="x", type="SingleImageDataset", phase="val", dataroot_lq="out")
    with pytest.raises(
        InputError, match=r"BasicSR's, cannot read this data: .* is a folder of shards; use type: Single"
    ):
        check_dataset_options(theirs)
    Path("listed.txt").write_text("p0.png\n")
    assert open_source("out", meta_info="listed.txt").names == ["p0"]
    assert main(["prepare", "meta", "out", "-o", "meta.txt"]) == 0
    assert "p0.png (48,40,3)\n" in Path("meta.txt").read_text()
    assert open_source("out.manifest.jsonl").names == open_source("in").names


def test_an_option_file_takes_shards(tmp_path):
    write_pairs("data", lmdb=False)
    for side in ("gt", "lq"):
        assert prepare(source=f"data/{side}", out=f"shards/{side}") == 0
    foreign("both/0.tar", samples(size=32))
    assert main(["prepare", "index", "both", "--jobs", "1"]) == 0
    recipe = Path(__file__).parents[1] / "options/test_DiffIRS2_GAN_x4.yml"
    for roots in (("shards/gt", "shards/lq"), ("both/gt", "both/lq")):
        Path("x.yml").write_text(
            f"base: {recipe}\ndatasets:\n  test_1: {{name: x, type: PairedDataset, dataroot_gt: {roots[0]}, "
            f"dataroot_lq: {roots[1]}}}\n"
        )
        values = load_options("x.yml", is_train=False, check_files=False).values
        assert values["datasets"]["test_1"]["io_backend"] == {"type": "webdataset"}


# Commands on shards


@pytest.fixture
def kinds():
    """Roots of the same pairs, (lq, gt): in folders, LMDBs, shards of one image per sample, and shards of two."""
    write_pairs("data", count=5, size=128)
    both = {}
    for side in ("gt", "lq"):
        photo = cv2.imread(f"data/{side}/p4.png")
        Path(f"data/{side}/p4.png").unlink()
        cv2.imwrite(f"data/{side}/p4.jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 30])
        assert prepare(source=f"data/{side}", out=f"shards/{side}") == 0
        files = sorted(Path("data", side).iterdir())
        both |= {f"{file.stem}.{side}{file.suffix}": file.read_bytes() for file in files}
    foreign("both/0.tar", dict(sorted(both.items())))
    assert main(["prepare", "index", "both", "--jobs", "1"]) == 0
    names = {"folder": "data/{}", "LMDB": "data/{}.lmdb", "shards": "shards/{}", "fields": "both/{}"}
    return {kind: (name.format("lq"), name.format("gt")) for kind, name in names.items()}


def test_evaluate_measures_shards_like_their_folder(kinds, capsys):
    lq, gt = kinds["folder"]
    Path("restored").mkdir()
    for file in Path(gt).iterdir():
        noisy = cv2.imread(str(file)).astype(int) + np.random.default_rng(0).integers(-9, 9, (128, 128, 3))
        Path("restored", f"{file.stem}_x.png").write_bytes(encode_png(noisy.clip(0, 255).astype(np.uint8)))
    assert prepare("--codec", "raw", source="restored", out="stored") == 0
    found = {}
    for kind in ("folder", "shards", "fields"):
        for restored in ("restored", "stored"):
            words = ["evaluate", restored, kinds[kind][1], "--preset", "sr", "--metrics", "psnr", "ssim"]
            assert main([*words, "--json", "out.json"]) == 0
            found[kind, restored] = json.loads(Path("out.json").read_text())
    assert len({json.dumps(one) for one in found.values()}) == 1
    assert found["fields", "stored"]["images"] == 5
    capsys.readouterr()
    words = ["evaluate", "stored", "both", "--preset", "sr"]
    assert main(words) == 1
    assert "consist of several images (gt, lq); choose one, such as both/gt or both/lq" in capsys.readouterr().err


def test_doctor_finds_in_shards_what_it_finds_in_their_folder(kinds):
    found = {}
    for kind in ("folder", "shards", "fields"):
        lq, gt = kinds[kind]
        code = main(["doctor", "data", "--lq", lq, "--gt", gt, "--scale", "4", "--jobs", "1", "--json", "out.json"])
        report = json.loads(Path("out.json").read_text())
        findings = [(one["check"], one["dataset"], one["found"]) for one in report["findings"]]
        found[kind] = (code, report["checked"]["images"], report["checked"]["pairs"], findings)
    assert found["shards"] == found["fields"] == found["folder"]
    assert found["folder"][1:3] == (10, 5)


def test_plan_counts_and_loads_shards_like_their_folder(kinds, monkeypatch):
    monkeypatch.setattr(plans, "_foresee", lambda plan, opt, device, base: plans._batch(plan, opt))
    found = {}
    for kind, (lq, gt) in kinds.items():
        options = train_options("s1", name="x")
        for section in options["datasets"].values():
            section |= dict(dataroot_lq=lq, dataroot_gt=gt)
        plan = plans.plan_training(write_options(options, "x.yml"))
        assert not (plan.missing, plan.warnings, plan.notes)[0]
        found[kind] = (list(plan.data_bytes.values()), plan.notes)
    size = {side: sum(file.stat().st_size for file in Path("data", side).iterdir()) for side in ("gt", "lq")}
    assert found["folder"] == found["fields"] == ([size["gt"], size["lq"]], [])
    assert all(stored > size[side] for stored, side in zip(found["shards"][0], ("gt", "lq"), strict=True))
    assert found["shards"][1] == found["LMDB"][1] == []
    Path("both/0.tar.index.jsonl").unlink()
    (note,) = plans.plan_training("x.yml").notes
    assert "no data was loaded" in note
    assert "make it with: diffir prepare index both" in note


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["describe", "both"], "both: shards of images, not weights; to examine them: diffir doctor data both"),
        (["describe", "both/lq"], "shards of images, not weights"),
        (["describe", "both/0.tar"], "to examine them: diffir doctor data both"),
        (["restore", "both", "-o", "out"], "a folder of shards; unpack their images first: tar -xf FILE -C FOLDER"),
        (["prepare", "subimages", "both/lq", "-o", "out"], "is a folder of shards; expected a folder of image files"),
    ],
)
def test_commands_that_take_no_shards_say_what_to_do(words, sentence, capsys):
    foreign("both/0.tar", samples())
    assert main(["prepare", "index", "both", "--jobs", "1"]) == 0
    assert main(words) == 1
    assert sentence in capsys.readouterr().err


def test_input_files_of_a_large_folder_are_listed_in_linear_time(monkeypatch):
    names = [f"{number:06d}.png" for number in range(20_000)]
    Path("in").mkdir()
    monkeypatch.setattr("diffir_sr.inference.files._under", lambda folder: iter(names))
    started = time.process_time()
    assert len(list(input_files("in"))) == len(names)
    assert time.process_time() - started < 2


# Samples


def rank_samples(rank, kind, opt, out, workers=2):
    """The samples of one of two ranks, with worker processes of its own."""
    from torch.utils.data import DataLoader

    from diffir_sr.data.draws import DrawSampler
    from diffir_sr.training.run import start_worker

    data = kind(opt)
    data.draws_are_unique = True
    sampler = DrawSampler(data, ratio=4, rank=rank, world_size=2, seed=7)
    loader = DataLoader(data, batch_size=2, sampler=sampler, num_workers=workers, worker_init_fn=start_worker)
    torch.save(list(loader), out)


def test_two_processes_with_two_workers_each_show_what_an_lmdb_shows():
    write_pairs("data")
    for side in ("gt", "lq"):
        assert prepare("--codec", "raw", source=f"data/{side}", out=f"shards/{side}") == 0
    start = multiprocessing.get_context("fork")

    kinds = [
        (PairedDataset, dict(use_rot=True), "data/{}.lmdb", "shards/{}"),
        (LabelledPairsDataset, dict(degradations=["noise"], clean_share=0.3), "data/gt.lmdb", "shards/gt"),
    ]
    for kind, more, *places in kinds:
        opt = dict(type=kind.__name__, scale=4, gt_size=32, phase="train", name="x", seed=3, use_hflip=True, **more)
        lmdb, stored = (
            {**opt, **{f"dataroot_{side}": place.format(side) for side in ("gt", "lq")}} for place in places
        )
        ranks = [start.Process(target=rank_samples, args=(rank, kind, stored, f"{rank}.pt")) for rank in range(2)]
        for process in ranks:
            process.start()
        for rank, process in enumerate(ranks):
            process.join()
            assert process.exitcode == 0
            rank_samples(rank, kind, lmdb, "expected.pt", workers=0)
            expected, found = torch.load("expected.pt"), torch.load(f"{rank}.pt")
            assert len(expected) == len(found) == 4
            for one, other in zip(expected, found, strict=True):
                assert one.keys() == other.keys()
                for key, value in one.items():
                    assert torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key]
