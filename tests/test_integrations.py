"""DiffIR in other programs: spandrel's contract, with the results of this package."""

import pytest
import torch
from toy import NETWORK

spandrel = pytest.importorskip("spandrel", reason="needs the extra peers")
from spandrel_extra_arches import EXTRA_REGISTRY  # noqa: E402

from diffir_sr.archs.diffir_arch import DiffIRS1, DiffIRS2  # noqa: E402
from diffir_sr.diffusion.noise import GivenNoise, fixed_noise  # noqa: E402
from diffir_sr.inference.plain import restore_image  # noqa: E402
from diffir_sr.inference.restorer import load_restorer  # noqa: E402
from diffir_sr.integrations.spandrel import DiffIRArch, install  # noqa: E402
from diffir_sr.weights_files import write_card_file  # noqa: E402

TASKS = [("sr", 4), ("sr", 2), ("sr", 1), ("deblur", 1), ("inpaint", 1)]


def diffir(task, scale, kind=DiffIRS2):
    torch.manual_seed(0)
    return kind(task=task, scale=scale, **NETWORK).eval().requires_grad_(False)


@pytest.fixture
def loader():
    registry = spandrel.MAIN_REGISTRY.copy()
    registry.add(*EXTRA_REGISTRY, ignore_duplicates=True)
    install(registry)
    install(registry)
    return spandrel.ModelLoader(registry=registry)


def called(model, height, width, *, seed=0):
    source = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3, height, width, generator=source)
    mask = torch.zeros(1, 1, height, width)
    mask[..., : height // 2, : width // 2] = 1
    masked = isinstance(model, spandrel.MaskedImageModelDescriptor)
    return image, mask, model(image, mask) if masked else model(image)


@pytest.mark.parametrize(("task", "scale"), TASKS)
def test_every_task_from_pth_and_safetensors_with_our_results(tmp_path, loader, task, scale):
    network = diffir(task, scale)
    torch.save({"params_ema": network.state_dict()}, tmp_path / "net.pth")
    write_card_file(network.state_dict(), {}, tmp_path / "net.safetensors")
    engine = load_restorer(tmp_path / "net.pth").engine
    for name in ("net.pth", "net.safetensors"):
        model = loader.load_from_file(tmp_path / name)
        assert model.architecture.id == "DiffIR"
        assert (model.scale, model.tiling, model.supports_half) == (scale, spandrel.ModelTiling.INTERNAL, False)
        assert model.purpose == ("Inpainting" if task == "inpaint" else "SR" if scale > 1 else "Restoration")
        image, mask, made = called(model, 37, 45)
        lq = torch.cat([image * (1 - mask), mask], dim=1) if task == "inpaint" else image
        noise = GivenNoise(fixed_noise(256))
        ours = restore_image(engine, lq, noise=noise).clamp(0, 1)
        if task == "inpaint":
            assert torch.equal(made[..., 20:, :], image[..., 20:, :])
            ours = torch.where(mask > 0.5, ours, image)
        assert torch.equal(made, ours)
        plain = network(lq, noise=fixed_noise(256)).clamp(0, 1)
        where = mask > 0.5 if task == "inpaint" else torch.ones(1, dtype=torch.bool)
        assert torch.where(where, made - plain, 0).abs().max() < 1e-5


@pytest.mark.parametrize(("task", "scale"), [("sr", 2), ("inpaint", 1)])
def test_the_size_requirements_are_what_is_stated(loader, task, scale):
    """spandrel's own check: every size that meets the requirements is restored, with sides times the scale."""
    model = loader.load_from_state_dict(diffir(task, scale).state_dict())
    assert (model.size_requirements.minimum, model.size_requirements.multiple_of) == (0, 1)
    for height, width in ((1, 1), (1, 5), (3, 2), (7, 16), (17, 8), (33, 31)):
        assert called(model, height, width)[2].shape == (1, 3, height * scale, width * scale)


def test_a_lightning_checkpoint_of_inpainting(tmp_path, loader):
    network = diffir("inpaint", 1)
    tensors = {f"generator.{name}": value for name, value in network.state_dict().items()}
    tensors["loss.resnet.weight"] = torch.zeros(3)
    torch.save({"state_dict": tensors}, tmp_path / "net.ckpt")
    model = loader.load_from_file(tmp_path / "net.ckpt")
    assert isinstance(model, spandrel.MaskedImageModelDescriptor)


def test_shared_tensors_that_a_file_leaves_out(tmp_path, loader):
    from safetensors.torch import save_model

    network = diffir("sr", 4)
    save_model(network, tmp_path / "net.safetensors")
    image, _, made = called(loader.load_from_file(tmp_path / "net.safetensors"), 16, 8)
    assert (made - network(image, noise=fixed_noise(256)).clamp(0, 1)).abs().max() < 1e-5


def test_no_architecture_takes_another_one_for_its_own():
    ours = DiffIRArch()
    others = [support.architecture for support in (*spandrel.MAIN_REGISTRY, *EXTRA_REGISTRY)]
    assert len(others) > 40
    for task, scale in TASKS:
        tensors = diffir(task, scale).state_dict()
        assert ours.detect(tensors)
        assert [other.id for other in others if other.id != "DiffIR" and other.detect(tensors)] == []
        assert not ours.detect(diffir(task, scale, DiffIRS1).state_dict())


def test_networks_of_others_are_not_ours():
    from spandrel.architectures.SwinIR import SwinIR
    from spandrel_extra_arches.architectures.Restormer import Restormer

    ours = DiffIRArch()
    restormer = Restormer(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 2, 2, 4])
    assert not ours.detect(restormer.state_dict())
    assert not ours.detect(SwinIR(embed_dim=12, depths=[2], num_heads=[2], img_size=16, window_size=8).state_dict())
