"""Build of fastmoe_lora and unistd; `pyproject.toml` holds the settings of the tools."""

from glob import glob
from runpy import run_path

from setuptools import find_packages, setup


def compiled_backend() -> dict:
    """Arguments of setup() that build the CPU backend. Without torch or a compiler the install goes on without it."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        print("fastmoe_lora: no torch at build time, so no compiled CPU backend (pip install --no-build-isolation)")
        return {}

    class OptionalBuild(BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                print(f"fastmoe_lora: the CPU backend does not compile here, so it is left out: {error}")
                self.extensions = []

    # Baseline instructions only: what is faster on newer processors is compiled beside it and chosen at run time.
    flags = ["-O3", "-std=c++20", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
    extension = CppExtension(
        "fastmoe_lora._cpu", sorted(glob("kernels/cpu/*.cpp")), extra_compile_args=flags, extra_link_args=["-fopenmp"]
    )
    build = OptionalBuild.with_options(no_python_abi_suffix=True)
    return {"ext_modules": [extension], "cmdclass": {"build_ext": build}}


setup(
    name="fastmoe_lora",
    version=run_path("fastmoe_lora/_version.py")["__version__"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    description="Routed LoRA experts with learned ranks as one operator, and UniSTD, the spatio-temporal model on top",
    python_requires=">=3.11",
    packages=[*find_packages(include=["fastmoe_lora*", "unistd*"]), "fastmoe_lora.kernels.triton"],
    # kernels/ holds device code only. A top-level package `kernels` belongs to Hugging Face, so it goes below ours.
    package_dir={"fastmoe_lora.kernels.triton": "kernels/triton"},
    package_data={
        "unistd": ["py.typed", "DATA.md", "configs/*.yaml", "configs/data/*.yaml", "report/*.j2"],
        "fastmoe_lora": ["py.typed", "backends/*.json"],
    },
    entry_points={"console_scripts": ["unistd = unistd.cli:main"]},
    install_requires=["torch>=2.11", "safetensors>=0.4"],
    extras_require={
        "unistd": [
            "av>=14",
            "filelock>=4",
            "google-crc32c>=1.5",
            "h5netcdf>=1.3",
            "h5py>=3.10",
            "huggingface_hub>=0.24",
            "jinja2>=3",
            "lightning-fabric>=2.5",
            "matplotlib>=3.8",
            "numpy>=1.26",
            "open_clip_torch>=3.0",
            "pillow>=10",
            "pydantic>=2.7",
            "pyyaml>=6",
            "rich>=13",
            "scikit-image>=0.22",
            "scipy>=1.12",
            "tensorboard>=2.16",
            "timm>=1.0",
            "xarray>=2024.10",
            "zarr>=3",
        ],
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
        "peft": ["peft>=0.21"],
        "bench": ["matplotlib>=3.8", "peft>=0.15", "pytest>=8", "pytest-benchmark>=5"],
        "docs": [
            "furo>=2025.7",
            "myst-parser>=5",
            "scikit-learn>=1.4",
            "sphinx>=9",
            "sphinx-copybutton>=0.5",
            "sphinx-gallery>=0.19",
        ],
        "dev": [
            "hypothesis>=6",
            "mypy>=2.4",
            "ninja",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "onnxscript>=0.5",
            "peft>=0.21",
            "psutil>=5",
            "pytest>=8",
            "pytest-benchmark>=5",
            "pytest-timeout>=2",
            "pytest-xdist>=3",
            "ruff",
            "torchmetrics>=1.4",
            "transformers>=4.48",
            "triton>=3.6",
        ],
    },
    **compiled_backend(),
)
