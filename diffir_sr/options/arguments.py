"""What the arguments of the networks, losses and metrics of the published recipes mean, for the reference."""

from __future__ import annotations

_BODY = {
    "task": "What is restored: sr (super-resolution), deblur or inpaint.",
    "scale": "Output size over input size: 1, 2 or 4 for sr (4 if absent), 1 for the other tasks.",
    "n_encoder_res": "Residual blocks of the prior encoder.",
    "inp_channels": "Has no effect but must suit the task if given; published files carry it.",
    "out_channels": "Channels of the restored image; always 3.",
    "dim": "Channels of the first level of the body.",
    "num_blocks": "Transformer blocks on each of the four levels.",
    "num_refinement_blocks": "Transformer blocks after the last level; no effect for inpaint.",
    "heads": "Attention heads on each of the four levels; each divides the channels there.",
    "ffn_expansion_factor": "Width inside the feed-forward parts over their channels.",
    "prior_width": "Numbers in the prior; published: 256.",
    "bias": "Whether convolutions of the body have a bias.",
    "LayerNorm_type": "BiasFree (norms scale) or WithBias (norms scale and shift).",
}
_PIXEL = {
    "loss_weight": "Factor on the loss.",
    "reduction": "How pixels are put together: mean, sum or none.",
}
_METRIC = {
    "crop_border": "Pixels left out at each side.",
    "input_order": "Order of the image's axes; leave it as it is.",
    "better": "Which value is the best one of a run: higher or lower; by default what the metric means.",
}
_FIDELITY = {**_METRIC, "test_y_channel": "Whether brightness (Y of BT.601) is compared instead of RGB."}
_PERCEPTUAL = {
    **_METRIC,
    "backbone": "File with the network's ImageNet weights; by default they are looked for, see metrics.md.",
}
# (kind, registered name): argument: sentence
ARGUMENTS: dict[tuple[str, str], dict[str, str]] = {
    ("network", "DiffIRS1"): {
        **_BODY,
        "prior_sees": "What the prior is made of: both images (published) or gt, the ground truth alone.",
    },
    ("network", "DiffIRS2"): {
        **_BODY,
        "n_denoise_res": "Layers of the denoiser after the first.",
        "linear_start": "Variance of the first diffusion step.",
        "linear_end": "Variance of the last diffusion step.",
        "timesteps": "Diffusion steps; a network works with the number that it was trained with.",
        "prediction": "What the denoiser guesses: x0, the clean prior (published), or eps, the noise.",
        "use_diffusion": "Whether the prior is diffused; else the condition itself is it (the paper's V1, worse).",
        "variance_noise": "Whether steps back add noise (the paper's V4, worse).",
        "retuned": "Whether linear_end is chosen so that x_T is noise for any timesteps (the paper's ablation over T).",
    },
    ("network", "UNetDiscriminatorSN"): {
        "num_in_ch": "Channels of the images that it sees.",
        "num_feat": "Channels of its first layer.",
        "skip_connection": "Whether its halves are connected as in a U-Net.",
    },
    ("loss", "L1Loss"): _PIXEL,
    ("loss", "KDLoss"): {
        "loss_weight": "Factor on the distance between the priors.",
        "temperature": "Of the KL divergence, which is logged and not trained on.",
        "criterion": "Distance between the priors: l1 (published, best in the paper), l2 or kl.",
    },
    ("loss", "PerceptualLoss"): {
        "layer_weights": "How much each VGG layer counts, by name (conv5_4: before its activation).",
        "vgg_type": "Which VGG.",
        "use_input_norm": "Whether images are normalised as VGG expects.",
        "range_norm": "Whether images come in [-1, 1] instead of [0, 1].",
        "perceptual_weight": "Factor on the loss; 0 switches it off.",
        "style_weight": "Factor on the style loss; 0 switches it off.",
        "criterion": "l1 or fro (Frobenius norm).",
        "vgg_path": "File with VGG's weights; by default they are looked for, and downloaded if not found.",
    },
    ("loss", "GANLoss"): {
        "gan_type": "vanilla, lsgan, wgan, wgan_softplus or hinge.",
        "real_label_val": "Label of true images.",
        "fake_label_val": "Label of restored images.",
        "loss_weight": "Factor on the generator's loss; the discriminator's is always 1.",
    },
    ("network", "NLayerDiscriminator"): {
        "input_nc": "Channels of the images that it sees.",
        "ndf": "Channels of its first layer; they double up to 512.",
        "n_layers": "Layers that halve the size.",
    },
    ("loss", "MaskedL1Loss"): {
        "weight_known": "Factor on the difference at known pixels.",
        "weight_missing": "Factor on the difference in holes.",
    },
    ("loss", "MaskedGANLoss"): {
        "loss_weight": "Factor on the generator's loss; the discriminator's is always 1.",
        "gp_coef": "Factor on the penalty of the discriminator's slope at true images (R1).",
        "mask_as_fake_target": "Whether the discriminator learns that known pixels are true.",
    },
    ("loss", "FeatureMatchingLoss"): {"loss_weight": "Factor on the distance."},
    ("loss", "ADE20KPerceptualLoss"): {
        "perceptual_weight": "Factor on the loss.",
        "weights_path": "File with the weights of the dilated ResNet50; by default they are looked for.",
        "sha256": "Checksum that the file must have; by default none is asked for.",
    },
    ("metric", "calculate_psnr"): _FIDELITY,
    ("metric", "calculate_ssim"): _FIDELITY,
    ("metric", "calculate_ssim_matlab"): _FIDELITY,
    ("metric", "calculate_niqe"): {**_METRIC, "convert_to": "What is looked at: y (brightness) or gray."},
    ("metric", "calculate_lpips"): {**_PERCEPTUAL, "net": "Network that compares: alex or vgg."},
    ("metric", "calculate_dists"): _PERCEPTUAL,
}
