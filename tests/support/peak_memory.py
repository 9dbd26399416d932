"""The most memory that a training has had, as PyTorch's allocator reports it."""

import io
from pathlib import Path

from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from unistd.training import Config
from unistd.training.run import Run
from unistd.training.trainer import Trainer


def print_peak(config: Config) -> None:
    """Trains on the CPU and prints the peak in bytes: the sum of all allocations less all that were given back, from
    before the model is made. It sees what libraries allocate for themselves (packed copies of oneDNN) no more than the
    prediction does."""
    Path(config.run).mkdir(parents=True, exist_ok=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        Trainer(config, Run(Path(config.run)), Console(file=io.StringIO())).fit()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    print(f"peak {peak}")
