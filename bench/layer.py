"""The adapted layer's forward pass beside all peers, on the same weights and in the same rounds."""

from bench.harness.layer_comparison import run


def main(arguments: list[str]) -> None:
    run("layer", arguments, gradients=False)
