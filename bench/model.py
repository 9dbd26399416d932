"""UniSTD's inference: every backend, mixed batches or one task after another, beside SimVP-gSTA."""

from bench.harness.model_comparison import run


def main(arguments: list[str]) -> None:
    run("model", arguments, training=False)
