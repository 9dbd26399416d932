"""The command `unistd predict`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from unistd.arguments import check_task, whole_number
from unistd.files import write_atomically
from unistd.forecast import (
    check_shape,
    files_of,
    forecast_into,
    new_files,
    npy_path,
    open_frames,
    write_forecast,
)
from unistd.model import UniSTD
from unistd.stream import arrays_of
from unistd.tasks.npy import open_npy
from unistd.terminal import say
from unistd.training.checkpoint import CheckpointError
from unistd.training.device import open_device_or_cpu
from unistd.training.run import read_run
from unistd.truth import lead_table, measure, open_truth


def predict(options: argparse.Namespace, console: Console) -> None:
    """Forecasts the frames that follow those of a file, or of each file in a folder."""
    trained = read_run(options.run, options.checkpoint)
    device = open_device_or_cpu(trained.config.train, lambda line: say(console, line)).device
    model, physical = trained.model.to(device), options.units == "physical"
    check_task(options.task, model.tasks)
    if physical and options.task not in trained.units:
        raise CheckpointError(f"{trained.checkpoint}: of an earlier release, it does not say what the values mean")
    spec = model.tasks[options.task]
    if options.input == "-" or options.output == "-":
        _predict_stream(options, model, physical, console)
        return
    together = os.path.isdir(options.input)
    if together and options.truth is not None:
        raise ValueError("--truth takes one --input file, expected no folder")
    sources = files_of(options.input) if together else [Path(options.input)]
    inputs = [open_frames(str(source), spec.input_shape) for source in sources]  # all, before the first is forecast
    outputs = new_files(options.output, sources, options.gif) if together else [npy_path(options.output)]
    length = (options.frames or spec.frames_out, *spec.target_shape[1:])
    truth = None if options.truth is None else open_truth(options.truth, (*inputs[0].shape[:-4], *length))
    for frames, output in zip(inputs, outputs, strict=True):
        gif = output.with_suffix(".gif") if options.gif else None
        shape = write_forecast(model, options.task, frames, output, gif, physical, options.frames)
        say(console, f"forecast {shape}: {output}{f', {gif}' if gif else ''}")
    if truth is not None:
        console.print(lead_table(measure(open_npy(outputs[0]), truth, spec, physical), spec))


def _predict_stream(options: argparse.Namespace, model: UniSTD, physical: bool, console: Console) -> None:
    """A forecast of each array of standard input, or of a file, one after the other."""
    if options.truth is not None or options.gif:
        raise ValueError("--truth and --gif take files, expected no '-'")
    shape = model.tasks[options.task].input_shape
    streamed = options.input == "-"
    arrays = arrays_of(sys.stdin.buffer, "standard input") if streamed else [open_frames(options.input, shape)]
    count = 0

    def forecast_all(write: Callable[[bytes], object]) -> None:
        nonlocal count
        for frames in arrays:
            count += 1
            check_shape(frames, shape)
            forecast_into(write, model, options.task, frames, physical, options.frames)

    def write_file(path: Path) -> None:
        with path.open("wb") as file:
            forecast_all(file.write)

    if options.output == "-":
        forecast_all(sys.stdout.write_bytes)  # nothing else is printed: it would stand among the numbers
    else:
        output = npy_path(options.output)
        write_atomically(output, write_file)
        say(console, f"forecasts of {count} arrays, one after the other: {output}")


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    """The grammar of `unistd predict`, beside the run."""
    parser.add_argument("--task", required=True, help="one of the run's tasks")
    text = "frames (Tin, C, H, W), or a batch of them; a folder of such files; or - for arrays from standard input,"
    text += " as numpy.save writes them, one after the other"
    parser.add_argument("--input", required=True, metavar="FILE.npy|FOLDER|-", help=text)
    text = "receives the forecast (Tout, C, H, W) or a batch; .npy is appended to a name that does not end so. Of a"
    text += " folder: a folder that receives files of the same names, none of which may be there."
    text += " - is standard output, to which each forecast is written as an array"
    parser.add_argument("--output", required=True, metavar="FILE.npy|FOLDER|-", help=text)
    text = "the frames that came to be, of the forecast's shape: prints the errors per frame in the task's unit"
    parser.add_argument("--truth", metavar="FILE.npy", help=text)
    text = "of input and forecast: normalised to [0, 1], or the physical unit that the run says its data have"
    parser.add_argument("--units", choices=("normalised", "physical"), default="normalised", help=text)
    text = "length of the forecast; beyond the task's own it goes on from what was forecast, and errors grow"
    parser.add_argument("--frames", type=whole_number(10_000), metavar="N", help=text)
    parser.add_argument("--gif", action="store_true", help="also write input and forecast as an animation")
