"""The page unistd/PLAN.md: what the paper's recipe takes on 1 to 1,024 GPUs, and how that is worked out.

`python -m unistd.plan.docs` writes it anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unistd.files import write_text
from unistd.plan.estimate import ADAPTERS, ASSUMED, OUTSIDE, TRUNK, Plan, Planner
from unistd.plan.gpus import GPUS
from unistd.plan.step import ACTIVATIONS, FRAMES, GRADIENTS, MOMENTS, WORKSPACE
from unistd.plan.table import Rows, duration, memory_rows, time_rows
from unistd.training.settings import load_config

PAGE = Path(__file__).parents[1] / "PLAN.md"
RECIPE, GPU, NUMBERS = "paper", "h100", (1, 8, 64, 1024)


def page() -> str:
    """The whole text."""
    config, gpu = load_config(RECIPE), GPUS[GPU]
    planner = Planner(config)
    each = config.train.batch_size
    printed = [planner.plan(gpu, number, checkpointing=[False]) for number in NUMBERS if number <= each]
    scaled = [planner.plan(gpu, number, batch_size=each * number, checkpointing=[False]) for number in NUMBERS]
    one = planner.plan(gpu, 1)
    sections = [
        _HEAD.format(each=each, gpu=gpu.title, larger=", ".join(f"{n:,}" for n in NUMBERS if n > each)),
        _over_numbers(printed),
        _SCALED.format(each=each, steps=scaled[-1].steps, most=NUMBERS[-1]),
        _over_numbers(scaled),
        _MEMORY.format(**_memory_words(one)),
        _table(["GB", "one GPU", "with checkpointing"], memory_rows(one)),
        _TIME.format(**_time_words(one, scaled[2])),
    ]
    return "\n".join(sections)


def _over_numbers(plans: Sequence[Plan]) -> str:
    """A table of plans for several numbers of GPUs: of their first variant, the whole model on each GPU."""
    rows: Rows = [
        ("samples of a task in a step", [f"{plan.config.train.batch_size:,}" for plan in plans]),
        ("of them on a GPU, at the most", [f"{plan.per_gpu:,}" for plan in plans]),
    ]
    columns = [[*memory_rows(plan)[-3:-1], *time_rows(plan)] for plan in plans]
    rows += [(same[0][0], [values[0] for _, values in same]) for same in zip(*columns, strict=True)]
    return _table(["", *(f"{plan.gpus:,} GPU{'s' * (plan.gpus > 1)}" for plan in plans)], rows)


def _table(head: Sequence[str], rows: Rows) -> str:
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    lines += [f"| {name} | {' | '.join(values)} |" for name, values in rows]
    return "\n".join(lines) + "\n"


def _memory_words(plan: Plan) -> dict[str, str]:
    plain, checkpointed = plan.variants
    memory = plain.memory
    words = {
        "trunk": memory[TRUNK] / 4e6,
        "adapters": memory[ADAPTERS] / 4e6,
        "outside": memory[OUTSIDE] / 4e6,
        "moments": memory[MOMENTS] / 8e6,
        "adam": memory[MOMENTS] / 1e6,
        "gradients": memory[GRADIENTS] / 1e6,
        "frames": memory[FRAMES] / 1e6,
        "activations": memory[ACTIVATIONS] / 1e9,
        "recomputed": checkpointed.memory[ACTIVATIONS] / 1e9,
        "workspace": memory[WORKSPACE] / 1e9,
    }
    return {name: f"{value:,.1f}" for name, value in words.items()} | {"largest": f"{plain.largest:,}"}


def _time_words(plan: Plan, many: Plan) -> dict[str, str]:
    variant, gpu, reached = plan.variants[0], plan.gpu, ASSUMED.efficiency
    trained = many.variants[0].memory[GRADIENTS]
    return {
        "flops": f"{variant.flops / 1e12:.2f}",
        "arithmetic": f"{1e3 * variant.flops / (reached * gpu.bf16):.1f}",
        "peak": f"{gpu.bf16 / 1e12:,.0f}",
        "bytes": f"{variant.bytes / 1e9:.1f}",
        "traffic": f"{1e3 * variant.bytes / (reached * gpu.bandwidth):.1f}",
        "bandwidth": f"{gpu.bandwidth / 1e12:.2f}",
        "compute": f"{1e3 * variant.compute:.1f}",
        "reached": f"{reached:.0%}",
        "launch": f"{1e6 * ASSUMED.launch:.0f}",
        "steps": f"{plan.steps:,}",
        "epoch": duration(plan.steps * variant.seconds),
        "epochs": f"{plan.config.train.epochs}",
        "whole": duration(plan.config.train.epochs * plan.steps * variant.seconds),
        "gradient": f"{trained / 1e6:.0f}",
        "numbers": f"{many.gpus}",
        "network": f"{gpu.network / 1e9:.0f}",
        "send": f"{1e3 * many.variants[0].communication:.1f}",
        "rate": f"{plan.samples / variant.seconds:,.0f}",
        "megabytes": f"{plan.frame_bytes / variant.seconds / 1e6:,.0f}",
        "sample": f"{plan.frame_bytes / plan.samples / 1e6:.2f}",
    }


_HEAD = """# What the paper's recipe takes

Written by `python -m unistd.plan.docs`; `unistd plan --config C --gpu NAME --gpus N` does the same for any config. No
GPU was needed for it and none was measured: the real model is built without numbers, its training step is run, and the
memory, arithmetic and traffic of every operator are counted. Times follow from the data sheet of an {gpu} and
from assumptions, which are stated below; they say what to expect, not what was seen. Memory is held to what is
measured: on a CPU, the peaks of three trainings lie within 15% of what is foretold (`tests/unistd/plan`).

## As it is printed: {each} samples of one task in a step

The model is whole on each GPU (DDP) and the samples of a step are shared out. That is exactly the training of one GPU;
but {each} samples are work for {each} GPUs at most. Of {larger} the others would have none.
"""

_SCALED = """## As many samples on each GPU: {each}

A step then holds {each} samples for each GPU, and an epoch has so many fewer steps. It is another recipe: the learning
rate would have to be found anew, and with {most:,} GPUs an epoch of {steps} steps, one a task, is hardly one.
"""

_MEMORY = """## The memory of one GPU

- **Weights** are float32, 4 bytes each: {trunk} M in the frozen trunk, {adapters} M in adapters and temporal modules,
  {outside} M in the encoders and decoders of ten tasks.
- **Optimizer's moments**: AdamW keeps two float32 numbers for each of the {moments} M that learn, {adam} MB.
- **Gradients**: 4 bytes for each parameter that learns and that the step's task uses. At the fullest moment, the
  beginning of the backward pass, there are hardly any ({gradients} MB); with several GPUs they are there all the time.
- **Frames**: inputs and targets of a step of the largest task, {frames} MB of float32.
- **Activations**: what the backward pass needs, {activations} GB, in bfloat16 where autocast computes in it. With
  checkpointing the blocks keep their inputs alone and {recomputed} GB remain; most of it belongs to the largest task's
  encoder and decoder, at full resolution.
- **Workspace**: gradients of activations on their way, {workspace} GB.

Activations, frames and workspace grow with the samples of a step, all else does not: {largest} samples of the largest
task fit.
"""

_TIME = """## The time of a step, and of all

- **Arithmetic**: {flops} TFLOP in a mean step, matrix products, convolutions and attention there and back. At {reached}
  of {peak} TFLOP/s they would take {arithmetic} ms.
- **Traffic**: {bytes} GB are read and written if each operator reads its inputs and writes its outputs once and nothing
  is fused. At {reached} of {bandwidth} TB/s: {traffic} ms.
- **A step**: each operator takes the longer of its two, and {launch} us at the least, which is what eager PyTorch takes
  to start one: {compute} ms in all.
- **An epoch** has {steps} steps ({epoch}), the whole {epochs} epochs ({whole}).
- **Communication** of {numbers} GPUs: {gradient} MB of gradients go round a ring, twice, at {reached} of the slowest
  link, {network} GB/s to other nodes: {send} ms. It is added as if nothing were sent during the backward pass: this is
  the most that it costs.
- **Reading**: {rate} samples/s of {sample} MB on the average are {megabytes} MB/s of float32 that the loaders of one
  GPU must deliver, decoded. Where they do not, `waiting` in log.jsonl says so.
"""


if __name__ == "__main__":
    write_text(PAGE, page())
