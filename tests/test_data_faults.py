"""Faults of data that are told by name, and names that must not become faults."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from basicsr.data import build_dataset
from basicsr.utils.lmdb_util import make_lmdb_from_imgs

from diffir_sr.cli import main
from diffir_sr.data.checks import check_dataset_options
from diffir_sr.data.pairs import PairedDataset, SingleDataset, find_pairs
from diffir_sr.data.sources import open_source
from diffir_sr.errors import InputError

PHOTO = np.ascontiguousarray(skimage.data.coffee()[100:164, 200:264])


def put(path, image=PHOTO):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix.lower(), image[..., ::-1])[1].tobytes())


def put_pair(name, *, lq_name=None, suffix=".png"):
    put(f"gt/{name}.png")
    put(f"lq/{lq_name or name}{suffix}", PHOTO[::4, ::4])


def opt(**change):
    roots = dict(dataroot_lq="lq", dataroot_gt="gt")
    return dict(name="x", type="PairedDataset", phase="val", scale=4) | roots | change


def prepare(*words):
    assert main(["prepare", *words, "--jobs", "1"]) == 0


def as_lmdbs():
    for kind in ("lq", "gt"):
        prepare("lmdb", kind, "-o", f"{kind}.lmdb")
    return dict(dataroot_lq="lq.lmdb", dataroot_gt="gt.lmdb")


AWKWARD = ["photo (1)", "v1.2/a.b c", "ü, 100% (2,3)", "plain"]


def test_lists_may_name_files_with_blanks_and_brackets():
    for name in AWKWARD:
        put_pair(name)
    prepare("meta", "gt", "-o", "meta.txt")
    found = find_pairs("lq", "gt", scale=4, meta_info="meta.txt")
    assert sorted(pair.gt for pair in found.pairs) == sorted(AWKWARD)


def test_basicsr_reads_our_lmdbs_whatever_the_files_are_called():
    for name in AWKWARD:
        put_pair(name)
    roots = as_lmdbs()
    theirs = build_dataset(opt(type="PairedImageDataset", io_backend=dict(type="lmdb"), **roots))
    ours = PairedDataset(opt(**roots))
    by_key = {sample["gt_path"]: sample for sample in ours}
    assert len(theirs) == len(by_key) == 4
    for index in range(4):
        sample = theirs[index]
        assert np.allclose(sample["gt"], by_key[sample["gt_path"]]["gt"], atol=1e-6)


def test_lmdbs_of_basicsr_with_dots_in_their_keys_are_read():
    put("in/v1.2.png")
    make_lmdb_from_imgs("in", "theirs.lmdb", ["v1.2.png"], ["v1.2"])
    source = open_source("theirs.lmdb")
    assert source.names == ["v1.2"]
    assert np.array_equal(source.read("v1.2"), PHOTO)
    assert source.describe().startswith("LMDB ")
    assert source.describe().endswith("theirs.lmdb, 1 images")


def test_a_template_works_on_lmdbs_as_on_folders():
    put_pair("0801", lq_name="0801x4")
    options = opt(filename_tmpl="{}x4", **as_lmdbs())
    check_dataset_options(options)
    assert PairedDataset(options)[0]["lq_path"] == "0801x4"


@pytest.mark.parametrize("template", ["x4", "{name}x4", "{}x{}", "{", "{0.none}"])
def test_a_template_that_makes_no_names_is_refused(template):
    put_pair("a")
    with pytest.raises(InputError, match=r"filename_tmpl: .* is invalid.*\{\}x4"):
        find_pairs("lq", "gt", scale=4, filename_tmpl=template)


@pytest.mark.parametrize("dataset", [PairedDataset, SingleDataset])
def test_datasets_refuse_a_backend_that_contradicts_the_path(dataset):
    put_pair("a")
    with pytest.raises(InputError, match=r"io_backend\.type is 'lmdb', but .* is a folder of image files"):
        dataset(opt(io_backend=dict(type="lmdb")))


def refused_for_basicsr(message, **change):
    options = opt(io_backend=dict(type="disk"), **(dict(type="PairedImageDataset") | change))
    with pytest.raises(InputError, match=message) as error:
        check_dataset_options(options)
    assert "use type: PairedDataset" in str(error.value) or "use type: SingleDataset" in str(error.value)
    check_dataset_options(options | dict(type=options["type"].replace("Image", "")))  # ours reads it
    return str(error.value)


def test_different_extensions_are_reported_before_basicsr_fails_on_them():
    put_pair("a", suffix=".jpg")
    refused_for_basicsr(r"partners with different extensions: a\.jpg and a\.png")


def test_sub_folders_and_strange_files_are_reported_before_basicsr_fails_on_them():
    put_pair("a")
    put_pair("sub/b")
    Path("gt/Thumbs.db").write_text("x")
    output = refused_for_basicsr("images in sub-folders of .*lq: sub/b")
    assert "Thumbs.db" in output
    refused_for_basicsr("images in sub-folders of .*lq: sub/b", type="SingleImageDataset")


def test_good_data_of_basicsr_classes_passes_and_builds():
    put_pair("a")
    options = opt(type="PairedImageDataset", io_backend=dict(type="disk"))
    check_dataset_options(options)
    assert len(build_dataset(options)) == 1


def test_a_folder_and_an_lmdb_make_pairs():
    put_pair("a")
    roots = as_lmdbs()
    assert len(PairedDataset(opt(dataroot_gt=roots["dataroot_gt"]))) == 1
    with pytest.raises(InputError, match="lq is a folder, gt is an LMDB"):
        check_dataset_options(opt(type="PairedImageDataset", dataroot_gt=roots["dataroot_gt"]))


def test_all_unreadable_files_are_named_at_once():
    for index in range(12):
        put_pair(f"{index:02d}")
    for name in ("03", "11"):
        Path(f"lq/{name}.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"2 of 12 images of .*lq cannot be read") as error:
        find_pairs("lq", "gt", scale=4)
    assert "lq/03.png" in str(error.value)
    assert "lq/11.png" in str(error.value)


def test_many_offenders_are_counted_and_ten_are_shown():
    for index in range(13):
        put_pair(f"{index:02d}")
        put(f"gt/{index:02d}.png", PHOTO[:60])
    with pytest.raises(InputError, match="13 of 13 ground-truth images are not 4 times") as error:
        find_pairs("lq", "gt", scale=4)
    assert str(error.value).count("expected 64x64") == 10
    assert "... (3 more)" in str(error.value)


def test_files_of_one_name_are_all_reported():
    for name in ("a.png", "a.jpg", "sub/b.png", "sub/b.BMP"):
        put(Path("in", name))
    with pytest.raises(InputError, match=r"a\.jpg and a\.png.*sub/b\.BMP and sub/b\.png"):
        open_source("in")


def test_linked_folders_are_read_once_and_hidden_ones_never():
    put("store/b.png")
    put("in/a.png")
    put("in/.thumbnails/a.png")
    Path("in/linked").symlink_to(Path("store").resolve())
    Path("in/loop").symlink_to(Path("in").resolve())
    assert open_source("in").names == ["a", "linked/b"]


def test_a_file_that_vanishes_is_named():
    put_pair("a")
    source = open_source("gt")
    Path("gt/a.png").unlink()
    with pytest.raises(InputError, match=r"gt/a\.png: cannot be read"):
        source.read("a")


def test_data_that_changed_after_the_check_is_not_trained_on():
    put_pair("a")
    dataset = PairedDataset(opt(phase="train", gt_size=32))
    put("gt/a.png", PHOTO[:40, :40])
    with pytest.raises(InputError, match=r"gt/a\.png is 40x40 and lq/a\.png 16x16, which does not fit scale 4"):
        dataset[0]


def test_going_through_a_dataset_ends():
    for name in "abc":
        put_pair(name)
    assert [sample["gt_path"] for sample in PairedDataset(opt())] == [f"gt/{name}.png" for name in "abc"]
    assert len(list(SingleDataset(opt()))) == 3


def test_a_broken_list_of_an_lmdb_is_shown():
    put_pair("a")
    as_lmdbs()
    Path("lq.lmdb/meta_info.txt").write_text("a.png 16 16 3\n")
    with pytest.raises(
        InputError, match=r"expected 'key\.png \(height,width,channels\) level', found 'a\.png 16 16 3'"
    ):
        open_source("lq.lmdb")
