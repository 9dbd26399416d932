"""What the parts of `bench.gpu.check` leave behind: a line when an item starts, one when it is done."""

import faulthandler
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

ITEM_SECONDS = 40.0  # compilation included
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Log:
    """A file of JSON lines: an item is noted when it starts and when it is done, so that one that kills us is known."""

    def __init__(self, folder: Path, part: str, shard: int):
        self.folder = folder
        self.path = folder / f"{part}.{shard}.jsonl"

    def read(self) -> list[dict]:
        """One row per item that was started; those without a result count as hung or crashed."""
        rows: dict[str, dict] = {}
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                row = json.loads(line)
                rows[row["item"]] = row
        unfinished = {"ok": False, "error": "did not finish: hung, crashed or out of time"}
        return [row if row["state"] == "done" else row | unfinished for row in rows.values()]

    def item(self, name: str, function: Callable[[], dict], seconds: float = ITEM_SECONDS) -> None:
        """Runs `function` unless an earlier process tried; its result, or its exception, becomes the item's row.

        Ends the process if it takes longer (a thread of C does that, whatever the driver call that Python is stuck in),
        and if the GPU is of no more use to it: after a fault in a kernel every later call of the process would fail.
        """
        if name in {row["item"] for row in self.read()}:
            return
        self._write({"item": name, "state": "start"})
        faulthandler.dump_traceback_later(seconds, exit=True)
        began = time.perf_counter()
        try:
            result = {"ok": True} | function()
        except Exception as error:
            lines = str(error).strip().splitlines()
            result = {"ok": False, "error": f"{type(error).__name__}: {' | '.join(lines[:3])[:400]}"}
        faulthandler.cancel_dump_traceback_later()
        self._write({"item": name, "state": "done"} | result | {"seconds": round(time.perf_counter() - began, 1)})
        if not result["ok"] and not device_works():
            os._exit(1)

    def _write(self, row: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def device_works() -> bool:
    try:
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def rows_of(folder: Path, part: str) -> list[dict]:
    """All items of a part, whichever of its processes had them."""
    shards = sorted(int(path.suffixes[0][1:]) for path in folder.glob(f"{part}.*.jsonl"))
    return [row for shard in shards for row in Log(folder, part, shard).read()]
