"""The records of a run's log, as far as the charts show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unistd.training.expected import Maybe, compare, number, whole
from unistd.training.log import read_log
from unistd.training.records import per_forecaster, value_fault


def read_records(path: Path, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """The records of a log.jsonl.

    Raises ValueError or CheckpointError naming the file, and the line that is no record of a run of these tasks.
    """
    records = read_log(path, whole=True)
    shown = {
        "step": whole(0, 1 << 62),
        "baselines": Maybe(dict.fromkeys(tasks, number(zero=False))),
        "losses": Maybe(dict.fromkeys(tasks, Maybe(number(zero=True)))),
        "seconds": Maybe(number(zero=True)),
    }
    for line, record in enumerate(records, 1):
        ranks = {"rank_spread": number(zero=True), "window": number(zero=True)} if "rank_spread" in record else {}
        held_out = {"val": Maybe(per_forecaster(record, "val", tasks, value_fault))}
        compare(record, shown | held_out | ranks, "", f"{path}: line {line} is no record of this run", others=True)
    if not any("baselines" in record for record in records):
        raise ValueError(f"{path}: its first record, the baselines, is missing")
    return records
