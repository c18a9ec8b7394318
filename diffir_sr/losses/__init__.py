"""Losses that BasicSR does not have, and the weights that its perceptual loss needs."""
