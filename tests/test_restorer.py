"""Restoring from Python: the same kind back, the same bytes as validation and test, whatever the batch or thread."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pictures import SMALL, photo, write_network
from PIL import Image
from toy import run_training, train_options, write_options, write_pairs

from diffir_sr import load_restorer, restore
from diffir_sr.archs.diffir_arch import DiffIRS1, DiffIRS2
from diffir_sr.cli import basicsr_main, main
from diffir_sr.errors import CheckpointError, InputError
from diffir_sr.files.picture import Picture, encode_png
from diffir_sr.weights_files import write_card_file


@pytest.fixture
def restorer():
    return load_restorer(write_network())


def test_the_checkpoint_says_everything():
    for task, scale in (("sr", 4), ("sr", 2), ("deblur", None), ("inpaint", None)):
        about = dict(task=task) | (dict(scale=scale) if scale else {})
        loaded = load_restorer(write_network(**about))
        assert (loaded.task, loaded.scale) == (task, scale or 1)
    assert "task: inpainting" in loaded.describe()


def test_test_command_and_restorer_write_equal_bytes():
    Path("lq").mkdir()
    for name, size in (("a", (20, 17)), ("b", (9, 24)), ("c", (1, 1))):
        Path(f"lq/{name}.png").write_bytes(encode_png(photo(*size)))
    options = dict(
        name="same", model_type="DiffIRS2Model", scale=4, num_gpu=0,
        datasets=dict(test_1=dict(name="mine", type="SingleDataset", dataroot_lq="lq")),
        network_g=train_options("s2")["network_g"],
        path=dict(pretrain_network_g=write_network(), param_key_g="params_ema", strict_load_g=True),
        val=dict(save_img=True, suffix="x", seed=5),
    )  # fmt: skip
    assert basicsr_main(["test", "-opt", write_options(options)]) == 0
    assert main(["restore", "lq", "-o", "out", "-w", "net.pth", "--seed", "5"]) == 0
    restorer = load_restorer("net.pth", seed=5)
    for name in "abc":
        tested = cv2.imread(f"results/same/visualization/mine/{name}_x.png")[..., ::-1]
        assert np.array_equal(tested, cv2.imread(f"out/{name}.png")[..., ::-1])
        assert np.array_equal(tested, restorer(f"lq/{name}.png").colours)


def test_validation_while_training_writes_what_the_saved_checkpoint_restores():
    write_pairs("data", count=2, lmdb=False)
    assert run_training(train_options("s1", iterations=1)) == 0
    options = train_options("s2", iterations=2)
    options["val"] |= dict(save_img=True, seed=3)
    assert run_training(options) == 0
    assert main(["restore", "data/lq", "-o", "out", "--seed", "3", "-w", weights_of("toy_s2", 2)]) == 0
    for name in ("p0", "p1"):
        validated = cv2.imread(f"experiments/toy_s2/visualization/{name}/{name}_2.png")
        assert np.array_equal(validated, cv2.imread(f"out/{name}.png"))


def weights_of(run, iteration):
    return f"experiments/{run}/models/net_g_{iteration}.safetensors"


def test_the_card_shows_what_shapes_cannot():
    network = DiffIRS2(**SMALL, prediction="eps")
    write_card_file(network.state_dict(), {"prediction": "eps"}, "eps.safetensors")
    assert load_restorer("eps.safetensors").network.diffusion.prediction == "eps"


def test_bytes_do_not_depend_on_batch_order_or_thread(restorer):
    pictures = [photo(12, 16, left=170 + 8 * index) for index in range(8)]
    alone = [restorer(picture) for picture in pictures]
    together = restorer(np.stack(pictures[::-1]))[::-1]
    assert np.array_equal(np.stack(alone), together)
    with ThreadPoolExecutor(2) as pool:
        assert all(np.array_equal(*pair) for pair in zip(alone, pool.map(restorer, pictures), strict=True))
    assert not np.array_equal(restorer(pictures[0], seed=1), alone[0])


def test_every_kind_comes_back_as_itself(restorer):
    picture = photo()
    made = restorer(picture)
    assert made.dtype == np.uint8
    assert made.shape == (80, 68, 3)
    deep = restorer(picture.astype(np.uint16) * 257)
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - made).max() <= 0.51
    real = restorer(picture.astype(np.float64) / 255)
    assert real.dtype == np.float64
    assert np.array_equal(np.rint(real * 255), made)
    assert restorer(picture[..., 0]).shape == (80, 68)
    assert restorer(picture[..., :1]).shape == (80, 68, 1)
    image = restorer(Image.fromarray(picture))
    assert isinstance(image, Image.Image)
    assert np.array_equal(np.asarray(image), made)
    for mode in ("L", "LA", "RGBA", "I;16"):
        given = Image.fromarray(picture[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
        assert restorer(given).mode == mode
    Path("p.png").write_bytes(encode_png(picture))
    several = restorer(["p.png", picture])
    assert isinstance(several[0], Picture)
    assert np.array_equal(np.asarray(several[0]), several[1])
    several[0].save("made.png")
    assert np.array_equal(cv2.imread("made.png")[..., ::-1], made)
    with pytest.raises(InputError, match="exists"):
        several[0].save("made.png")
    assert np.array_equal(restore("p.png", "net.pth").colours, made)


def test_alpha_is_carried_and_grey_is_the_mean_of_the_colours(restorer):
    picture = photo()
    alpha = np.full(picture.shape[:2], 200, np.uint8)
    made = restorer(np.dstack([picture, alpha]))
    assert np.array_equal(made[..., :3], restorer(picture))
    assert (made[..., 3] == 200).all()
    grey = picture[..., 1]
    colours = restorer(np.repeat(grey[..., None], 3, 2).astype(np.float32) / 255)
    assert np.allclose(restorer(grey.astype(np.float32) / 255), colours.mean(2), atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((4, 4, 5), np.uint8), r"expected an array.*got \(4, 4, 5\)"),
        (np.zeros((0, 4, 3), np.uint8), "not empty"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"of 1 image or more, got \(0, 4, 4, 3\)"),
        (np.zeros((4, 4, 3), np.int64), "uint8, uint16 or float, got int64"),
        (np.full((4, 4, 3), 255.0), r"in \[0, 1\], found 255 to 255; scale"),
        (np.full((4, 4, 3), np.nan), "found nan"),
        (torch.zeros(3, 4, 4), "got Tensor; convert torch tensors with"),
        (Image.new("LAB", (4, 4)), "mode LAB"),
        ("absent.png", "absent.png: cannot be read"),
    ],
)
def test_what_cannot_be_restored_is_refused_in_words(restorer, wrong, message):
    with pytest.raises(InputError, match=message):
        restorer(wrong)


def test_weights_that_cannot_restore_are_named():
    torch.save(
        {"params": DiffIRS1(**{k: v for k, v in SMALL.items() if k in ("dim", "num_blocks")}).state_dict()}, "one"
    )
    with pytest.raises(CheckpointError, match="is DiffIR stage 1.*needs the ground truth"):
        load_restorer("one")
    torch.save({"params": {"conv.weight": torch.zeros(1)}}, "other.pth")
    with pytest.raises(CheckpointError, match="belong to no known network"):
        load_restorer("other.pth")
    with pytest.raises(InputError, match="choose auto, cpu"):
        load_restorer(write_network(), device="cuda:99")
    for wrong in (torch.int8, "int8", 16):
        with pytest.raises(InputError, match="dtype .* is unknown; choose one of float32"):
            load_restorer("net.pth", dtype=wrong)
    for wrong in ("x", ("net.pth",), ("net.pth", "much"), ("net.pth", None), (3, 0.5)):
        with pytest.raises(InputError, match="blend: expected a file and a share from 0 to 1"):
            load_restorer("net.pth", blend=wrong)


def spoilt_network(value, file="nan.pth"):
    content = torch.load(write_network(), weights_only=True)["params_ema"]
    content["G.tail.1.weight"][0, 0, 0, 0] = value
    torch.save({"params_ema": content}, file)
    return file


def test_a_result_that_is_not_finite_is_no_picture():
    with pytest.raises(
        CheckpointError, match=r"nan\.pth: the tensor G\.tail\.1\.weight contains 1 values of .* not finite"
    ):
        load_restorer(spoilt_network(float("nan")))
    broken = load_restorer(spoilt_network(1.0))
    with torch.no_grad():  # spoilt after it was read
        broken.network.state_dict()["G.tail.1.weight"][0, 0, 0, 0] = float("nan")
    for restored in (broken, lambda picture: broken.samples(picture, 2)):
        with pytest.raises(
            InputError,
            match=r"result of nan\.pth.* is not finite: 1 of its weight tensors contain NaN or infinity.*G\.tail\.1",
        ):
            restored(photo())
    with pytest.raises(InputError, match=r"huge\.pth.* is not finite, although its weights are; use another"):
        load_restorer(spoilt_network(3e38, "huge.pth"))(photo())


def test_samples_differ_by_start_noise_alone_and_their_spread_is_the_deviation(restorer):
    picture = photo().astype(np.float32) / 255
    drawn = restorer.samples(picture, 4)
    assert np.array_equal(drawn.restored[0], restorer(picture))
    stack = np.stack(drawn.restored).astype(np.float64)
    assert np.allclose(drawn.mean, stack.mean(0), atol=1e-6)
    assert np.allclose(drawn.spread, np.sqrt(stack.var(0).mean(2)), atol=1e-6)
    assert drawn.spread.max() > 1e-3
    with pytest.raises(InputError, match="2 or more"):
        restorer.samples(picture, 1)


def test_a_network_that_ignores_its_noise_has_no_spread():
    content = torch.load(write_network(), weights_only=True)["params_ema"]
    for name, weight in content.items():
        if name.endswith("kernel.0.weight"):
            weight.zero_()
    torch.save({"params_ema": content}, "deaf.pth")
    assert load_restorer("deaf.pth").samples(photo(), 3).spread.max() < 1e-6


def test_the_dial_goes_from_one_network_to_the_other():
    faithful, sharp = write_network("a.pth"), write_network("b.pth", stage="gan")
    picture = photo().astype(np.float32) / 255
    ends = [load_restorer(file)(picture) for file in (faithful, sharp)]
    for share, end in zip((0, 1), ends, strict=True):
        assert np.allclose(load_restorer(faithful, blend=(sharp, share))(picture), end, atol=1e-5)
    middle = load_restorer(faithful, blend=(sharp, 0.5))
    assert not np.allclose(middle(picture), ends[0], atol=1e-3)
    weights = [torch.load(file, weights_only=True)["params_ema"]["G.tail.1.weight"] for file in (faithful, sharp)]
    assert torch.allclose(middle.network.G.tail[1].weight, sum(weights) / 2)
    with pytest.raises(CheckpointError, match="only weights of the same network"):
        load_restorer(faithful, blend=(write_network("c.pth", task="deblur"), 0.5))
    with pytest.raises(InputError, match="from 0"):
        load_restorer(faithful, blend=(sharp, 1.5))


def test_known_pixels_stay_and_the_mask_decides_the_rest():
    restorer = load_restorer(write_network(task="inpaint"))
    picture, missing = photo(), np.zeros((20, 17), bool)
    missing[5:12, 3:9] = True
    made = restorer(picture, mask=missing)
    assert np.array_equal(made[~missing], picture[~missing])
    assert not np.array_equal(made[missing], picture[missing])
    spoilt = np.where(missing[..., None], 77, picture).astype(np.uint8)
    assert np.array_equal(restorer(spoilt, mask=missing), made)  # what is missing has no say
    deep = picture.astype(np.uint16) * 257 + 3
    assert np.array_equal(restorer(deep, mask=missing)[~missing], deep[~missing])
    painted = np.where(missing[..., None], (255, 0, 255), picture).astype(np.uint8)
    assert np.array_equal(restorer(painted, mask="#ff00ff"), made)
    for wrong, message in (
        (missing[1:], "mask is 19x17, expected 20x17"),
        (None, "give a mask of them"),
        ("no.png", "neither a"),
    ):
        with pytest.raises(InputError, match=message):
            restorer(picture, mask=wrong)
    with pytest.raises(InputError, match="takes no mask"):
        load_restorer(write_network())(picture, mask=missing)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float16])
@pytest.mark.parametrize("shape", [(20, 17), (20, 17, 1), (20, 17, 3)])
def test_a_mask_of_noughts_and_ones_is_a_mask(kind, shape):
    restorer = load_restorer(write_network(task="inpaint"))
    missing = np.zeros(shape, bool)
    missing[5:12, 3:9] = True
    made = restorer(photo(), mask=missing.astype(kind))
    assert np.array_equal(made, restorer(photo(), mask=missing))
    assert not np.array_equal(made, photo())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((20, 17), np.nan), r"from nan to nan, expected \[0, 1\]"),
        (np.full((20, 17), 255.0), r"from 255 to 255, expected \[0, 1\]; scale"),
        (np.zeros((20, 17, 0), np.uint8), r"the shape \(20, 17, 0\); expected"),
        (np.zeros((20, 17, 5), np.uint8), r"the shape \(20, 17, 5\); expected"),
        (np.zeros((20, 17), np.int64), "bool, uint8 or float, got int64"),
    ],
)
def test_a_mask_that_says_nothing_is_refused(mask, message):
    restorer = load_restorer(write_network(task="inpaint"))
    with pytest.raises(InputError, match=message):
        restorer(photo(), mask=mask)


def test_a_mask_with_nothing_missing_leaves_the_picture_and_is_reported(caplog):
    restorer = load_restorer(write_network(task="inpaint"))
    assert np.array_equal(restorer(photo(), mask=np.zeros((20, 17), bool)), photo())
    restorer.samples(photo(), 2, mask=np.zeros((20, 17), bool))
    assert caplog.messages == ["mask: the mask is black: no pixel is missing."] * 2


def test_a_folder_is_restored_from_python_with_progress_that_can_stop_it(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        picture = np.random.default_rng(index).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        (photos / f"{index}.png").write_bytes(encode_png(picture))
    restorer, seen = load_restorer(write_network(task="deblur")), []

    def stop_after_two(done, total, file):
        seen.append((done, total, file.name))
        return done < 2

    outcome = restorer.files(photos, tmp_path / "out", progress=stop_after_two)
    assert (outcome.restored, outcome.stopped) == (2, True)
    assert seen == [(1, 3, "0.png"), (2, 3, "1.png")]
    assert not (tmp_path / "out/2.png").exists()
    again = restorer.files(photos, tmp_path / "out")
    assert (again.restored, again.kept, again.stopped) == (1, 2, False)


def test_a_batch_is_restored_at_once_with_the_results_of_single_pictures(monkeypatch):
    restorer = load_restorer(write_network(task="deblur"))
    pictures = np.random.default_rng(0).random((3, 16, 24, 3), dtype=np.float32)
    alone = [restorer(one) for one in pictures]
    calls = []
    engine = restorer.engine
    monkeypatch.setattr(restorer, "engine", lambda lq, **how: calls.append(len(lq)) or engine(lq, **how))
    monkeypatch.setattr(type(restorer), "_pixels_at_once", 2 * 16 * 24)
    together = restorer(pictures)
    assert calls == [2, 1]
    assert np.abs(together - np.stack(alone)).max() < 1e-5


def test_a_restorer_moves():
    restorer = load_restorer(write_network(task="deblur"), device="cpu")
    assert restorer.to("cpu") is restorer
    assert restorer.device.type == "cpu"
    with pytest.raises(InputError, match="of this kind|is unknown"):
        restorer.to("cuda:99")
