"""Measures groups one after another and keeps what there is, whatever happens to one of them."""

import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.harness.progress import print_group
from bench.harness.record import Group, Record


def collect(record: Record, folder: Path, jobs: Iterable[Callable[[], Iterable[Group]]]) -> None:
    """Runs the jobs in order, shows and saves each group as it comes. A job that raises is reported and left out.

    Exits with status 1 at the end if any did.
    """
    start, failed = time.perf_counter(), 0
    for job in jobs:
        try:
            for group in job():
                record.groups.append(group)
                record.save(folder)
                print_group(group)
        except Exception:
            traceback.print_exc()
            failed += 1
    print(f"\n{record.comparison}: {len(record.groups)} groups in {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"{record.comparison}: {failed} of its parts failed, see above")
