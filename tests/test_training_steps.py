"""How a step is computed: half precision, memory formats, compilation, parts of a batch; what is told."""

import copy

import pytest
import torch
from basicsr.archs import build_network
from basicsr.models import build_model
from options_cases import refusal
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from toy import ADAM, S2, train_options, train_stages, warm_up_law

from diffir_sr.diffusion.noise import IterationNoise, RowsNoise
from diffir_sr.errors import OptionError
from diffir_sr.models import optimization
from diffir_sr.models.optimization import Acceleration, ScaledSteps, accelerate, half_precision_fault, repeated_blocks
from diffir_sr.models.restoration_model import RestorationModel

CPU = torch.device("cpu")
SGD = dict(type="SGD", lr=0.05, momentum=0.9)
STAGES = {"s1": ("s1", {}), "s2": ("s2", {}), "warm-up": ("s2", warm_up_law(2)), "gan": ("gan", {})}


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Stage 1 and stage 2, trained for a moment, for others to start from."""
    return train_stages(tmp_path_factory.mktemp("steps"), dict(s1=1, s2=1))


@pytest.fixture
def inside(stages, monkeypatch):
    monkeypatch.chdir(stages)
    return stages


def model_of(kind, *, logged=100, **train):
    """The model of a stage, from the same weights every time."""
    stage, law = STAGES[kind]
    opt = train_options(stage, **{**law, **train})
    opt |= dict(dist=False, rank=0, world_size=1, is_train=True)
    opt["logger"]["print_freq"] = logged
    opt["path"] |= dict(log="log", models="models", training_states="states", visualization="pictures")
    torch.manual_seed(0)
    return build_model(opt)


def batch(count=4, size=8):
    torch.manual_seed(1)
    return dict(lq=torch.rand(count, 3, size, size), gt=torch.rand(count, 3, 4 * size, 4 * size))


def steps(model, count=4):
    """All that `count` iterations changed: weights of both networks, and what was noted."""
    noted = []
    note = model.note
    model.note = lambda current_iter, values: (noted.append(values), note(current_iter, values))
    for iteration in range(1, count + 1):
        model.update_learning_rate(iteration)
        model.feed_data(batch())
        model.optimize_parameters(iteration)
    nets = [model.net_g, *([model.adversary.net] if hasattr(model, "adversary") else [])]
    weights = torch.cat([weight.detach().flatten() for net in nets for weight in net.parameters()])
    return weights, noted


# Parts of a batch


@pytest.mark.parametrize("kind", STAGES)
def test_a_batch_in_parts_makes_the_step_of_the_whole(inside, kind):
    sgd = dict(optim_g=SGD) | (dict(optim_d=SGD) if kind == "gan" else {})
    sgd |= dict(lr_encoder=0.05, lr_sr=0.05) if kind == "warm-up" else {}
    whole, noted = steps(model_of(kind, **sgd))
    start, _ = steps(model_of(kind, **sgd), count=0)
    assert (whole - start).abs().max() > 1e-3
    for parts in (2, 4):
        model = model_of(kind, accumulation=parts, **sgd)
        made, output = steps(model)
        assert (made - whole).abs().max() < 1e-6
        for one, other in zip(output, noted, strict=True):
            # How far the priors of a batch are apart is less in its parts; all else is a mean over pictures.
            assert one.keys() - {"prior_spread"} == other.keys() - {"prior_spread"}
            means = one.keys() - {"prior_spread"}
            assert all(torch.allclose(one[name], other[name], rtol=1e-5, atol=1e-6) for name in means)
        assert len(model.lq) == len(model.gt) == 4


def test_separate_training_of_the_diffusion_draws_for_whole_batches(inside):
    whole, parts = (
        steps(model_of("s2", optim_g=SGD, diffusion_training="separate", accumulation=parts))[0] for parts in (1, 2)
    )
    assert (whole - parts).abs().max() < 1e-6


def test_parts_of_a_batch_have_the_noise_of_the_whole():
    noise = IterationNoise(seed=3, iteration=5)
    parts = [RowsNoise(noise, first=first, count=6).normal((2, 7), "x") for first in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), noise.normal((6, 7), "x"))


def test_a_batch_that_does_not_divide_is_one_sentence(inside):
    model = model_of("s1", accumulation=3)
    model.feed_data(batch())
    with pytest.raises(OptionError, match=r"train\.accumulation: 3 parts of a batch of 4 pictures; choose a divisor"):
        model.optimize_parameters(1)


def test_networks_with_batch_norm_are_not_trained_in_parts(inside, monkeypatch):
    monkeypatch.setattr("diffir_sr.models.restoration_model.has_batch_norm", lambda net: True)
    with pytest.raises(
        OptionError, match=r"train\.accumulation: DiffIRS1Model with DiffIRS1 computes statistics of wh"
    ):
        model_of("s1", accumulation=2)


@pytest.mark.parametrize("kind", ["s1", "warm-up", "gan"])
def test_processes_exchange_gradients_once_a_step(inside, kind, monkeypatch):
    """A process alone, wrapped as one of several: its hook counts what would be sent."""
    sent = []

    def counted(_, bucket):
        sent.append(bucket.index())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def wrapped(self, net):
        net = DistributedDataParallel(net)
        net.register_comm_hook(None, counted)
        return net

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        monkeypatch.setattr(RestorationModel, "model_to_device", wrapped)
        monkeypatch.setattr(RestorationModel, "get_bare_model", lambda self, net: getattr(net, "module", net))
        model = model_of(kind, accumulation=4)
        for iteration in (1, 2, 3):
            sent.clear()
            model.feed_data(batch())
            model.optimize_parameters(iteration)
            # Once for the network; once each for true and restored pictures of the discriminator.
            assert sent.count(0) == (3 if kind == "gan" else 1)
    finally:
        distributed.destroy_process_group()


# float16


def test_an_overflow_leaves_weights_moments_and_average_alone_but_for_the_scale(inside):
    model = model_of("s2", autocast="float16", clip_grad_norm=1.0)
    assert model.scaled is not None
    model.scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    before, _ = steps(model, count=0)
    after, _ = steps(model, count=1)
    assert torch.equal(before, after)
    assert not model.optimizer_g.state
    assert (model.scaled.skipped, model.scaled.scaler.get_scale()) == (1, 2.0**99)
    model.scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    again, _ = steps(model, count=1)
    assert torch.isfinite(again).all()
    assert not torch.equal(again, after)


def test_the_scale_of_losses_comes_back_with_all_that_it_counts():
    one, other = ScaledSteps(CPU), ScaledSteps(CPU)
    one.scaler.load_state_dict(one.scaler.state_dict() | dict(scale=3.5, _growth_tracker=11))
    one.skipped = 7
    other.restore(one.state())
    assert other.state() == one.state()
    assert other.scaler.get_scale() == 3.5


@pytest.mark.parametrize("autocast", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["s1", "gan"])
def test_half_precision_stays_near_the_losses_of_full(inside, kind, autocast):
    (_, full), (_, half) = (steps(model_of(kind, autocast=one), count=1) for one in ("none", autocast))
    tolerance = 2e-2 if autocast == "bfloat16" else 3e-3
    for name, value in full[0].items():
        assert half[0][name].dtype == torch.float32
        assert torch.allclose(half[0][name], value, rtol=tolerance, atol=tolerance * 0.1), name


def test_a_machine_without_half_precision_is_one_sentence(monkeypatch):
    def refuse(*_):
        raise RuntimeError("mkldnn_fp16: needs avx512_fp16\nmore")

    monkeypatch.setattr(nn.functional, "conv2d", refuse)
    assert half_precision_fault("float16", CPU) == "mkldnn_fp16: needs avx512_fp16"
    with pytest.raises(OptionError, match=r"train\.autocast: float16 does not work on this cpu \(mkldnn_fp16: needs"):
        accelerate(nn.Linear(2, 2), Acceleration(autocast="float16"), CPU)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True}, False),
        ({"architecture": "x86_64", "amx_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_a_processor_that_emulates_bfloat16_is_warned_about(monkeypatch, caplog, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    with caplog.at_level("WARNING", logger="basicsr"):
        accelerate(nn.Conv2d(2, 2, 3), Acceleration(autocast="bfloat16"), CPU)
    assert ("bfloat16 is emulated and slower than float32" in caplog.text) == expected


# Channels last, compilation


def test_images_and_convolutions_have_their_channels_last(inside):
    model = model_of("s2", channels_last=True, form="plain")
    seen = []
    body = model.net_g.G
    body.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made, _ = steps(model, count=1)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert body.patch_embed.proj.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(made, steps(model_of("s2", form="plain"), count=1)[0], atol=1e-5)


def test_repeated_blocks_are_the_outermost_that_occur_twice():
    net = build_network(dict(S2, num_blocks=[2, 1, 1, 1], scale=4, task="sr"))
    blocks = repeated_blocks(net)
    assert {type(block).__name__ for block in blocks} == {"Block"}
    assert len(blocks) == 2 + 1 + 1 + 1 + 1 + 1 + 2 + 1  # with the decoder and the refinement
    rrdb = build_network(dict(type="RRDBNet", num_in_ch=3, num_out_ch=3, num_feat=8, num_block=3, num_grow_ch=4))
    assert [type(block).__name__ for block in repeated_blocks(rrdb)] == ["RRDB"] * 3
    assert repeated_blocks(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))) == []


def test_compiled_blocks_train_and_validation_leaves_them_alone(inside, monkeypatch):
    compiled, graphs = nn.Module.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compiled(self, backend=backend, **how))
    torch.compiler.reset()
    model = model_of("s2", compile=True, ema_decay=0)
    made, _ = steps(model, count=1)
    assert len(graphs) >= 3  # of different widths
    count = len(graphs)
    model.feed_data(batch(count=1, size=12))
    model.test()
    assert len(graphs) == count
    assert torch.allclose(made, steps(model_of("s2", form="plain", ema_decay=0), count=1)[0], atol=1e-6)


class Gated(nn.Module):
    """As small as a block can be: the compiler takes its time for each operation."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(4))

    def forward(self, x):
        return x + self.gain * x.sigmoid()


@pytest.mark.slow
def test_compiled_blocks_have_the_plain_numbers():
    torch.compiler.reset()
    plain = nn.Sequential(Gated(), Gated()).train()
    compiled = copy.deepcopy(plain)
    accelerate(compiled, Acceleration.of(dict(compile=True)), CPU)
    x = torch.rand(3, 4)
    made, wanted = compiled(x), plain(x)
    assert torch.allclose(made, wanted, atol=1e-6)
    for image in (made, wanted):
        image.square().mean().backward()
    pairs = zip(compiled.parameters(), plain.parameters(), strict=True)
    assert all(torch.allclose(one.grad, other.grad, atol=1e-6) for one, other in pairs)


def test_a_machine_without_a_compiler_is_one_sentence(inside, monkeypatch):
    monkeypatch.setattr(optimization.shutil, "which", lambda name: None)
    with pytest.raises(OptionError, match=r"train\.compile: torch\.compile needs a C\+\+ compiler .* none was found"):
        model_of("s2", compile=True)
    monkeypatch.setattr(optimization, "find_spec", lambda name: None)
    assert "needs Triton" in str(optimization.compiler_fault(torch.device("cuda")))


# No waiting for the device


class Readings(TorchDispatchMode):
    """Counts values that are read out of tensors, each of which waits for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", STAGES)
def test_a_step_reads_no_value_until_the_log_prints(inside, kind):
    sgd = dict(optim_g=SGD) | (dict(optim_d=SGD) if kind == "gan" else {})
    model = model_of(kind, logged=4, accumulation=2, clip_grad_norm=0.5, **sgd)
    counts = []
    for iteration in range(1, 5):
        model.feed_data(batch())
        with Readings() as readings:
            model.optimize_parameters(iteration)
        counts.append(readings.count)
    assert counts[:3] == [0, 0, 0]
    assert counts[3] == len(model.log_dict)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("change", [{}, dict(autocast="bfloat16", channels_last=True), dict(accumulation=2)])
@pytest.mark.parametrize("kind", STAGES)
def test_a_step_on_cuda_waits_for_nothing(inside, kind, change):
    """The twin on a graphics card: CUDA itself refuses what waits."""
    model = model_of(kind, **change)
    model.feed_data(batch())
    model.optimize_parameters(1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.optimize_parameters(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", STAGES)
def test_all_options_train_on_cuda(inside, kind):
    optimizer = dict(ADAM, fused=True)
    change = dict(autocast="float16", channels_last=True, compile=True, accumulation=2, optim_g=optimizer)
    weights, noted = steps(model_of(kind, **change), count=4)
    assert torch.isfinite(weights).all()
    assert all(torch.isfinite(value) for values in noted for value in values.values())


# Contradictions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(form="fast", autocast="float16"), "fast sums over all pixels beyond what float16 can hold"),
        (dict(form="fast", compile=True), "fast is not compiled, compile is for the plain form"),
        (dict(accumulation=3), "3 does not divide datasets.train.batch_size_per_gpu, which is 2"),
        (dict(accumulation=0), "accumulation"),
        (dict(accumulation=2, pixel_opt=dict(type="L1Loss", reduction="sum")), "is no mean over the pictures"),
        (dict(autocast="float8"), "autocast"),
        (dict(optim_g=dict(ADAM, fused=True, foreach=True)), "fused"),
    ],
)
def test_contradictions_are_reported_before_anything_is_made(inside, change, message):
    assert message in refusal(train_options("s1", **change))
