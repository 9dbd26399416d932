"""Build of fastmoe_lora and unistd; `pyproject.toml` holds the settings of the tools."""

from setuptools import find_packages, setup

setup(
    name="fastmoe_lora",
    version="0.1.0",
    description="Routed LoRA experts with learned ranks as one fast operator, and UniSTD, the spatio-temporal model on top",
    python_requires=">=3.11",
    packages=[*find_packages(include=["fastmoe_lora*", "unistd*"]), "fastmoe_lora.kernels.triton"],
    # kernels/ holds device code only. A top-level package `kernels` belongs to Hugging Face, so it is installed below ours.
    package_dir={"fastmoe_lora.kernels.triton": "kernels/triton"},
    package_data={"unistd": ["configs/*.yaml"]},
    entry_points={"console_scripts": ["unistd = unistd.cli:main"]},
    install_requires=["torch>=2.11", "safetensors>=0.4"],
    extras_require={
        "unistd": [
            "h5py>=3.10",
            "jsonargparse[signatures]>=4.40",
            "lightning-fabric>=2.5",
            "matplotlib>=3.8",
            "numpy>=1.26",
            "open_clip_torch>=3.0",
            "pillow>=10",
            "pyyaml>=6",
            "rich>=13",
            "scikit-image>=0.22",
            "tensorboard>=2.16",
            "timm>=1.0",
        ],
        "bench": ["matplotlib>=3.8", "peft>=0.15", "pytest>=8", "pytest-benchmark>=5"],
        "dev": [
            "ninja",
            "pytest>=8",
            "pytest-benchmark>=5",
            "pytest-timeout>=2",
            "pytest-xdist>=3",
            "ruff",
            "triton>=3.6",
        ],
    },
)
