"""The networks reproduce the numbers of the published ones (weights from names, fixed inputs)."""

import pytest
import torch
import torch.nn.functional as F
from golden_cases import PAPER, TINY, build_stages, fill, load_case, worst

from diffir_sr.losses import KDLoss

IPR, IMAGE, LOSS, GRADIENT = 1e-5, 1e-4, 1e-4, 1e-3


@pytest.fixture(scope="module", params=TINY + PAPER)
def case(request):
    facts, arrays = load_case(request.param)
    s1, s2 = build_stages(request.param, facts)
    sums = fill(s1, "s1."), fill(s2, "s2.")
    return facts, arrays, s1, s2, sums


def test_weights_filled_by_name_have_the_published_sum(case):
    facts, _, _, _, sums = case
    assert sums == pytest.approx((facts["weight_checksum_s1"], facts["weight_checksum_s2"]), rel=1e-9)


def test_state_dicts_have_exactly_the_published_keys_and_shapes(case):
    facts, _, s1, s2, _ = case
    for net, stage in ((s1, "s1"), (s2, "s2")):
        shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
        assert shapes == facts[f"state_dict_{stage}"]
        assert sum(weight.numel() for weight in net.parameters()) == facts[f"parameters_{stage}"]


def test_schedule_buffers_equal_the_published_ones_bit_for_bit(case):
    facts, _, _, s2, _ = case
    buffers = dict(s2.diffusion.named_buffers(recurse=False))
    assert buffers.keys() == facts["diffusion_buffers"].keys()
    for name, values in facts["diffusion_buffers"].items():
        assert torch.equal(buffers[name], torch.tensor(values)), name


def test_both_stages_restore_as_published(case):
    _, golden, s1, s2, _ = case
    lq, gt, noise = golden["lq"], golden["gt"], golden["noise"]
    with torch.no_grad():
        s1.eval()
        s2.eval()
        assert worst(s1.E(lq, gt), golden["s1_ipr"]) < IPR
        assert worst(s1(lq, gt), golden["s1_out"]) < IMAGE
        assert worst(s2.condition(lq), golden["s2_condition"]) < IPR
        assert worst(s2.diffusion(lq, noise=noise), golden["s2_ipr"]) < IPR
        assert worst(s2(lq, noise=noise), golden["s2_out"]) < IMAGE


def test_training_walks_through_the_published_priors(case):
    _, golden, _, s2, _ = case
    with torch.no_grad():
        image, trajectory = s2.train()(golden["lq"], golden["s1_ipr"], noise=golden["noise"])
    assert worst(torch.stack(trajectory), golden["train_ipr_steps"]) < IPR
    assert worst(image, golden["train_out"]) < IMAGE


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
def test_three_adam_steps_have_the_published_losses_and_gradients(case, fast):
    facts, golden, _, s2, _ = case
    fill(s2, "s2.")
    s2.train()
    s2.G.fast_training = fast
    optimizer = torch.optim.Adam(s2.parameters(), lr=2e-4, betas=(0.9, 0.99))
    distance = KDLoss()
    steps = facts["train_losses"]
    if fast and s2.G.patch_embed.proj.out_channels >= 48:  # of the large networks the first says enough
        steps = steps[:1]
    for step, expected in enumerate(steps):
        image, trajectory = s2(golden["lq"], golden["s1_ipr"], noise=golden["noise"])
        pixel = F.l1_loss(image, golden["gt"])
        kl, l1 = distance(golden["s1_ipr"], trajectory[-1])
        optimizer.zero_grad()
        (pixel + l1).backward()
        computed = {"l_pix": pixel.item(), "l_abs": l1.item(), "l_kd": kl.item()}
        assert computed == pytest.approx(expected, rel=LOSS)
        if step == 0:
            norms = {name: weight.grad.norm().item() for name, weight in s2.named_parameters()}
            assert norms == pytest.approx(facts["grad_norms_step0"], rel=GRADIENT, abs=1e-9)
        optimizer.step()
