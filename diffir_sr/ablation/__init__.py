"""Experiments that train variants of one recipe alike and compare them."""
