"""Describes the package diffir_sr. Building it needs setuptools alone: nothing of the package is imported."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    """The literal assigned to __version__ in diffir_sr/version.py."""
    for statement in ast.parse((HERE / "diffir_sr/version.py").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__version__":
            return ast.literal_eval(statement.value)
    raise RuntimeError("diffir_sr/version.py assigns no __version__")


setup(
    name="diffir_sr",
    version=version(),
    description="Train, evaluate and use DiffIR, the efficient diffusion model for image restoration, with BasicSR",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords="image restoration, super-resolution, deblurring, inpainting, diffusion, BasicSR",
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    python_requires=">=3.10",
    install_requires=[
        "torch",
        "torchvision",
        "basicsr==1.4.2",  # its internals are repaired in diffir_sr/compat.py, release by release
        "numpy",
        "pillow",
        "opencv-python",
        "imagecodecs",  # PNG, WebP, AVIF, and what is inside TIFF files: every value, every error
        "simplejpeg",  # JPEG with the warnings of libjpeg, which other decoders hide
        "tifffile",
        "scipy",  # kernels and .mat files of data preparation
        "pyyaml",
        "lmdb",
        "psutil",
        "pydantic>=2.7",  # checks option files
        "safetensors",  # weights with a model card inside, which cannot hold code
        "filelock",  # torch brings it, too
        "tqdm",
        "jinja2",  # torch brings it, too
        "argcomplete",  # completion in shells
        "setuptools; python_version >= '3.12'",  # brings back distutils, which basicsr imports
    ],
    extras_require={
        "quickstart": ["scikit-image", "matplotlib"],  # its photographs; the pictures of the report
        "video": ["av>=17"],  # PyAV; its wheels bring ffmpeg's libraries
        "heif": ["pillow-heif"],  # reads HEIC
        # Older versions of onnxscript write pixel unshuffle in the wrong order of channels, without an error.
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.7.1"],
        "peers": ["spandrel"],  # recognises and builds the networks of other projects
        # AutoDIR: its U-Net and autoencoder, CLIP and its words; versions whose results the tests have seen.
        "autodir": ["diffusers>=0.42,<0.43", "transformers>=5.24,<6"],
        "ray": ["ray[data]>=2.50", "pyarrow"],  # diffir fleet
        "web": ["gradio>=6.31,<7"],  # diffir serve
        "wandb": ["wandb"],  # curves of trainings on Weights & Biases
        "trackio": ["trackio>=0.10"],  # the same in a local file
        "hub": ["huggingface_hub>=0.30"],  # weights from the Hub, by hf:// addresses
        # LPIPS and its heads; DISTS' weights, FID and KID. ImageNet backbones: see CONTRIBUTING.md.
        "metrics": ["lpips", "torchmetrics"],
        "docs": ["sphinx>=7.2", "myst-parser>=3", "furo"],  # the documentation as a site
        "dev": [
            "pytest",
            "pytest-xdist",
            "ruff",
            "pyright[nodejs]",  # with a node of its own, so that checking types needs no other download
            "matplotlib",
            "playwright",  # the page of diffir serve in a browser
            "build",
            "spandrel_extra_arches",  # Restormer and MPRNet, for the test of the networks of other projects
            "jsonschema",  # checks the schema that editors get against real option files
            "setuptools>=70.1",  # tests build the wheel with what is installed
        ],
    },
    # The option files stay at the top of the repository, where BasicSR's users look for them, and travel in the
    # wheel as data of a package, so that `diffir options` finds them wherever it is installed.
    packages=[*find_packages(include=["diffir_sr", "diffir_sr.*"]), "diffir_sr.recipes"],
    package_dir={"diffir_sr.recipes": "options"},
    package_data={
        "diffir_sr.recipes": ["**/*.yml"],
        "diffir_sr": ["py.typed", "weights/*.safetensors", "weights/*.yml", "evaluation/*.yml", "training/report.*"],
    },
    entry_points={
        "console_scripts": ["basicsr = diffir_sr.cli:basicsr_main", "diffir = diffir_sr.cli:main"],
    },
    zip_safe=False,
)
