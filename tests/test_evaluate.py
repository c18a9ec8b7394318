"""`diffir evaluate`: pairs by name, the presets' protocols, and the same numbers as validation."""

import csv
import errno
import json
import time
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from test_metrics_perceptual import needs_weights
from toy import run_training, train_options, write_options, write_pairs

from diffir_sr.cli import basicsr_main, main
from diffir_sr.data.sources import ImageSource
from diffir_sr.errors import InputError, OptionError
from diffir_sr.evaluation.measure import pair_up
from diffir_sr.evaluation.presets import PRESETS, plan_measurement
from diffir_sr.files.images import decode
from diffir_sr.files.picture import encode_png
from diffir_sr.metrics import Features, psnr, ssim

PHOTO = skimage.data.coffee()[100:164, 100:180]


def store(folder, images, ending=""):
    for name, image in images.items():
        path = Path(folder) / f"{name}{ending}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.ascontiguousarray(image)))


def noisy(sigma):
    noise = np.random.default_rng(0).normal(0, sigma, PHOTO.shape)
    return (PHOTO + noise).round().clip(0, 255).astype(np.uint8)


def evaluated(*arguments):
    assert main(["evaluate", "restored", "gt", *arguments, "-o", "out/each.csv", "--json", "out/all.json"]) == 0
    with Path("out/each.csv").open() as file:
        return json.loads(Path("out/all.json").read_text()), list(csv.DictReader(file))


@pytest.mark.parametrize("count", [1, 5])
def test_means_and_order_are_right_for_one_and_five_images(count, capsys):
    images = {f"p{index}": noisy(3 * index + 3) for index in (3, 0, 2, 4, 1)[:count]}
    store("gt", dict.fromkeys(images, PHOTO))
    store("restored", images)
    found, rows = evaluated("--preset", "deblur")
    values = {name: psnr(image, PHOTO) for name, image in images.items()}
    assert found["mean"]["psnr"] == pytest.approx(sum(values.values()) / count, rel=1e-12)
    likeness = [ssim(image, PHOTO, convention="matlab") for image in images.values()]
    assert found["mean"]["ssim_matlab"] == pytest.approx(np.mean(likeness), rel=1e-12)
    order = sorted(values, key=values.__getitem__)
    assert [row["image"] for row in found["worst_first"]] == order
    assert [row["image"] for row in rows] == [*order, "mean"]
    assert float(rows[-1]["psnr"]) == pytest.approx(found["mean"]["psnr"], abs=1e-6)
    shown = capsys.readouterr().out
    assert "RGB, border 0\n" in shown
    assert "RGB, border 0, MATLAB's, window over channels too" in shown


def test_equal_images_are_infinite_in_table_csv_and_json(capsys):
    store("gt", {"a": PHOTO, "b": PHOTO})
    store("restored", {"a": PHOTO, "b": noisy(9)})
    found, rows = evaluated("--preset", "deblur", "--metrics", "psnr")
    assert found["mean"]["psnr"] == "inf"
    assert [row["psnr"] for row in rows] == [f"{psnr(noisy(9), PHOTO):.6f}", "inf", "inf"]
    assert "inf" in capsys.readouterr().out


def test_names_may_have_one_ending_that_all_share(capsys):
    gt = {"a": PHOTO, "a_b": PHOTO, "sub/c1": PHOTO, "sub/c10": PHOTO}
    store("gt", gt)
    store("restored", {name.rpartition("/")[2]: noisy(5) for name in gt}, ending="x4_run")
    sets = pair_up("restored", "gt")
    assert sets.ending == "x4_run"
    assert {pair.gt: pair.restored for pair in sets.pairs}["sub/c1"] == "c1x4_run"
    assert pair_up("restored", "gt", suffix="x4_run").ending == "x4_run"
    assert main(["evaluate", "restored", "gt", "--preset", "sr", "--metrics", "psnr"]) == 0
    assert "restored names end in 'x4_run'" in capsys.readouterr().out


def test_what_does_not_pair_is_listed():
    store("gt", {"a": PHOTO, "b": PHOTO})
    store("restored", {"a_run": PHOTO})
    with pytest.raises(InputError, match="1 of 2 images of gt .* have no restored partner .*: b; .*found there: a_run"):
        pair_up("restored", "gt")
    store("restored", {"b_run": PHOTO, "c_run": PHOTO})
    with pytest.raises(InputError, match="1 restored images .* have no ground truth .*: c_run"):
        pair_up("restored", "gt")
    with pytest.raises(InputError, match="followed by 'other' or '_other'"):
        pair_up("restored", "gt", suffix="other")
    store("gt_one", {"a": PHOTO})
    store("restored_two", {"a_x": PHOTO, "a_y": PHOTO})
    with pytest.raises(InputError, match="several suffixes: _x, _y; choose one with --suffix"):
        pair_up("restored_two", "gt_one")


def test_many_names_are_paired_in_linear_time(monkeypatch):
    gt = [f"{number:05d}" for number in range(10_000)]
    for ending, names in (("_run", [f"{name}_run" for name in gt]), ("_x", [f"{name}_x" for name in gt[1:]])):
        sources = iter([FakeSource(names), FakeSource(gt)])
        monkeypatch.setattr("diffir_sr.evaluation.measure.open_source", lambda path, sources=sources: next(sources))
        started = time.process_time()
        if ending == "_run":
            assert pair_up("restored", "gt").ending == "_run"
        else:
            with pytest.raises(InputError, match="1 of 10000 images .* no restored partner .*: 00000; "):
                pair_up("restored", "gt")
        assert time.process_time() - started < 2


class FakeSource(ImageSource):
    """Names without images."""

    view = location = describe = None

    def __init__(self, names):
        self.names, self.path = names, Path("fake")

    def shape(self, name):
        return 8, 8, 3


def test_a_ground_truth_may_be_larger_only_where_the_scale_leaves_a_rest(capsys):
    store("gt", {"a": PHOTO})
    store("restored", {"a": noisy(5)[:-2, :-3]})
    found, _ = evaluated("--preset", "sr", "--metrics", "psnr")
    assert found["mean"]["psnr"] == psnr(noisy(5)[:-2, :-3], PHOTO[:-2, :-3], border=4, luma=True)
    assert "1 ground truths cropped to the restored size" in capsys.readouterr().out
    assert main(["evaluate", "restored", "gt", "--preset", "deblur"]) == 1
    assert "a: restored 62x77, gt 64x80" in capsys.readouterr().err


def test_inpainting_is_reported_by_the_size_of_the_hole(capsys):
    masks = {name: np.zeros((64, 80, 1), np.uint8) for name in "abc"}
    for name, rows in (("a", 8), ("b", 10), ("c", 32)):
        masks[name][:rows] = 255
    store("masks", masks)
    store("gt", dict.fromkeys("abc", PHOTO))
    store("restored", {"a": noisy(4), "b": noisy(8), "c": noisy(16)})
    found, rows = evaluated("--preset", "inpaint", "--metrics", "psnr", "--masks", "masks")
    assert [row["image"] for row in found["worst_first"]] == ["c", "b", "a"]
    assert [row["hole"] for row in rows] == ["0.500000", "0.156250", "0.125000", ""]
    assert {title: part["images"] for title, part in found["holes"].items()} == {"10-20%": 2, "50-60%": 1}
    two = [psnr(noisy(sigma), PHOTO) for sigma in (4, 8)]
    assert found["holes"]["10-20%"]["psnr"] == pytest.approx(np.mean(two))
    assert "10-20% (2 images)" in capsys.readouterr().out
    Path("masks/b.png").unlink()
    assert main(["evaluate", "restored", "gt", "--preset", "inpaint", "--metrics", "psnr", "--masks", "masks"]) == 1
    assert "1 of 3 images have no mask of the same name" in capsys.readouterr().err


@needs_weights
def test_distances_of_sets_are_called_by_their_features(capsys):
    store("gt", {"a": PHOTO, "b": PHOTO[::-1]})
    store("restored", {"a": noisy(30), "b": noisy(30)[::-1]})
    found, _ = evaluated("--preset", "inpaint", "--metrics", "fd_vgg16", "kd_vgg16")
    assert found["protocol"]["fd_vgg16"] == "Frechet distance, features: VGG16 conv5_3"
    assert found["sets"]["fd_vgg16"] > 0
    assert "FID" not in capsys.readouterr().out


class Colours(torch.nn.Module):
    """Mean and corner of each channel, instead of a large network's features."""

    def forward(self, images):
        return torch.cat([images.mean((2, 3)), images[..., 0, 0]], dim=1)


def test_distances_on_patches_see_every_pixel_once(capsys, monkeypatch):
    pytest.importorskip("torchmetrics", reason="needs: pip install 'diffir_sr[metrics]'")
    monkeypatch.setattr("diffir_sr.evaluation.measure.vgg16_features", lambda: Features("VGG16 conv5_3", Colours()))
    picture = np.tile(PHOTO, (8, 7, 1))[:480, :512]
    store("gt", {"a": picture})
    store("restored", {"a": picture[::-1]})
    found, _ = evaluated("--preset", "dvsr", "--metrics", "patch_fd_vgg16", "patch_kd_vgg16")
    assert "4 and 4 patches" in capsys.readouterr().out
    assert found["protocol"]["patch_fd_vgg16"].endswith("patches of 256x240")
    # The same as pictures of their own.
    quarters = [(top, left) for top in (0, 240) for left in (0, 256)]
    for folder, whole in (("gt", picture), ("restored", picture[::-1])):
        parts = {f"{top}_{left}": whole[top : top + 240, left : left + 256] for top, left in quarters}
        store(f"{folder}_parts", parts)
    assert main(["evaluate", "restored_parts", "gt_parts", "--preset", "dvsr", "--metrics", "fd_vgg16", "--json", "j"]) == 0  # fmt: skip  # noqa: E501
    alone = json.loads(Path("j").read_text())["sets"]["fd_vgg16"]
    assert found["sets"]["patch_fd_vgg16"] == pytest.approx(alone, rel=1e-5)


def test_pictures_that_do_not_divide_into_patches_are_reported_before_measuring(capsys):
    whole = np.tile(PHOTO, (4, 4, 1))[:240, :256]
    store("gt", {"a": PHOTO, "b": whole})
    store("restored", {"a": PHOTO, "b": whole})
    assert main(["evaluate", "restored", "gt", "--preset", "dvsr", "--metrics", "patch_fd_vgg16"]) == 1
    output = capsys.readouterr().err
    height, width = PHOTO.shape[:2]
    assert "1 of 2 images (height x width) cannot be divided into patches of 240x256" in output
    assert f"a: {height}x{width}" in output


def test_without_the_weights_of_inception_there_is_no_fid_and_a_way_without(capsys):
    store("gt", {"a": PHOTO, "b": PHOTO})
    store("restored", {"a": noisy(5), "b": noisy(5)})
    assert main(["evaluate", "restored", "gt", "--preset", "inpaint", "--inception", "mine.pth"]) == 1
    output = capsys.readouterr()
    assert "--inception: no such file" in output.err
    assert "To measure without FID and KID: --metrics lpips_vgg ssim fd_vgg16" in output.err
    assert output.out == ""


def test_presets_have_the_protocols_of_the_tables():
    how = {
        name: {
            m: (o["crop_border"], o.get("test_y_channel"), o.get("net"))
            for m, o in plan_measurement(name).images.items()
        }
        for name in PRESETS
    }
    assert how["sr"]["psnr"] == how["realsr"]["psnr"] == (4, True, None)
    assert how["deblur"] == {"psnr": (0, False, None), "ssim_matlab": (0, False, None)}
    assert how["sr"]["lpips_alex"] == (0, None, "alex")
    assert how["realsr"]["lpips_vgg"] == how["inpaint"]["lpips_vgg"] == (0, None, "vgg")
    assert plan_measurement("inpaint").sets == ("fid",)
    assert plan_measurement("dvsr").sets == ("patch_fid", "patch_kid")
    assert how["dvsr"]["psnr"] == (0, False, None)
    changed = plan_measurement("sr", ["psnr", "niqe"], border=2, luma=False).images
    assert changed["psnr"] == dict(type="calculate_psnr", crop_border=2, test_y_channel=False)
    assert changed["niqe"] == dict(type="calculate_niqe", crop_border=2)
    with pytest.raises(OptionError, match="unknown mse; known: psnr"):
        plan_measurement("sr", ["mse"])


def test_images_too_small_for_a_metric_are_named(capsys):
    store("gt", {"a": PHOTO})
    store("restored", {"a": noisy(5)})
    assert main(["evaluate", "restored", "gt", "--preset", "sr", "--metrics", "niqe"]) == 1
    assert "a: NIQE needs two blocks of 96 pixels, found 56x72" in capsys.readouterr().err
    assert main(["evaluate", "restored", "gt", "--preset", "sr", "--metrics", "ssim", "--border", "27"]) == 1
    assert "SSIM needs sides of 11 pixels, found 10x26" in capsys.readouterr().err


@needs_weights
def test_numbers_equal_those_of_validation_to_the_digit():
    write_pairs("data", count=2, lmdb=False)
    options = train_options("s1", iterations=1)
    assert run_training(options) == 0
    store(
        "larger",
        {
            path.stem: np.pad(decode(path.read_bytes(), where="gt"), ((0, 3), (0, 2), (0, 0)))
            for path in Path("data/gt").iterdir()
        },
    )
    how = {
        "psnr": dict(type="calculate_psnr", crop_border=4, test_y_channel=True),
        "ssim": dict(type="calculate_ssim", crop_border=4, test_y_channel=True),
        "lpips_alex": dict(type="calculate_lpips"),
        "ssim_matlab": dict(type="calculate_ssim_matlab", crop_border=4, test_y_channel=True),
    }
    pair = dict(type="PairedDataset", dataroot_gt="larger", dataroot_lq="data/lq")
    tested = {key: options[key] for key in ("model_type", "scale", "num_gpu", "network_g")} | dict(
        name="tested",
        datasets=dict(test=dict(name="few", **pair)),
        path=dict(pretrain_network_g="experiments/toy_s1/models/net_g_latest.pth"),
        val=dict(save_img=True, metrics=how),
    )
    assert basicsr_main(["test", "-opt", write_options(tested, "test.yml")]) == 0
    arguments = ["--preset", "sr", "--metrics", *how, "-o", "again.csv"]
    assert main(["evaluate", "results/tested/visualization/few", "larger", *arguments]) == 0
    with Path("results/tested/few.csv").open() as first, Path("again.csv").open() as second:
        validated, again = (sorted(csv.DictReader(file), key=lambda row: row["image"]) for file in (first, second))
    assert len(again) == 3
    assert again == validated


@pytest.mark.parametrize(
    ("option", "path", "message"),
    [
        ("-o", "gt", "gt: is a folder; give a file in it"),
        ("-o", "afile/x.csv", "afile/x.csv: cannot be written (Not a directory)"),
        ("--json", "x" * 300, "cannot be written (File name too long)"),
    ],
)
def test_a_place_that_cannot_be_written_is_reported_before_the_measuring(capsys, monkeypatch, option, path, message):
    store("gt", {"a": PHOTO})
    Path("afile").write_text("")
    monkeypatch.setattr("diffir_sr.evaluation.measure.measure", None)  # would fail
    assert main(["evaluate", "gt", "gt", "--preset", "sr", option, path]) == 1
    assert message in capsys.readouterr().err
    assert sorted(one.name for one in Path().iterdir()) == ["afile", "gt"]


def test_a_disk_that_fills_up_during_the_measuring_is_reported(capsys, monkeypatch):
    def full(data, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    store("gt", {"a": PHOTO})
    monkeypatch.setattr("diffir_sr.evaluation.commands.write_report", full)
    assert main(["evaluate", "gt", "gt", "--preset", "sr", "--metrics", "psnr", "-o", "out/x.csv"]) == 1
    output = capsys.readouterr()
    assert "out/x.csv: cannot be written (No space left on device)" in output.err
    assert "psnr" in output.out.lower()


@pytest.mark.parametrize("asked", ["exists", "is_file"])
def test_a_folder_that_may_not_be_entered_is_reported(capsys, monkeypatch, asked):
    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    store("gt", {"a": PHOTO})
    monkeypatch.setattr(Path, asked, refuse)
    assert main(["evaluate", "gt", "gt", "--preset", "sr", "--metrics", "psnr"]) == 1
    assert "cannot be accessed (Permission denied); check its permissions" in capsys.readouterr().err
