"""Weights by name: the registry, where files are looked for, downloads, backbones; and the models that are shipped."""
