"""Command-line options that the comparisons share."""

import argparse
import os
from pathlib import Path

import torch

from bench.harness.machine import has_fast_bfloat16
from bench.harness.problem import Problem, parse_size
from bench.harness.record import RESULTS
from bench.peers import PEERS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def parser(name: str, about: str) -> argparse.ArgumentParser:
    """--device, --threads, --seconds, --quick and --output, that all comparisons have."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {name}", description=about)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads")
    parser.add_argument("--seconds", type=float, help="how long each group is measured")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, few rounds: to see that all of it works")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON file (default: bench/results)")
    return parser


def dtypes_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="default: bf16 where the hardware has it, and fp32")


def layer_options(parser: argparse.ArgumentParser, sizes: str) -> None:
    """--dtype, --sizes and --against of the comparisons over the layer."""
    dtypes_option(parser)
    parser.add_argument("--sizes", nargs="+", help=f"names, or M=..,K=..,N=..[,S=..,E=..,R=..] (default: {sizes})")
    parser.add_argument("--against", nargs="+", choices=PEERS, help="entrants (default: all)")


def settle(options: argparse.Namespace) -> tuple[torch.device, dict[str, object]]:
    """The device, made ready, and all options as the record's settings."""
    os.environ.pop("FASTMOE_LORA_BACKEND", None)  # it would put one backend in the place of every one
    torch.set_num_threads(options.threads)
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    return torch.device(options.device), settings


def chosen_dtypes(options: argparse.Namespace, device: torch.device) -> list[torch.dtype]:
    if options.dtype:
        return [DTYPES[name] for name in options.dtype]
    if device.type == "cuda":
        return [torch.bfloat16]
    return [torch.bfloat16, torch.float32] if has_fast_bfloat16() else [torch.float32]


def chosen_sizes(options: argparse.Namespace, default: list[str]) -> list[Problem]:
    return [parse_size(text) for text in options.sizes or (["tiny"] if options.quick else default)]
