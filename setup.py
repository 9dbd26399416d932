"""Build of fastmoe_lora and unistd; `pyproject.toml` holds the settings of the tools."""

from setuptools import find_packages, setup

setup(
    name="fastmoe_lora",
    version="0.1.0",
    packages=[*find_packages(include=["fastmoe_lora*", "unistd*"]), "fastmoe_lora.kernels.triton"],
    # kernels/ holds device code only. A top-level package `kernels` belongs to Hugging Face, so it is installed below ours.
    package_dir={"fastmoe_lora.kernels.triton": "kernels/triton"},
)
