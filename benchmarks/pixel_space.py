"""SR3 and DvSR against the plain form of the published SR3 code: python benchmarks/pixel_space.py [-o FILE].

The plain form is written here anew from what the public code does: images in the default order of memory, swish and
attention as they stand in the formulas, a walk over buffers of float32, one picture at a time, a first guess for every
sample. Both compute the same; how far apart they are stands in the table. Rounds of the two alternate, seconds are
medians of what the process itself computed, so that a busy machine disturbs little. The loop's share is what the
sampler takes besides the network.
"""

import argparse
import math
import statistics
import time
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from setting import commit, machine
from torch import nn

from diffir_sr.archs.dvsr_arch import DvSR
from diffir_sr.archs.noise_level_unet_arch import Entry, NoiseLevelUNet, ResidualBlock
from diffir_sr.archs.sr3_arch import SR3
from diffir_sr.diffusion.noise import PictureNoise
from diffir_sr.inference.plain import engine_for, restore_samples


def swish(x):
    return x * torch.sigmoid(x)


class PlainUNet:
    """A `NoiseLevelUNet` computed as the public code writes it, with the same weights."""

    def __init__(self, net: NoiseLevelUNet):
        self.net = net
        self.weights = {name: weight.detach().clone(memory_format=torch.contiguous_format) for name, weight in net.named_parameters()}  # fmt: skip  # noqa: E501
        self.names = {module: name for name, module in net.named_modules()}

    def conv(self, module, x):
        name = self.names[module]
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride=module.stride, padding=module.padding)

    def through(self, modules, x):
        for module in modules:
            if isinstance(module, nn.Conv2d):
                x = self.conv(module, x)
            elif isinstance(module, nn.SiLU):
                x = swish(x)
            elif isinstance(module, nn.GroupNorm):
                x = F.group_norm(x, module.num_groups, module.weight, module.bias, module.eps)
            elif isinstance(module, nn.Sequential):
                x = self.through(module, x)
            else:
                x = module(x)
        return x

    def block(self, block, x, level):
        inner = self.through(block.block1.block, x)
        if level is not None:
            inner = inner + block.noise_func.noise_func(level).view(len(x), -1, 1, 1)
        inner = self.through(block.block2.block, inner)
        return inner + self.through([block.res_conv], x)

    def attention(self, attention, x):
        count, channels, height, width = x.shape
        query, key, value = self.conv(attention.qkv, self.through([attention.norm], x)).chunk(3, dim=1)
        map_ = torch.einsum("nchw,ncyx->nhwyx", query, key) / math.sqrt(channels)
        map_ = torch.softmax(map_.view(count, height, width, -1), -1).view(count, height, width, height, width)
        return self.conv(attention.out, torch.einsum("nhwyx,ncyx->nchw", map_, value)) + x

    def part(self, part, x, level):
        if isinstance(part, Entry):
            x = self.block(part.res_block, x, level)
            return self.attention(part.attn, x) if hasattr(part, "attn") else x
        if isinstance(part, ResidualBlock):
            return self.block(part, x, level)
        if isinstance(part, nn.Conv2d):
            return self.conv(part, x)
        return self.conv(part.conv, F.interpolate(x, scale_factor=2.0) if "ups" in self.names[part] else x)

    def __call__(self, x, level=None):
        level = None if level is None else self.net.noise_level_mlp(level)
        kept = []
        for part in self.net.downs:
            x = self.part(part, x, level)
            kept.append(x)
        for part in self.net.mid:
            x = self.part(part, x, level)
        for part in self.net.ups:
            x = self.part(part, torch.cat((x, kept.pop()), dim=1) if isinstance(part, Entry) else x, level)
        return self.through(self.net.final_conv.block, x)


def plain_walk(net, predict, like, noise):
    """DDPM with the posterior's variance over buffers of float32, each guess of x_0 clipped to what `like` allows."""
    kept = net.visited_schedule.kept
    x = noise.normal(like[0].shape)
    for t in reversed(range(1, len(kept))):
        a, before, beta = kept[t], kept[t - 1], 1 - kept[t] / kept[t - 1]
        level = (a.sqrt() if net.level_space == "sqrt_gamma" else a).float()
        eps = predict(x, level.repeat(len(x)))
        clean = (a.rsqrt().float() * x - (1 / a - 1).sqrt().float() * eps).clamp(*like)
        first, second = beta * before.sqrt() / (1 - a), (1 - before) * (1 - beta).sqrt() / (1 - a)
        mean = first.float() * clean + second.float() * x
        z = noise.normal(x.shape, f"step {t}") if t > 1 else torch.zeros_like(x)
        x = mean + (0.5 * ((1 - before) / (1 - a) * beta).clamp(min=1e-20).log().float()).exp() * z
    return x


def sr3_pair(steps):
    """(plain, ours, network) of 16 to 128 pixels, in as many steps of the schedule as named."""
    torch.manual_seed(0)
    net = SR3(sampling={"steps": steps, "sampler": "ddpm", "variance": "fixed_small"}).eval().requires_grad_(False)
    plain, lq = PlainUNet(net.denoise_fn), torch.rand(1, 3, 16, 16)

    def published(noise):
        seen = net.upscaled(lq)
        low = torch.full_like(seen, -1.0)
        return (plain_walk(net, lambda x, level: plain(torch.cat([seen, x], dim=1), level), (low, -low), noise) + 1) / 2

    def ours(noise):
        return net.restore(lq, noise=noise)

    return lq, published, ours, net.denoise_fn


def dvsr_pair(steps, samples):
    """(plain, ours, network) of 256 pixels and the mean of so many samples."""
    torch.manual_seed(0)
    schedule = {"schedule": "linear", "n_timestep": steps, "linear_start": 1e-6, "linear_end": 0.9}
    how = {"sampler": "ddpm", "variance": "fixed_small", "beta_schedule": schedule}
    net = DvSR(sampling=how).eval().requires_grad_(False)
    for weight in net.parameters():  # so that no block is the identity
        weight.add_(0.01 * torch.randn_like(weight))
    guess, denoise = PlainUNet(net.init_predictor), PlainUNet(net.denoiser)
    lq = torch.rand(1, 3, 256, 256)
    engine = engine_for(net)

    def noises(noise):
        return [noise, *(PictureNoise(lq, sample=sample) for sample in range(1, samples))]

    def published(noise):
        blurred, made = 2 * lq - 1, []
        for one in noises(noise):
            first = guess(blurred)
            bounds = (-1 - first, 1 - first)
            rest = plain_walk(net, lambda x, level: denoise(torch.cat([blurred, x], dim=1), level), bounds, one)
            made.append((first + rest + 1) / 2)
        return torch.stack(made).mean(0)

    def ours(noise):
        return torch.stack([*restore_samples(engine, lq, noises=noises(noise))]).mean(0)

    return lq, published, ours, net.denoiser


def seconds(run):
    started = time.process_time()
    made = run()
    return time.process_time() - started, made


@torch.inference_mode()
def row(name, pair, rounds):
    lq, published, ours, network = pair
    noise, spent, inside = PictureNoise(lq), {"plain": [], "ours": []}, [0.0]
    network.register_forward_pre_hook(lambda *_: inside.append(-time.process_time()))
    network.register_forward_hook(lambda *_: inside.append(inside.pop() + time.process_time()))
    ours(noise)  # what is computed once
    shares = []
    for _ in range(rounds):
        took, one = seconds(lambda: published(noise))
        spent["plain"].append(took)
        inside.clear()
        took, other = seconds(lambda: ours(noise))
        spent["ours"].append(took)
        shares.append(1 - sum(inside) / took)
    plain, mine = (statistics.median(spent[form]) for form in ("plain", "ours"))
    gap = (one - other).abs().max().item()
    loop = "–" if name.startswith("DvSR") else f"{100 * statistics.median(shares):.1f} %"
    line = f"| {name} | {plain:.2f} | {mine:.2f} | {plain / mine:.2f} | {loop} | {gap:.0e} |"
    print(line, flush=True)
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "pixel_space.md")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="those rows alone whose name holds this")
    args = parser.parse_args()
    cases = {f"SR3 janspiry, 16 to 128, {steps} steps": (sr3_pair, steps) for steps in (10, 50, 100)}
    cases |= {
        f"DvSR, 256 x 256, 10 steps, {samples} sample{'s averaged' if samples > 1 else ''}": (dvsr_pair, 10, samples)
        for samples in (1, 4)
    }
    lines = [
        row(name, make(*how), args.rounds if 100 not in how else min(args.rounds, 3))
        for name, (make, *how) in cases.items()
        if args.only in name
    ]
    about = " ".join(__doc__.partition("\n\n")[2].split())
    text = [
        f"# SR3 and DvSR on a CPU\n\n`python benchmarks/pixel_space.py`, {date.today()}, commit {commit()}, torch",
        f"{torch.__version__}, {torch.get_num_threads()} thread, {machine()}. {about}\n",
        "| network | plain, s | here, s | times faster | of which loop | largest difference |",
        "| --- | --: | --: | --: | --: | --: |",
        *lines,
    ]
    args.output.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
