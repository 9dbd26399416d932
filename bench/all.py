"""Every comparison that this machine can run, one after another, then the figures and tables."""

import argparse
import subprocess
import sys
import time

from bench.harness.machine import ROOT
from bench.plot import NAMES


def main(arguments: list[str]) -> None:
    """Each comparison is a process of its own, so that not even a crash of one loses the others."""
    parser = argparse.ArgumentParser(
        prog="python -m bench all", description=f"{__doc__} Further options go to each comparison."
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="default: all")
    parser.add_argument("--limit", type=float, default=900, help="seconds that one comparison may take")
    given, further = parser.parse_known_args(arguments)
    output = ["--results", further[further.index("--output") + 1], "--readme"] if "--output" in further else []
    start, failed = time.perf_counter(), []
    for name, options in [(name, further) for name in given.only] + [("plot", output)]:
        print(f"\n=== python -m bench {' '.join([name, *options])}", flush=True)
        try:
            command = [sys.executable, "-m", "bench", name, *options]
            code = subprocess.run(command, cwd=ROOT, timeout=given.limit).returncode
        except subprocess.TimeoutExpired:
            code = -1
            print(f"{name}: stopped after {given.limit:.0f} s; what it had measured is saved")
        if code:
            failed.append(name)
    print(f"\nall comparisons: {time.perf_counter() - start:.0f} s")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
