"""What a result was measured on: machine, versions, commit."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch",
    "triton",
    "peft",
    "transformers",
    "unsloth",
    "scattermoe",
    "lorafusion",
    "open_clip_torch",
    "onnxruntime",
    "onnxscript",
)


def describe_machine(device: torch.device) -> dict[str, object]:
    """CPU, cores, threads, memory, instruction sets, operating system; on a GPU its name, driver and clocks too."""
    found: dict[str, object] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instructions": cpu_instructions(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": round(os.getloadavg()[0], 2),
    }
    if device.type == "cuda":
        query = "name,driver_version,clocks.sm,clocks.max.sm,power.limit"
        found["gpu"] = torch.cuda.get_device_name(device)
        found["nvidia_smi"] = _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
        found["cuda"] = torch.version.cuda or torch.version.hip
    return found


def describe_versions() -> dict[str, str]:
    """Python and the packages that a comparison may run."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Hash of the checked-out commit, with "+" behind it where tracked files differ from it; "unknown" without git."""
    head = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results", ":!*.md")
    return (head or "unknown") + ("+" if head and changed else "")


def cpu_instructions() -> list[str]:
    """Those instruction sets of the CPU that decide which kernels run."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16", "sve")
    return [flag for flag in wanted if flag in flags.split()]


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    return any(flag in cpu_instructions() for flag in ("amx_bf16", "avx512_bf16", "bf16"))


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key), "")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
