"""`train.devices=N`: this program starts N processes that train together, and looks after them until the last ends.

They find each other as those of `torchrun` do, by the same variables of the environment. With several machines the same
command is given on each, where MASTER_ADDR and MASTER_PORT name the first one and NODE_RANK counts them from 0.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore

from unistd.interrupts import say, stops

_POLL = 0.05  # seconds between two looks at the processes
_GRACE = 10.0  # seconds for the others to end by themselves once one has failed


def launch(arguments: Sequence[str], devices: int, nodes: int) -> int:
    """Runs `unistd` with these arguments in `devices` processes on this machine, of `nodes`; returns the exit status.

    It is that of the first process that fails, or 0. One that a signal ends is named in a line on standard error, and
    the others are ended. Ctrl-C and its like are passed on; the processes answer them. None outlives the call.

    Raises ValueError where several machines are asked for and the environment does not say which this is, OSError where
    the first one's address is taken or not reached.
    """
    node, host, port = _place(nodes)
    timeout = timedelta(seconds=300)  # in which the other machines have to join
    try:
        store = TCPStore(host, port, is_master=node == 0, wait_for_workers=False, timeout=timeout)
    except RuntimeError as error:
        verb = "kept" if node == 0 else "reached"
        raise OSError(f"{host}:{port}: the processes' store cannot be {verb} ({str(error).splitlines()[0]})") from None
    job = {"MASTER_ADDR": host, "MASTER_PORT": str(store.port), "WORLD_SIZE": str(devices * nodes)}
    job |= {"LOCAL_WORLD_SIZE": str(devices), "GROUP_RANK": str(node), "GROUP_WORLD_SIZE": str(nodes)}
    job |= {"TORCHELASTIC_RUN_ID": "unistd", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    job |= {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0"}
    job["TORCH_CPP_LOG_LEVEL"] = os.environ.get("TORCH_CPP_LOG_LEVEL", "FATAL")  # errors are said in our own words
    threads = max(1, (os.cpu_count() or 1) // devices)
    job["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(threads))
    command = [sys.executable, "-m", "unistd", *arguments]
    processes: list[subprocess.Popen] = []

    def pass_on(signum: int, frame: object) -> None:
        for process in processes:
            process.send_signal(signum)

    before = {number: signal.signal(number, pass_on) for number in stops()}
    try:
        for local in range(devices):
            mine = {"LOCAL_RANK": str(local), "RANK": str(node * devices + local)}
            # a group of its own: a terminal's Ctrl-C comes from here, once
            processes.append(subprocess.Popen(command, env=os.environ | job | mine, process_group=0))
        return _wait(processes, node * devices, devices * nodes, PrefixStore("unistd/0", store))
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: list[subprocess.Popen], first: int, world: int, store: PrefixStore) -> int:
    """Waits until all have ended, or one was killed, or one has failed and the others had time to end as well."""
    failed, last = None, math.inf
    while any(process.poll() is None for process in processes) and time.monotonic() < last:
        time.sleep(_POLL)
        if failed is None and (failed := next(filter(_failed, processes), None)) is not None:
            last = time.monotonic() + (_GRACE if failed.returncode > 0 else 0)
    failed = failed or next(filter(_failed, processes), None)
    if failed is not None and failed.returncode < 0:
        _name(failed, f"process {first + processes.index(failed)} of {world}", store)
        return 1
    return 0 if failed is None else failed.returncode


def _failed(process: subprocess.Popen) -> bool:
    return process.poll() not in (None, 0)


def _name(process: subprocess.Popen, name: str, store: PrefixStore) -> None:
    """Says which process a signal has ended, unless another one has said why the job ends."""
    signum = -process.returncode
    hint = " (the system does that where memory runs out)" if signum == signal.SIGKILL else ""
    line = f"{name} (counted from 0; pid {process.pid}) was killed by signal {signum}, {_signal(signum)}{hint}"
    if store.compare_set("why", "", line).decode() == line:
        say(f"error: {line}; `--resume` continues")


def _signal(signum: int) -> str:
    with suppress(ValueError):
        return signal.Signals(signum).name
    return "unknown"


def _place(nodes: int) -> tuple[int, str, int]:
    """Which machine this is, and where the first one keeps the store."""
    if nodes == 1:
        return 0, "127.0.0.1", 0
    names = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    if lacking := [name for name in names if not os.environ.get(name)]:
        raise ValueError(
            f"train.nodes is {nodes}: the environment lacks {', '.join(lacking)}; set NODE_RANK (which machine this is,"
            " from 0), MASTER_ADDR and MASTER_PORT (of the first one), or start with torchrun"
        )
    return _whole("NODE_RANK", 0, nodes - 1), os.environ["MASTER_ADDR"], _whole("MASTER_PORT", 1, 65_535)


def _whole(name: str, least: int, most: int) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdigit() and least <= int(text[:9]) <= most):
        expected = f"expected a whole number from {least} to {most}"
        raise ValueError(f"{name} in the environment: {expected}, found {text[:60]!r}")
    return int(text)
