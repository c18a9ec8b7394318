"""Importing this package registers what it adds; that import is all diffir_sr asks of a plugin."""

from diffir_example_plugin.frequency_loss import FrequencyL1Loss
from diffir_example_plugin.tiny_residual_arch import TinyResidualSR

__all__ = ["FrequencyL1Loss", "TinyResidualSR"]
