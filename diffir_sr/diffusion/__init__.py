"""Diffusion over a prior vector: the schedule is pure numbers, the module is the loop over them."""
