"""Losses that BasicSR lacks, and the weights for its perceptual loss."""
