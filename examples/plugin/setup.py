"""A plugin of diffir_sr is any package with an entry point in the group diffir_sr.plugins."""

from setuptools import setup

setup(
    name="diffir_example_plugin",
    version="0.1.0",
    description="Template of a plugin for diffir_sr: one architecture, one loss",
    license="Apache-2.0",
    python_requires=">=3.10",
    install_requires=["diffir_sr"],
    packages=["diffir_example_plugin"],
    entry_points={"diffir_sr.plugins": ["example = diffir_example_plugin"]},
)
