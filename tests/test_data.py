"""Images, folders, LMDBs and pairs: read exactly, and every fault named."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from basicsr.data import build_dataset
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from toy import write_pairs

from diffir_sr.cli import main
from diffir_sr.data.arrays import as_rgb_float
from diffir_sr.data.checks import check_dataset_options
from diffir_sr.data.draws import DrawSampler
from diffir_sr.data.pairs import PairedDataset, SingleDataset, find_pairs
from diffir_sr.data.sources import key_of, name_of, open_source
from diffir_sr.errors import InputError
from diffir_sr.files.images import decode
from diffir_sr.files.picture import encode_png


def photo(size=64):
    return np.ascontiguousarray(skimage.data.coffee()[:size, :size])


def put(path, image, suffix=".png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image)[1].tobytes())
    return path


def options(root="data", phase="train", lmdb=True, **change):
    suffix = ".lmdb" if lmdb else ""
    roots = dict(dataroot_gt=f"{root}/gt{suffix}", dataroot_lq=f"{root}/lq{suffix}")
    return (
        dict(name="x", type="PairedDataset", phase=phase, scale=4, gt_size=32, use_hflip=True, use_rot=True)
        | roots
        | change
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
def test_every_format_is_read_as_rgb(suffix):
    image = np.zeros((32, 40, 3), np.uint8)
    image[..., 0] = 200
    data = cv2.imencode(suffix, image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else [])[1]
    read = decode(data.tobytes(), where="x")
    assert read.shape == (32, 40, 3)
    assert abs(int(read[..., 0].mean()) - 200) <= 2
    assert read[..., 1:].max() <= 3


def test_grey_alpha_and_16_bits_become_three_float_channels():
    grey = np.full((8, 8), 51, np.uint8)
    deep = np.full((8, 8, 3), 13107, np.uint16)
    alpha = np.dstack([np.full((8, 8, 3), 51, np.uint8), np.zeros((8, 8), np.uint8)])
    for image in (grey, deep, alpha):
        read = decode(cv2.imencode(".png", image)[1].tobytes(), where="x")
        value = as_rgb_float(read)
        assert value.shape == (8, 8, 3)
        assert value.dtype == np.float32
        assert np.allclose(value, 0.2)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_a_file_cut_short_is_named_and_never_half_read(suffix):
    data = cv2.imencode(suffix, photo())[1].tobytes()
    for share in (0.0, 0.3, 0.9):
        with pytest.raises(InputError, match=r"holiday\.x"):
            decode(data[: int(len(data) * share)], where="holiday.x")


def test_a_damaged_byte_inside_a_png_is_found():
    data = bytearray(encode_png(photo()))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    with pytest.raises(InputError, match="holiday"):
        decode(bytes(data), where="holiday")


@pytest.mark.parametrize("name", ["a", "sub/0001_s001", "v1.2/a.b c", "ü/(1),2%", "x=1"])
def test_keys_are_safe_for_basicsr_and_name_the_file_again(name):
    key = key_of(name)
    assert name_of(key) == name
    assert key.isascii()
    assert not set(key) & set(". ,()")


def test_folders_and_lmdbs_hold_the_same_images(tmp_path):
    for name in ("a.png", "sub/b.c.jpg", "sub/d e.PNG"):
        put(tmp_path / "in" / name, photo(), Path(name).suffix.lower())
    assert main(["prepare", "lmdb", "in", "-o", "out.lmdb", "--jobs", "1"]) == 0
    folder, lmdb = open_source("in"), open_source("out.lmdb")
    assert folder.names == lmdb.names == ["a", "sub/b.c", "sub/d e"]
    for name in folder.names:
        assert np.array_equal(folder.read(name), lmdb.read(name))
        assert folder.size(name) == lmdb.size(name) == (64, 64)
    again = pickle.loads(pickle.dumps(lmdb))
    assert np.array_equal(again.read("a"), folder.read("a"))


def test_our_lmdbs_are_read_by_basicsr_and_basicsrs_by_ours():
    write_pairs("data")
    basicsr = build_dataset(options(phase="val", type="PairedImageDataset", io_backend=dict(type="lmdb")))
    ours = PairedDataset(options(phase="val"))
    assert len(basicsr) == len(ours) == 4
    for index in range(4):
        theirs, own = basicsr[index], ours[index]
        assert theirs["gt_path"] == own["gt_path"]
        for kind in ("lq", "gt"):
            assert torch.allclose(theirs[kind], own[kind], atol=1e-6)
    names = [f"p{index}.png" for index in range(4)]
    for kind in ("lq", "gt"):
        Path("theirs").mkdir(exist_ok=True)
        make_lmdb_from_imgs(f"data/{kind}", f"theirs/{kind}.lmdb", names, [name[:-4] for name in names])
    read = PairedDataset(options("theirs", phase="val"))
    assert all(torch.equal(read[index]["gt"], ours[index]["gt"]) for index in range(4))


def test_patches_are_aligned_turned_alike_and_follow_from_seed_and_draw():
    write_pairs("data")
    one, two = PairedDataset(options()), PairedDataset(options(lmdb=False))
    for dataset in (one, two):
        dataset.draws_are_unique = True
    patches = [one[draw] for draw in range(12)]
    for draw, patch in enumerate(patches):
        assert patch["lq"].shape == (3, 8, 8)
        assert patch["gt"].shape == (3, 32, 32)
        small = torch.nn.functional.avg_pool2d(patch["gt"], 4)
        assert (small - patch["lq"]).abs().mean() < 0.06  # the same place, turned alike
        assert torch.equal(two[draw]["gt"], patch["gt"])
    assert not torch.equal(patches[0]["gt"], patches[4]["gt"])  # the same image, another draw
    other = PairedDataset(options(seed=1))
    other.draws_are_unique = True
    assert not torch.equal(other[0]["gt"], patches[0]["gt"])


def test_repeated_draws_differ_when_the_sampler_repeats_itself():
    write_pairs("data")
    dataset = PairedDataset(options())
    assert len({dataset[0]["gt"].sum().item() for _ in range(6)}) > 1


def test_workers_do_not_change_what_a_draw_is():
    write_pairs("data")
    seen = []
    for workers in (0, 2):
        dataset = PairedDataset(options())
        sampler = DrawSampler(dataset, ratio=2, rank=0, world_size=1, seed=0)
        loader = torch.utils.data.DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers)
        seen.append(torch.cat([batch["gt"] for batch in loader]))
    assert torch.equal(*seen)


def test_draws_never_repeat_and_a_resumed_pass_is_the_rest_of_the_pass():
    class Ten:
        draws_are_unique = False

        def __len__(self):
            return 10

    dataset = Ten()
    sampler = DrawSampler(dataset, ratio=3, rank=0, world_size=1, seed=0)
    assert dataset.draws_are_unique
    passes = []
    for epoch in range(3):
        sampler.start_at(epoch)
        passes.append(list(sampler))
    draws = [draw for part in passes for draw in part]
    assert len(set(draws)) == len(draws) == 90
    assert sorted(draw % 10 for draw in passes[1]) == sorted(list(range(10)) * 3)
    sampler.start_at(1, skip=7)
    assert list(sampler) == passes[1][7:]
    ranks = []
    for rank in (0, 1):
        part = DrawSampler(Ten(), ratio=3, rank=rank, world_size=2, seed=0)
        part.start_at(2)
        ranks += list(part)
    assert sorted(ranks) == sorted(passes[2])


def test_images_without_ground_truth_keep_their_names():
    for name in ("a.b.png", "c.jpg"):
        put(Path("lq") / name, photo(), Path(name).suffix)
    dataset = SingleDataset(dict(dataroot_lq="lq", name="x"))
    assert dataset.paths == ["lq/a.b.png", "lq/c.jpg"]
    assert dataset[0]["lq"].shape == (3, 64, 64)


def refused(message, **change):
    with pytest.raises(InputError, match=message) as error:
        check_dataset_options(options(lmdb=False, **change))
    return str(error.value)


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    Path("data/gt").mkdir(parents=True)
    Path("data/lq").mkdir()
    output = refused("no images under")
    assert str(tmp_path / "data" / "lq") in output
    assert ".png" in output


def test_an_absent_folder_is_named(tmp_path):
    assert str(tmp_path / "data" / "lq") in refused("no such folder")


def test_a_missing_partner_is_named_with_both_folders():
    write_pairs("data", lmdb=False)
    Path("data/lq/p2.png").unlink()
    put(Path("data/lq/extra.png"), photo(16))
    output = refused("1 of 4 ground-truth images have no partner: p2")
    assert "1 degraded images have no ground truth: extra" in output
    assert "data/lq" in output
    assert "data/gt" in output


def test_a_wrong_scale_shows_found_and_expected():
    write_pairs("data", lmdb=False)
    put(Path("data/lq/p1.png"), photo(15))
    assert "p1: lq 15x15, gt 64x64, expected 60x60" in refused("1 of 4 ground-truth images are not 4 times")


def test_images_smaller_than_the_patch_are_listed():
    write_pairs("data", lmdb=False)
    assert "p0: 64x64" in refused("smaller than the training patch, gt_size 128", gt_size=128)


def test_a_backend_that_contradicts_the_path_is_refused():
    write_pairs("data")
    with pytest.raises(InputError, match=r"io_backend\.type is 'disk', but .*lq\.lmdb is an LMDB; set it to 'lmdb'"):
        check_dataset_options(options(io_backend=dict(type="disk")))


def test_an_lmdb_without_its_list_says_how_to_make_one():
    write_pairs("data")
    Path("data/lq.lmdb/meta_info.txt").unlink()
    with pytest.raises(InputError, match=r"lq\.lmdb: this LMDB has no meta_info\.txt.*diffir prepare lmdb"):
        check_dataset_options(options())


def test_a_key_that_the_data_does_not_hold_is_named():
    write_pairs("data")
    with Path("data/lq.lmdb/meta_info.txt").open("a") as file:
        file.write("ghost.png (16,16,3) 1\n")
    with pytest.raises(InputError, match="lists the key 'ghost'"):
        open_source("data/lq.lmdb").read("ghost")


def test_a_damaged_image_in_a_running_training_is_named():
    write_pairs("data", lmdb=False)
    file = Path("data/gt/p0.png")
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(InputError, match=r"data/gt/p0\.png: damaged or truncated"):
        PairedDataset(options(lmdb=False))[0]


def test_a_list_that_names_absent_images_gives_examples():
    write_pairs("data", lmdb=False)
    Path("meta.txt").write_text("p0.png (64,64,3)\n0430_s037.png (64,64,3)\n")
    refused(r"lists 2 images, 1 of them are not under .*0430_s037", meta_info_file="meta.txt")
    Path("meta.txt").write_text("p0.png (64,64,3)\np3.png (64,64,3)\n")
    assert len(PairedDataset(options(lmdb=False, meta_info_file="meta.txt"))) == 2


def test_degraded_names_follow_the_template_and_extensions_may_differ():
    write_pairs("data", lmdb=False)
    for file in list(Path("data/lq").iterdir()):
        image = cv2.imread(str(file))
        cv2.imwrite(str(file.with_name(f"{file.stem}x4.bmp")), image)
        file.unlink()
    found = find_pairs("data/lq", "data/gt", scale=4, filename_tmpl="{}x4")
    assert [(pair.lq, pair.gt) for pair in found.pairs][0] == ("p0x4", "p0")


def test_a_ground_truth_with_a_rest_is_cropped_when_evaluating_and_refused_when_training():
    write_pairs("data", lmdb=False, size=64)
    put(Path("data/gt/p0.png"), photo(67))
    assert PairedDataset(options(phase="val", lmdb=False))[0]["gt"].shape == (3, 64, 64)
    refused("not 4 times")


@pytest.mark.parametrize("kind", ["PairedDataset", "PairedImageDataset"])
def test_an_lmdb_is_read_by_several_datasets_and_by_workers_after_a_fork(kind):
    write_pairs("data")
    opt = options(phase="val", type=kind, io_backend=dict(type="lmdb"))
    first, second = build_dataset(opt), build_dataset(opt)
    assert torch.equal(first[0]["gt"], second[0]["gt"])
    loader = torch.utils.data.DataLoader(first, batch_size=1, num_workers=2)
    assert len([batch["gt"] for batch in loader]) == 4
    assert torch.equal(first[1]["gt"], second[1]["gt"])


def test_iterating_over_a_dataset_ends():
    write_pairs("data")
    assert len(list(PairedDataset(options()))) == 4


def test_a_data_file_cut_short_is_an_error_and_no_crash():
    rng = np.random.default_rng(0)
    for index in range(8):
        put(Path(f"in/{index}.png"), rng.integers(0, 256, (400, 400, 3), dtype=np.uint8))
    assert main(["prepare", "lmdb", "in", "-o", "out.lmdb", "--jobs", "1"]) == 0
    data = Path("out.lmdb/data.mdb")
    data.write_bytes(data.read_bytes()[:500_000])
    with pytest.raises(InputError, match=r"data\.mdb: truncated: .* the file has 500,000"):
        open_source("out.lmdb")


def test_threads_read_on_while_another_forks():
    import threading

    write_pairs("data")
    source, failures, done = open_source("data/gt.lmdb"), [], threading.Event()

    def read():
        while not done.is_set():
            try:
                source.read("p1")
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    dataset = SingleDataset(dict(dataroot_lq="data/lq.lmdb", name="x"))
    for _ in range(5):
        loader = torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=1)
        assert len(list(loader)) == 4
    done.set()
    thread.join()
    assert failures == []


def test_results_are_named_after_files_and_keys_with_their_dots():
    from diffir_sr.data.sources import image_names

    assert image_names(["a/x.png", "b/x.png", "c/v1.2.png", "v1%2E3"]) == ["a_x", "b_x", "v1.2", "v1.3"]


def write_raw_pairs():
    write_pairs("data", lmdb=False)
    for name in ("gt", "lq"):
        assert (
            main(["prepare", "lmdb", f"data/{name}", "-o", f"data/{name}.lmdb", "--codec", "raw", "--jobs", "1"]) == 0
        )


def test_bare_pixels_are_the_same_images_and_patches(capsys):
    write_raw_pairs()
    assert "raw: 0.0 MiB on disk; the files now take" in capsys.readouterr().out
    folder, lmdb = open_source("data/gt"), open_source("data/gt.lmdb")
    assert all(np.array_equal(folder.read(name), lmdb.read(name)) for name in folder.names)
    raw, files = PairedDataset(options()), PairedDataset(options(lmdb=False))
    raw.draws_are_unique = files.draws_are_unique = True
    for draw in range(8):
        assert torch.equal(raw[draw]["gt"], files[draw]["gt"])
        assert torch.equal(raw[draw]["lq"], files[draw]["lq"])


def test_grey_pixels_become_three_channels(tmp_path):
    put(Path("in/a.png"), np.full((8, 8), 51, np.uint8))
    assert main(["prepare", "lmdb", "in", "-o", "out.lmdb", "--codec", "raw", "--jobs", "1"]) == 0
    assert open_source("out.lmdb").read("a").shape == (8, 8, 1)
    assert torch.allclose(SingleDataset(dict(dataroot_lq="out.lmdb", name="x"))[0]["lq"], torch.full((3, 8, 8), 0.2))


@pytest.mark.parametrize("raw", [True, False])
def test_bytes_become_exactly_the_floats_on_the_device(raw):
    from diffir_sr.models.restoration_model import RestorationModel

    write_raw_pairs() if raw else write_pairs("data")
    bytes_, floats = PairedDataset(options()), PairedDataset(options())
    bytes_.give_bytes()
    bytes_.draws_are_unique = floats.draws_are_unique = True

    class Device:
        device = torch.device("cpu")

    for draw in range(4):
        given = bytes_[draw]["gt"]
        assert given.dtype == torch.uint8
        assert torch.equal(RestorationModel._on_device(Device(), given), floats[draw]["gt"])


def test_folders_that_may_hold_16_bits_never_give_bytes():
    write_pairs("data", lmdb=False)
    dataset = PairedDataset(options(lmdb=False))
    dataset.give_bytes()
    assert dataset[0]["gt"].dtype == torch.float32


def test_basicsrs_class_refuses_bare_pixels_with_the_reason():
    write_raw_pairs()
    with pytest.raises(InputError, match=r"contains raw pixels \(--codec raw\).*use type: PairedDataset"):
        check_dataset_options(options(type="PairedImageDataset"))


def test_pixels_of_a_wrong_length_are_an_error():
    write_raw_pairs()
    meta = Path("data/gt.lmdb/meta_info.txt")
    meta.write_text(meta.read_text().replace("(64,64,3)", "(64,65,3)"))
    with pytest.raises(InputError, match=r"gt\.lmdb\[p0\]: 12288 bytes, expected 12480"):
        open_source("data/gt.lmdb").read("p0")
