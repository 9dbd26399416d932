"""What `bench.gpu.check` found on a GPU as tables, between the markers of README.md and bench/NOTES.md."""

import argparse
import json
from pathlib import Path

from bench.harness.machine import ROOT
from bench.harness.tables import between_markers

RESULTS = ROOT / "bench" / "results" / "gpu" / "gpu_check.json"
TITLES = {"triton": "**fastmoe_lora, triton**", "linear": "frozen nn.Linear (no adapters)"}
TITLES |= {"three-gemm": "three GEMMs in torch", "hydralora": "loop over experts as HydraLoRA"}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench tables", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="gpu_check.json")
    files = [ROOT / "README.md", ROOT / "bench" / "NOTES.md"]
    parser.add_argument("--readme", type=Path, nargs="*", default=files, help="files with the markers bench:gpu")
    given = parser.parse_args(arguments)
    content = section(json.loads(given.results.read_text()))
    for file in given.readme:
        filled = between_markers(file.read_text(), "gpu", content)
        if filled is None:
            raise SystemExit(f"{file}: no markers bench:gpu")
        file.write_text(filled)
        print(f"wrote {file}")


def section(result: dict) -> str:
    """result: of `bench.gpu.check`, with its parts "timings" and "host"."""
    parts = result["parts"]
    rows = [row for row in parts["timings"] if "ratio graph" in row]
    lines = ["| over the frozen linear, bf16 | target | CUDA graph | eager |", "|---|---:|---:|---:|"]
    for row in rows:
        cells = (row["item"], row["target"], _milliseconds(row, "graph"), _milliseconds(row, "eager"))
        lines.append("| {} | {:.2f} | {} | {} |".format(*cells))
    calls = {row["item"]: row for row in parts["host"]}
    host = [f"| wall time of an eager call, us | {' | '.join(calls)} |", "|---|" + "---:|" * len(calls)]
    for name, title in TITLES.items():
        host.append(f"| {title} | " + " | ".join(f"{row[f'{name} us']:.0f}" for row in calls.values()) + " |")
    right = {name: (sum(row["ok"] for row in rows), len(rows)) for name, rows in parts.items()}
    counts = ", ".join(f"{name} {ok} of {count}" for name, (ok, count) in right.items())
    machine, versions = result["machine"], result["versions"]
    measured = f"{machine['gpu']}, CUDA {machine['cuda']}; torch {versions['torch']}, triton {versions['triton']}"
    note = f"<sub>{measured}; commit {result['commit']}. QKV: 768 -> 2304, 6 experts, rank 8; eager calls find the L2"
    note += f" cache cold. Without a fault: {counts}.</sub>"
    return "\n".join([*lines, "", *host, "", note])


def _milliseconds(row: dict, how: str) -> str:
    return f"{row[f'ratio {how}']:.2f} ({row[f'triton {how} ms']:.3g} ms)"
