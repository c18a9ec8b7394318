"""Reading LMDBs: the same as LMDB itself on whole files of both formats; on damaged ones an error, never a signal."""

import json
import os
import pickle
import random
import subprocess
import sys
import threading
from pathlib import Path

import lmdb
import numpy as np
import pytest

from diffir_sr.data.sources import LmdbSource, open_source
from diffir_sr.errors import InputError
from diffir_sr.files.lmdb_file import LmdbFile
from diffir_sr.files.picture import encode_png

DAMAGES = """
import json, random, struct, sys
from diffir_sr.errors import InputError
from diffir_sr.files.lmdb_file import LmdbFile

path, count = sys.argv[1] + "/data.mdb", int(sys.argv[2])
whole = open(path, "rb").read()
keys = LmdbFile(sys.argv[1]).all_keys()
pages = range(0, len(whole), 4096)
numbered = [(at, *struct.unpack_from("<QHH", whole, at)[::2]) for at in pages]
tree = [0, 4096] + [at for at, number, flags in numbered if number == at // 4096 and flags in (1, 2)]
own = [at for at, number, flags in numbered if number == at // 4096 and flags == 4]

def cut(data, rng):
    del data[rng.randrange(len(data)):]

def flip(data, rng):
    for _ in range(rng.choice((1, 1, 4, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)

def flip_heads(data, rng):
    data[rng.choice(tree + own) + rng.randrange(24)] ^= 1 << rng.randrange(8)

def replace_words(data, rng):
    at = rng.choice(tree) + 2 * rng.randrange(60)
    data[at : at + 2] = rng.choice((b"\\0\\0", b"\\xff\\xff", b"\\xff\\x0f", b"\\x02\\0", rng.randbytes(2)))

def wipe(data, rng):
    page = rng.choice(pages)
    data[page : page + 4096] = bytes(4096)

refused = {}
for damage in (cut, flip, flip_heads, replace_words, wipe):
    rng, caught = random.Random(1), 0
    for _ in range(count):
        data = bytearray(whole)
        damage(data, rng)
        with open(path, "wb") as file:
            file.write(data)
        errors = []
        file = LmdbFile(sys.argv[1])
        for ask in (file.check, lambda: [file.get(key) for key in keys]):
            try:
                ask()
            except InputError as error:
                errors.append(str(error))
        assert all("data.mdb: " in error and "copy the LMDB again" in error for error in errors), errors
        caught += bool(errors)
    refused[damage.__name__] = caught
print(json.dumps(refused))
"""


@pytest.fixture
def images(tmp_path):
    """An LMDB of 300 values, small and on their own pages; what it holds."""
    return fill(tmp_path / "a.lmdb", 300)


def fill(path, count, **kind):
    rng = random.Random(3)
    values = {
        f"sub/{number:05d}": rng.randbytes(rng.choice((0, 1, 30, 2000, 2500, 4080, 4081, 20_000)))
        for number in range(count)
    }
    with lmdb.open(str(path), map_size=2**28, **kind) as environment:
        for some in (list(values.items())[: count // 2], list(values.items())[count // 2 :]):
            with environment.begin(write=True) as transaction:
                for key, value in some:
                    transaction.put(key.encode(), value)
    return path, values


@pytest.mark.parametrize("count", [0, 1, 2, 3000])
@pytest.mark.parametrize("form", [0, 1])
def test_it_reads_what_lmdb_reads(tmp_path, count, form):
    try:
        path, values = fill(tmp_path / "a.lmdb", count, **({"lib_version": 1} if form else {}))
    except TypeError:
        pytest.skip("this lmdb writes one format")
    file = LmdbFile(path)
    file.check()
    assert [key.decode() for key in file.all_keys()] == sorted(values)
    assert all(file.get(key.encode()) == value for key, value in values.items())
    assert all(file.get(key) is None for key in (b"", b"sub/", b"sub/00000 ", b"zzz"))
    again = pickle.loads(pickle.dumps(file))
    for key, value in values.items():
        found = again.find(key.encode())
        assert (
            again.read_at(found.start + len(value) // 3, len(value) // 3) == value[len(value) // 3 :][: len(value) // 3]
        )


def test_without_pread_and_from_many_threads(images, monkeypatch):
    monkeypatch.delattr(os, "pread", raising=False)  # as on Windows
    path, values = images
    file, wrong = LmdbFile(path), []

    def read(seed):
        keys = random.Random(seed).sample(sorted(values), 200)
        wrong.extend(key for key in keys if file.get(key.encode()) != values[key])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_damaged_file_ends_the_process(tmp_path):
    path, _ = fill(tmp_path / "a.lmdb", 120)
    words = [sys.executable, "-c", DAMAGES, str(path), "100"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    refused = json.loads(done.stdout)  # what is left hit pages that are not in use, or the inside of a value
    least = {"cut": 60, "flip": 1, "flip_heads": 30, "replace_words": 10, "wipe": 10}
    assert all(refused[damage] >= count for damage, count in least.items()), refused


def test_a_file_that_shrinks_or_changes_while_it_is_read(images):
    path, values = images
    file = LmdbFile(path)
    key = max(values, key=lambda name: len(values[name]))
    assert file.get(key.encode()) == values[key]
    with lmdb.open(str(path), map_size=2**28) as environment, environment.begin(write=True) as transaction:
        transaction.put(key.encode(), b"other")
    assert file.get(key.encode()) == b"other"
    found = file.find(min(values).encode())
    os.truncate(path / "data.mdb", 5000)
    with pytest.raises(InputError, match=r"data\.mdb: truncated"):
        file.get(key.encode())
    with pytest.raises(InputError, match=r"data\.mdb: .*(truncated|is needed)"):
        file.read_at(found.start, found.size + 2**20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (bytes(9000), "empty"),
        (b"<html>" * 2000, "not the data file of an LMDB"),
        (bytes(12) + b"\xde\xc0\xef\xbe" + bytes(9000), "another word size"),
        (bytes(16) + b"\xbe\xef\xc0\xde" + bytes(9000), "byte order"),
    ],
)
def test_what_is_no_lmdb_is_named(tmp_path, content, message):
    (tmp_path / "data.mdb").write_bytes(content)
    with pytest.raises(InputError, match=message):
        LmdbFile(tmp_path).check()


def test_other_kinds_of_lmdb_are_named(tmp_path):
    with lmdb.open(str(tmp_path), max_dbs=2) as environment:
        named = environment.open_db(b"named")
        with environment.begin(write=True) as transaction:
            transaction.put(b"a", b"b", db=named)
    with pytest.raises(InputError, match="nested tables"):
        LmdbFile(tmp_path).check()
    with pytest.raises(InputError, match="cannot be read .No such file"):
        LmdbFile(tmp_path / "absent").all_keys()


def test_a_part_of_bare_pixels_is_that_part(tmp_path):
    image = np.random.default_rng(0).integers(256, size=(50, 40, 3), dtype=np.uint8)
    with lmdb.open(str(tmp_path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"a", image.tobytes())
        transaction.put(b"b", encode_png(image))
    (tmp_path / "meta_info.txt").write_text("a.png (50,40,3) raw\nb.png (50,40,3) 1\n")
    source = LmdbSource(tmp_path)
    for name in "ab":
        view = source.view(name)
        assert view.shape == image.shape
        assert np.array_equal(source.read(name), image)
        for part in (np.s_[3:20], np.s_[3:20, 5:9], np.s_[45:90, 30:], np.s_[60:70], np.s_[-5:], np.s_[::2, ::-1]):
            assert np.array_equal(view[part], image[part])
        assert view[3:20, 5:9].flags.writeable


def test_a_cut_lmdb_is_reported_before_a_run(images):
    path, values = images
    (path / "meta_info.txt").write_text("".join(f"{key}.png (1,1,1) 1\n" for key in values))
    open_source(path)
    data = Path(path / "data.mdb").read_bytes()
    Path(path / "data.mdb").write_bytes(data[: len(data) // 2])
    with pytest.raises(
        InputError, match=r"data\.mdb: truncated: byte [\d,]+ is needed, the file has [\d,]+; copy the LMDB"
    ):
        open_source(path)
