"""Folders of restored images against their ground truth, by the protocols of the paper's tables."""
