"""What a user gets wrong ends with one clear message, exit code 1, and no trace in the folders."""

from pathlib import Path

import cv2
import pytest
import torch
from golden_cases import load_case
from toy import S1, S2, run_training, train_options, write_options, write_pairs

from diffir_sr.archs.diffir_arch import DiffIRS1, DiffIRS2
from diffir_sr.cli import basicsr_main, main


@pytest.fixture
def data():
    return write_pairs("data", lmdb=False)


def weights(kind, file, **arguments):
    given = {name: value for name, value in (S1 if kind is DiffIRS1 else S2).items() if name != "type"}
    torch.save({"params": kind(**(given | arguments)).state_dict()}, file)
    return file


def refused(capsys, options, *parts, command="train"):
    if command == "train":
        assert run_training(options) == 1
    else:
        assert basicsr_main(["test", "-opt", write_options(options)]) == 1
    output = capsys.readouterr().err
    for part in parts:
        assert part in output, output
    assert "Traceback" not in output
    assert not Path("experiments").exists()
    assert not Path("results").exists()


def test_no_images(capsys, data):
    for file in Path("data/lq").iterdir():
        file.unlink()
    refused(capsys, train_options("s1"), "datasets.train", "no images under", str(Path("data/lq").absolute()), ".png")


def test_a_missing_partner(capsys, data):
    Path("data/lq/p1.png").unlink()
    refused(capsys, train_options("s1"), "1 of 4 ground-truth images have no partner: p1", "filename_tmpl")


def test_a_wrong_scale_between_the_pairs(capsys, data):
    file = "data/lq/p1.png"
    cv2.imwrite(file, cv2.resize(cv2.imread(file), (32, 32)))
    refused(capsys, train_options("s1"), "p1: lq 32x32, gt 64x64, expected 128x128", "diffir prepare downscale")


def test_an_image_too_small_for_the_patch(capsys, data):
    options = train_options("s1")
    options["datasets"]["train"]["gt_size"] = 96
    refused(capsys, options, "smaller than the training patch, gt_size 96", "p0: 64x64", "lower gt_size")


def test_an_lmdb_without_its_list(capsys):
    write_pairs("data")
    Path("data/gt.lmdb/meta_info.txt").unlink()
    refused(capsys, train_options("s1"), "gt.lmdb", "no meta_info.txt", "diffir prepare lmdb")


def test_a_truncated_image_stops_the_training_with_its_name(capsys, data):
    for file in Path("data/gt").iterdir():
        file.write_bytes(file.read_bytes()[:2000])
    assert run_training(train_options("s1")) == 1
    output = capsys.readouterr().err
    assert "damaged or truncated" in output
    assert "data/gt/p" in output


def test_an_unknown_option(capsys, data):
    options = train_options("s1")
    options["train"]["total_iters"] = 3
    refused(capsys, options, "toy_s1.yml:", "train.total_iters", "did you mean 'total_iter'")
    options = train_options("s1")
    options["network_g"]["n_encoder_rez"] = 3
    refused(capsys, options, "network_g.n_encoder_rez", "did you mean 'n_encoder_res'")


def test_missing_weights(capsys, data):
    refused(capsys, train_options("s2"), "experiments/toy_s1/models/net_g_latest.pth", "DiffIRS1", "no such file")


def test_weights_of_the_other_stage(capsys, data):
    options = train_options("s2")
    weights(DiffIRS2, "s2.pth")
    weights(DiffIRS1, "s1.pth")
    options["path"] |= dict(pretrain_network_g="s1.pth", pretrain_network_S1="s2.pth")
    refused(capsys, options, "path.pretrain_network_S1", "s2.pth is DiffIR stage 2", "pretrain_network_g")
    options = train_options("gan")
    options["path"] |= dict(pretrain_network_g="s1.pth", pretrain_network_S1="s1.pth")
    refused(capsys, options, "path.pretrain_network_g", "s1.pth is DiffIR stage 1", "expected DiffIR stage 2")


def test_weights_of_another_family_scale_or_size(capsys, data):
    options = dict(
        name="t", model_type="DiffIRS2Model", scale=4, num_gpu=0, network_g=dict(S2), val=dict(save_img=True),
        datasets=dict(test_1=dict(name="x", type="SingleDataset", dataroot_lq="data/lq")),
    )  # fmt: skip

    def tested(file, *parts):
        path = dict(pretrain_network_g=file, strict_load_g=False)
        refused(capsys, options | dict(path=path), *parts, command="test")

    torch.save({"params_ema": {"conv_first.weight": torch.zeros(3)}}, "esrgan.pth")
    tested("esrgan.pth", "esrgan.pth is not a DiffIR checkpoint", "conv_first.weight")
    tested(weights(DiffIRS2, "x2.pth", scale=2), "x2.pth is DiffIR stage 2, sr x2", "sr x4")
    tested(weights(DiffIRS2, "wide.pth", dim=16), "dim: 16 in the file, 8 in the options")
    Path("cut.pth").write_bytes(Path("x2.pth").read_bytes()[:5000])
    tested("cut.pth", "cut.pth: not a readable PyTorch weights file")


def test_missing_vgg_weights(capsys, data, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DIFFIR_OFFLINE", "1")
    perceptual = dict(type="PerceptualLoss", layer_weights={"conv5_4": 1.0}, vgg_type="vgg19")
    assert run_training(train_options("s1", perceptual_opt=perceptual)) == 1
    output = capsys.readouterr().err
    for part in (
        "weights vgg19 not found",
        "experiments/pretrained_models/vgg19-dcbb9e9d.pth",
        "DIFFIR_OFFLINE=1 disables network access",
        "vgg_type: vgg16",
    ):
        assert part in output


def test_a_degraded_image_of_any_size_is_restored_when_testing(data):
    weights(DiffIRS2, "s2.pth")
    for name, size in (("one", (1, 1)), ("wide", (37, 3))):
        Path("lq").mkdir(exist_ok=True)
        cv2.imwrite(f"lq/{name}.png", cv2.resize(cv2.imread("data/lq/p0.png"), size))
    options = dict(
        name="t", model_type="DiffIRS2Model", scale=4, num_gpu=0, network_g=dict(S2), val=dict(save_img=True),
        datasets=dict(test_1=dict(name="x", type="SingleDataset", dataroot_lq="lq")),
        path=dict(pretrain_network_g="s2.pth"),
    )  # fmt: skip
    assert basicsr_main(["test", "-opt", write_options(options)]) == 0
    assert cv2.imread("results/t/visualization/x/one_t.png").shape == (4, 4, 3)
    assert cv2.imread("results/t/visualization/x/wide_t.png").shape == (12, 148, 3)


def test_one_unreadable_picture_stops_no_other_when_testing(data, capsys, caplog):
    weights(DiffIRS2, "s2.pth")
    Path("lq").mkdir()
    whole = Path("data/lq/p0.png").read_bytes()
    Path("lq/a.png").write_bytes(whole[:-9])
    deep = cv2.imread("data/lq/p1.png").astype("uint16") * 257
    cv2.imwrite("lq/b.png", cv2.cvtColor(deep, cv2.COLOR_BGR2BGRA))
    Path("lq/c.png").write_bytes(whole)
    options = dict(
        name="t", model_type="DiffIRS2Model", scale=4, num_gpu=0, network_g=dict(S2), val=dict(save_img=True),
        datasets=dict(test_1=dict(name="x", type="SingleDataset", dataroot_lq="lq")),
        path=dict(pretrain_network_g="s2.pth"),
    )  # fmt: skip
    assert basicsr_main(["test", "-opt", write_options(options)]) == 1
    output = capsys.readouterr().err
    assert "x: 1 of 3 images could not be read" in output
    assert "lq/a.png: damaged or truncated" in output
    assert "lose its transparency and more than 8 bits" in output + caplog.text
    assert sorted(file.name for file in Path("results/t/visualization/x").iterdir()) == ["b_t.png", "c_t.png"]


def test_describe_says_what_a_file_is(capsys):
    assert main(["describe", weights(DiffIRS2, "s2.pth")]) == 0
    output = capsys.readouterr().out
    for part in ("DiffIR stage 2, sr x4, dim 8", "timesteps: 4", "params,"):
        assert part in output
    assert main(["describe", "absent.pth"]) == 1
    assert "no such weights file" in capsys.readouterr().err


def test_a_published_sized_network_is_described_by_its_file(capsys):
    facts, _ = load_case("deblur_paper")
    torch.save({"params_ema": DiffIRS2(task="deblur", **facts["arch_kwargs"]).state_dict()}, "deblur.pth")
    assert main(["describe", "deblur.pth"]) == 0
    output = capsys.readouterr().out
    assert "DiffIR stage 2, deblur, dim 48, blocks 3,5,6,6" in output
    assert f"{facts['parameters_s2']:,d} numbers" in output


def test_no_command_is_an_error_with_usage(capsys):
    for call in (main, basicsr_main):
        with pytest.raises(SystemExit) as stopped:
            call([])
        assert stopped.value.code == 2
    assert "usage: diffir" in capsys.readouterr().err


def test_a_word_for_a_number_is_one_problem(capsys, data):
    options = train_options("s1", optim_g=dict(type="Adam", lr="fast"))
    refused(capsys, options, "train.optim_g.lr: expected a number, found 'fast'")
    assert run_training(options) == 1
    assert "problems" not in capsys.readouterr().err
