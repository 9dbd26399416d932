"""The adapted layer's forward pass beside all peers, on the same weights and in the same rounds."""

from functools import partial

from bench import options
from bench.contest import contest
from bench.peers import PEERS
from bench.record import Record
from bench.session import collect

SIZES = {"cpu": ["qkv", "qkv-1-image", "proj"], "cuda": ["qkv", "qkv-1-image", "proj", "qkv-1024", "llm"]}


def main(arguments: list[str]) -> None:
    run("layer", arguments, gradients=False)


def run(name: str, arguments: list[str], gradients: bool) -> None:
    """Measures each size in the first dtype and the first size in all; on a GPU also under CUDA graphs."""
    what = "forward and backward" if gradients else "forward"
    parser = options.parser(name, f"The layer's {what} pass beside all peers.")
    options.layer_options(parser, ", ".join(SIZES["cpu"]))
    given = parser.parse_args(arguments)
    device, settings = options.settle(given)
    record = Record.begin(name, device, settings)
    seconds = given.seconds or (0.5 if given.quick else 5.0)
    sizes = options.chosen_sizes(given, SIZES.get(device.type, SIZES["cpu"]))
    names = given.against or list(PEERS)
    measure = partial(contest, device=device, names=names, gradients=gradients, seconds=seconds)
    first, *others = options.chosen_dtypes(given, device)
    pairs = [(problem, first) for problem in sizes]
    pairs += [(problem, dtype) for dtype in others for problem in (sizes if given.dtype else sizes[:1])]
    jobs = [
        lambda job=(problem, dtype, graphs): [measure(job[0], job[1], graphs=job[2])]
        for problem, dtype in pairs
        for graphs in ((False, True) if device.type == "cuda" else (False,))
    ]
    collect(record, given.output, jobs)
