"""A plan as rows of text, for a terminal and for a page."""

from __future__ import annotations

from unistd.plan.estimate import MEMORY_PARTS, Plan, Variant

Rows = list[tuple[str, list[str]]]


def heading(plan: Plan) -> str:
    """One line: what is trained on what."""
    train, gpu = plan.config.train, plan.gpu
    tasks = f"{len(plan.config.tasks)} tasks, {plan.config.turns} in a step"
    passes = f" in each of {train.accumulate:,} passes" if train.accumulate > 1 else ""
    each = f"{train.batch_size:,} samples of each{passes}, {plan.per_gpu:,} of them on a GPU"
    sheet = f"{gpu.bandwidth / 1e12:.3g} TB/s, {gpu.bf16 / 1e12:.4g} TFLOP/s bf16, {gpu.fp32 / 1e12:.3g} fp32"
    return f"{plan.gpus:,} x {gpu.title} ({sheet}); {tasks}; {each}; {train.precision}"


def titles(plan: Plan) -> list[str]:
    """Of the columns: how the model is held."""
    names = []
    for variant in plan.variants:
        held = "FSDP" if variant.sharded else "DDP" if plan.gpus > 1 else "one GPU"
        names.append(f"{held}, checkpointing" if variant.checkpointing else held)
    return names


def memory_rows(plan: Plan) -> Rows:
    """GB a GPU at the fullest moment of a step."""
    rows = [(part, [f"{variant.memory[part] / 1e9:,.2f}" for variant in plan.variants]) for part in MEMORY_PARTS]
    rows.append(("GB a GPU", [f"{variant.total / 1e9:,.2f}" for variant in plan.variants]))
    fits = [("yes" if variant.total <= plan.gpu.memory else "NO") for variant in plan.variants]
    rows.append((f"fits into {plan.gpu.memory / 1e9:,.0f} GB", fits))
    rows.append(("most samples of a task a GPU", [f"{variant.largest:,}" for variant in plan.variants]))
    return rows


def time_rows(plan: Plan) -> Rows:
    """What a step, an epoch and the whole training take."""
    peak = plan.gpu.fp32 if plan.config.train.precision == "32-true" else plan.gpu.bf16
    epochs = plan.config.train.epochs

    def row(name: str, value) -> tuple[str, list[str]]:
        return name, [value(variant) for variant in plan.variants]

    def rate(variant: Variant) -> float:
        return plan.samples / variant.seconds

    return [
        row("TFLOP of a step, a GPU", lambda v: f"{v.flops / 1e12:,.3g}"),
        row("GB read and written, a GPU", lambda v: f"{v.bytes / 1e9:,.3g}"),
        row("ms to compute", lambda v: f"{1e3 * v.compute:,.1f}"),
        row("ms to communicate", lambda v: f"{1e3 * v.communication:,.1f}"),
        row("share of the peak arithmetic (MFU)", lambda v: f"{v.flops / v.seconds / peak:.0%}"),
        row("samples/s", lambda v: f"{rate(v):,.0f}"),
        row("steps of an epoch", lambda v: f"{plan.steps:,}"),
        row("an epoch", lambda v: duration(plan.steps * v.seconds)),
        row(f"the whole, {epochs:,} epochs", lambda v: duration(epochs * plan.steps * v.seconds)),
        row("loaders: samples/s a GPU", lambda v: f"{rate(v) / plan.gpus:,.1f}"),
        row("loaders: MB/s a GPU", lambda v: f"{plan.frame_bytes / v.seconds / plan.gpus / 1e6:,.1f}"),
    ]


def notes(plan: Plan) -> list[str]:
    """What to change, where something does not fit or stands idle; then what was assumed."""
    lines, assumed = [], plan.assumptions
    if all(variant.total > plan.gpu.memory for variant in plan.variants):
        most = max(plan.variants, key=lambda variant: variant.largest)
        if most.largest:
            lines.append(
                f"does not fit: with {_how(most)} there is memory for train.batch_size={most.largest * plan.gpus}"
            )
        else:
            lines.append("does not fit with one sample of a task: a smaller trunk, smaller frames or another GPU")
    elif plan.variants[0].total > plan.gpu.memory:
        ways = [_how(variant) for variant in plan.variants if variant.total <= plan.gpu.memory]
        if plan.variants[0].largest:
            ways.append(f"train.batch_size={plan.variants[0].largest * plan.gpus}")
        lines.append(f"does not fit as it is; what helps: {', or '.join(ways)}")
    if plan.idle:
        lines.append(
            f"{plan.idle:,} of {plan.gpus:,} GPUs have no sample in a step: --batch 1 gives each one of every task"
        )
    lines.append(
        f"assumed: {assumed.efficiency:.0%} of the peaks of arithmetic, memory and links is reached (--efficiency), an"
        f" operator takes {1e6 * assumed.launch:.0f} us at the least, and nothing is sent while something is computed;"
        f" {assumed.context / 1e9:.1f} GB for CUDA, its libraries and gaps; adapters at their full width, as before"
        " their ranks are frozen"
    )
    return lines


def _how(variant: Variant) -> str:
    words = ["train.strategy=fsdp"] if variant.sharded else []
    return " and ".join([*words, "model.checkpointing=true"] if variant.checkpointing else words) or "no change"


def duration(seconds: float) -> str:
    """A time for people, in the largest unit of which there are two at least."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
