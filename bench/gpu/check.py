"""One command for a machine with a GPU: is everything right there, which plans are fastest, how fast is it.

    python -m bench.gpu.check [--out DIR] [--minutes 10] [--parts smoke timings ...]

Every part runs in processes of its own under a time limit and writes a line per item as it goes, so that neither a
crash nor a kernel that never ends costs more than its item. Writes DIR/gpu_check.json (machine, versions, clocks, every
item) and DIR/plans.json (the plan table with the search's winners in front), prints a table, and fails if an item did
or a part was left out. With --parts, those alone, under the plan table that an earlier call left in DIR.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from bench.gpu.log import Log, rows_of

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Part:
    """`module`.`name`(log, shard, shards) does its share of the items. seconds: its limit, reruns included."""

    name: str
    module: str
    seconds: int
    processes: int = 1


# Most wanted first: what does not fit the time is left out at the end.
PARTS = (
    Part("smoke", "correctness", 75, 4),
    Part("candidates", "plan_search", 130, 12),
    Part("search", "plan_search", 100),
    Part("timings", "timings", 90),
    Part("host", "timings", 40),
    Part("launches", "correctness", 60),
    Part("integration", "integration", 90, 6),
    Part("correctness", "correctness", 120, 12),
    Part("rivals", "timings", 180),
    Part("sanitizer", "correctness", 120),
)


def run_part(part: Part, folder: Path, deadline: float) -> list[dict]:
    """Runs the part's processes, and those that died or were stuck again, without the items that they had started."""
    end = min(deadline, time.monotonic() + part.seconds)
    shards = list(range(part.processes))
    while shards and time.monotonic() < end - 5:
        shards = _unfinished(part, folder, shards, end)
    return rows_of(folder, part.name)


def _unfinished(part: Part, folder: Path, shards: list[int], end: float) -> list[int]:
    """Starts a process per shard; returns the shards whose process failed, but for those that got no further."""

    def begun(shard: int) -> int:
        return len(Log(folder, part.name, shard).read())

    before = {shard: begun(shard) for shard in shards}
    running = {}
    for shard in shards:
        command = [sys.executable, "-m", "bench.gpu.check", "--work", str(folder)]
        command += ["--part", part.name, "--shard", str(shard)]
        with (folder / f"{part.name}.{shard}.log").open("a") as output:
            running[shard] = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    failed = []
    for shard, process in running.items():
        try:
            if process.wait(max(0.1, end - time.monotonic())):
                failed.append(shard)
        except subprocess.TimeoutExpired:
            failed.append(shard)
            os.killpg(process.pid, signal.SIGKILL)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                print(f"{part.name}: a process does not end", flush=True)
    return [shard for shard in failed if begun(shard) > before[shard]]


def work(part: Part, folder: Path, shard: int) -> None:
    """In a process of its own: the items of one shard."""
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // part.processes))
    module = import_module(f"bench.gpu.{part.module}")
    module.prepare(folder)
    getattr(module, part.name)(Log(folder, part.name, shard), shard, part.processes)


def table(name: str, rows: list[dict]) -> str:
    """The items of a part, those at fault first, as text."""
    lines = [f"== {name}: {sum(row['ok'] for row in rows)} of {len(rows)} right"]
    shown = [row for row in rows if not row["ok"]] + [row for row in rows if row["ok"] and row.get("show", True)]
    for row in shown:
        values = {key: value for key, value in row.items() if key not in ("item", "ok", "state", "show")}
        text = "  ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
        )
        lines.append(f"{'  ' if row['ok'] else '! '}{row['item']:58} {text[:230]}")
    return "\n".join(lines)


def last_words(part: Part, folder: Path) -> dict[str, str]:
    """The end of what each of the part's processes printed."""
    logs = {path.name: path.read_text(errors="replace")[-3000:] for path in folder.glob(f"{part.name}.*.log")}
    return {name: text for name, text in logs.items() if text.strip()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "gpu", help="folder for the results")
    parser.add_argument("--minutes", type=float, default=10.0, help="what does not fit is left out")
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART", help="do these alone")
    parser.add_argument("--part", choices=names, help="internal: do one part's work")
    parser.add_argument("--work", type=Path, help="internal: where parts leave their lines")
    parser.add_argument("--shard", type=int, default=0, help="internal")
    arguments = parser.parse_args()
    if arguments.part:
        work(next(part for part in PARTS if part.name == arguments.part), arguments.work, arguments.shard)
        return 0
    import torch

    from bench.harness.machine import commit, describe_machine, describe_versions

    if not torch.cuda.is_available():
        print("gpu_check: no CUDA or ROCm device here")
        return 2
    started = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="gpu_check"))
    result = {"machine": describe_machine(torch.device("cuda")), "versions": describe_versions(), "commit": commit()}
    print(json.dumps(result), flush=True)
    if "search" not in arguments.parts and (arguments.out / "plans.json").is_file():
        shutil.copy(arguments.out / "plans.json", folder)
    result["parts"] = {}
    for part in (part for part in PARTS if part.name in arguments.parts):
        left = arguments.minutes * 60 - (time.monotonic() - started)
        if left < 15:
            print(f"== {part.name}: left out, no time", flush=True)
            result["parts"][part.name] = None
        else:
            began = time.monotonic()
            rows = run_part(part, folder, time.monotonic() + left)
            result["parts"][part.name] = rows
            print(f"{table(part.name, rows)}\n   {time.monotonic() - began:.0f} s", flush=True)
            if not rows or not all(row["ok"] for row in rows):
                result.setdefault("logs", {})[part.name] = last_words(part, folder)
            if not rows:
                print("\n".join(result["logs"][part.name].values())[-1500:], flush=True)
        (arguments.out / "gpu_check.json").write_text(json.dumps(result, indent=1) + "\n")
        if (folder / "plans.json").is_file():
            shutil.copy(folder / "plans.json", arguments.out)
    parts = result["parts"].values()
    return 0 if all(rows and all(row["ok"] for row in rows) for rows in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
