"""What the state in a checkpoint must be, key by key, for the run that is to go on from it or be measured."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fastmoe_lora import RAMoELinear, RankOptimizer
from unistd.messages import shown
from unistd.model import UniSTD
from unistd.training.balance import expected_balance
from unistd.training.checkpoint import CheckpointError
from unistd.training.config import Config
from unistd.training.data import steps_per_epoch
from unistd.training.expected import Maybe, close, compare, finite, number, tensor_fault, whole
from unistd.training.formats import check_format
from unistd.training.precision import FP16, expected_scale
from unistd.training.settings import changed_keys, check_config

KEYS = ("config", "step", "seconds", "baselines", "model", "optimizer", "schedule", "ranks", "random")
WEIGHTS = ("config", "step", "model")  # what is needed of them to use the model
# keys that may differ between a run and its resumption or evaluation, since no number of the training depends on them
FREE_KEYS = {"run", "data.generated", "data.workers", "data.cache", "data.test_samples", "data.val_samples"}
FREE_KEYS |= {"train.accelerator", "train.log_every", "train.checkpoint_every", "train.keep", "train.patience"}
FREE_KEYS |= {"train.devices", "train.nodes", "train.strategy", "train.shard_frozen"}
FREE_KEYS |= {"train.skip_limit", "train.compile"}
FREE_KEYS |= {"metrics.lpips_weights", "metrics.fvd_weights"}
# paths: what they lead to may have been moved
MOVABLE_KEYS = re.compile(r"data\.root|model\.pretrained|train\.init_from|own_tasks\.[^.]+\.files")
_HYPERPARAMETERS = {"params", "lr", "betas", "eps", "weight_decay", "initial_lr"}  # in every release of torch


def check_config_of(state: Any, config: Config, source: Path, user: str, keys: Sequence[str] = KEYS) -> Config:
    """The config that the checkpoint was trained with, where it is this one up to keys on which no number depends;
    train.epochs may be more here, for a run that is to go on longer.

    Raises CheckpointError where the checkpoint is not one of ours, of a later release, or not one of a run with this
    config.

    Args:
        state: what `load_checkpoint` read from `source`.
        user: what the config is to be used for, as the message says it.
        keys: what it must have.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"{_damaged(source)}, expected a dict, found {shown(state)}")
    check_format(state, source)
    if (missing := next((key for key in keys if key not in state), None)) is not None:
        raise CheckpointError(f"{_damaged(source)}, it has no {missing!r}")
    if not isinstance(state["config"], dict):
        raise CheckpointError(f"{_damaged(source)}, 'config': expected a dict, found {shown(state['config'])}")
    trained = _as_trained(check_config(state["config"], source=f"{_damaged(source)}, 'config'"))
    here = _as_trained(config)
    for key in changed_keys(trained, here):
        before, now = (_value(tree, key) for tree in (trained, here))
        moved = MOVABLE_KEYS.fullmatch(key) and None not in (before, now)
        longer = key == "train.epochs" and now > before
        if key not in FREE_KEYS and not moved and not longer:
            values = f"{shown(now)}, the run's is {shown(before)}"
            raise CheckpointError(f"{source}: {user}, the config differs from the run's in {key!r}: {values}")
    train = config.train.model_copy(update={"epochs": trained["train"]["epochs"]})
    return config.model_copy(update={"train": train})


def _as_trained(config: Config) -> dict[str, Any]:
    """A config without what its tasks are measured by, which no number of the training depends on."""
    tree = config.model_dump()
    for task, options in list(tree["task_options"].items()):
        options |= dict.fromkeys(("metrics", "thresholds"))
        if all(value is None for value in options.values()):
            del tree["task_options"][task]
    for description in tree["own_tasks"].values():
        del description["metrics"], description["thresholds"]
    return tree


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value.isprintable() else "a line of text"


def _truth(value: Any) -> str | None:
    return None if isinstance(value, bool) else "True or False"


_UNIT = {"scale": number(zero=False), "offset": finite, "unit": _text, "missing": _truth}


_COUNT = whole(0, 1 << 62)
_VALIDATIONS = dict.fromkeys(("last", "step", "waited", "samples"), _COUNT)
_VALIDATIONS["error"] = lambda value: None if value is None else number(zero=True)(value)


def _kept(step: int, value: Any) -> str | None:
    steps = value if isinstance(value, list) else [None]
    right = not any(map(whole(0, step), steps)) and sorted(set(steps)) == steps
    return None if right else f"a list of steps up to {step}, in their order"


def _some_of(tasks: Sequence[str], value: Any) -> str | None:
    right = isinstance(value, list) and value == [task for task in tasks if task in value]
    return None if right else f"some of the tasks {', '.join(tasks)}, in their order"


def check_model(state: Mapping[str, Any], config: Config, model: UniSTD, source: Path) -> None:
    """Raises CheckpointError naming the first of "step" and the model's tensors that no run of this config can have."""
    epoch = steps_per_epoch(config)
    compare(state["step"], whole(0, config.train.epochs * epoch), "step", _damaged(source))
    if "learned" in state:
        compare(state["learned"], partial(_some_of, config.tasks), "learned", _damaged(source))
    step, phase = state["step"], config.ranks.epochs * epoch
    frozen = step > phase or step == config.train.epochs * epoch
    if step == phase and isinstance(state["model"], Mapping):  # at the end of a run that went on longer they are frozen
        flags = [state["model"].get(f"{name}.rank_frozen") for name in model.ramoe_layers()]
        frozen |= all(isinstance(flag, Tensor) and flag.dtype == torch.bool and bool(flag.all()) for flag in flags)
    expected = dict(model.state_dict())
    for name, layer in model.ramoe_layers().items():
        expected[f"{name}.rank_frozen"] = torch.tensor(frozen)
        expected[f"{name}.rank"] = _ranks(layer.rank, layer.max_rank, frozen)
        expected[f"{name}._extra_state"] = Maybe(partial(_options, layer, frozen))  # not of earlier releases
    compare(state["model"], expected, "model", _damaged(source))
    for key, expected in (("units", _UNIT), ("scales", number(zero=False))):  # neither, or the second, of old releases
        if key in state:
            compare(state[key], dict.fromkeys(config.tasks, expected), key, _damaged(source))


def check_training(
    state: Mapping[str, Any],
    config: Config,
    model: UniSTD,
    optimizer: Optimizer,
    schedule: LambdaLR,
    ranks: Optimizer,
    source: Path,
) -> None:
    """Raises CheckpointError naming the first value, beside those of `check_model`, with which training cannot go on.

    `optimizer` (of the weights), `schedule` and `ranks` (the ranks' optimizer) are those of a run at its start.
    """
    step, epoch = state["step"], steps_per_epoch(config)
    if "skips" in state:
        compare(state["skips"], dict.fromkeys(("row", "total"), whole(0, step)), "skips", _damaged(source))
    drawn = config.turns * step if config.train.sampling == "round_robin" else 0
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def seen(parameter: Tensor) -> bool:
        """Whether every run has taken a step along this parameter's gradient by now."""
        own = names[id(parameter)].startswith(("encoders.", "decoders."))  # of one task
        adapter = config.ranks.epochs == 0 and ".lora_" in names[id(parameter)]  # of rank 0 it may be
        return step > 0 and not adapter and (drawn >= len(config.learned) or not own)

    skips = state["skips"]["total"] if "skips" in state else 0  # steps that changed nothing
    rates = [base * share(step) for base, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    learned = min(step, config.ranks.epochs * epoch)
    expected = {
        "format": Maybe(lambda value: None),  # has been checked
        "config": lambda value: None,  # likewise
        "step": step,
        "seconds": number(zero=True),
        "baselines": dict.fromkeys(config.tasks, number(zero=False)),
        "model": lambda value: None,
        "optimizer": {"state": _moments(optimizer, seen, step, skips), "param_groups": _groups(optimizer, rates)},
        "schedule": _schedule(schedule, step, rates),
        "ranks": {"state": _rank_state(ranks, learned, skips), "param_groups": _groups(ranks)},
        "random": {"cpu": _generator_state("cpu"), "cuda": _generator_states},
        "log": Maybe(partial(_log, tasks=config.tasks)),
        "sources": Maybe(dict.fromkeys(config.tasks, _source)),
        "units": Maybe(lambda value: None),  # has been checked
        "scales": Maybe(lambda value: None),
        "kept": Maybe(partial(_kept, step)),
        "validations": Maybe(_VALIDATIONS),
        "skips": Maybe(lambda value: None),  # has been checked
        "learned": Maybe(lambda value: None),  # has been checked
    }
    if config.train.sampling == "loss_balanced":
        expected["balance"] = expected_balance(config.learned, step, config.turns)
    if config.train.precision == FP16:
        expected["scale"] = expected_scale(step)
    compare(state, expected, "", _damaged(source))


def _ranks(expected: Tensor, max_rank: int, frozen: bool) -> Callable[[Any], str | None]:
    def fault(value: Any) -> str | None:
        words = tensor_fault(value, expected)
        if words is None and not ((value >= 0) & (value <= max_rank) & ((value == value.round()) | (not frozen))).all():
            words = f"{'whole ' if frozen else ''}ranks of 0 to {max_rank}"
        return words

    return fault


def _options(layer: RAMoELinear, frozen: bool, value: Any) -> str | None:
    return f"the options of this run's layers ({fault})" if (fault := layer.options_fault(value, frozen)) else None


def _moments(optimizer: Optimizer, seen: Callable[[Tensor], bool], steps: int, skips: int) -> dict[int, Any]:
    """State of Adam after at most `steps` steps, of which `skips` changed nothing; optional for a parameter whose
    gradient may not have been seen yet."""
    least = 0 if skips else 1

    def count(value: Any) -> str | None:
        right = tensor_fault(value, torch.tensor(0.0)) is None and value == value.round() and least <= value <= steps
        return None if right else f"float32 (), a whole number from {least} to {steps}"

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for index, parameter in enumerate(parameters):

        def square(value: Any, like: Tensor = parameter) -> str | None:
            return tensor_fault(value, like, least=0)

        moments = {"step": count, "exp_avg": parameter, "exp_avg_sq": square}
        state[index] = moments if seen(parameter) else Maybe(moments)
    return state


def _rank_state(optimizer: Optimizer, steps: int, skips: int) -> dict[int, Any]:
    """State of the ranks' optimizer after `steps` steps of the rank phase, of which up to `skips` changed nothing."""
    if steps == 0:
        return {}
    if not isinstance(optimizer, RankOptimizer):
        return _moments(optimizer, lambda parameter: True, steps, skips)
    ranks = optimizer.param_groups[0]["params"]

    def skipped(value: Any) -> str | None:
        right = tensor_fault(value, ranks[0].new_zeros(())) is None and value == value.round() and 0 <= value <= skips
        return None if right else f"float32 (), a whole number from 0 to {skips}"

    shared = {"step": steps, "mean_square": lambda value: tensor_fault(value, ranks[0].new_zeros(()), least=0)}
    shared["skipped"] = Maybe(skipped)  # not of earlier releases
    return {index: {"mean": rank.detach()} | (shared if index == 0 else {}) for index, rank in enumerate(ranks)}


def _groups(optimizer: Optimizer, rates: list[float] | None = None) -> list[dict[str, Any]]:
    """Parameter groups with the learning rates of a step (None: those they have)."""
    groups = optimizer.state_dict()["param_groups"]
    expected = []
    for index, group in enumerate(groups):
        values = {key: value if key in _HYPERPARAMETERS else Maybe(value) for key, value in group.items()}
        expected.append(values | ({"lr": close(rates[index])} if rates else {}))
    return expected


def _schedule(schedule: LambdaLR, step: int, rates: list[float]) -> dict[str, Any]:
    fresh = {key: Maybe(value) for key, value in schedule.state_dict().items()}
    now = {"base_lrs": schedule.base_lrs, "last_epoch": step, "_step_count": step + 1}
    return fresh | now | {"_last_lr": [close(rate) for rate in rates]}


def _generator_state(device: str) -> Callable[[Any], str | None]:
    def fault(value: Any) -> str | None:
        try:
            torch.Generator(device).set_state(value)
        except (RuntimeError, TypeError):
            return f"a state of torch's random generator ({device})"
        return None

    return fault


def _log(value: Any, tasks: list[str]) -> str | None:
    words = "None, or how many records there are and the losses since the last one"
    if value is None:
        return None
    keys = {"records", "losses"}
    if not isinstance(value, dict) or set(value) - {"skipped"} != keys or not isinstance(value["losses"], dict):
        return words
    lists = value["losses"].values()
    right = all(isinstance(losses, list) and not any(map(number(zero=True), losses)) for losses in lists)
    counts = (value["records"], value.get("skipped", 0))
    right = right and set(value["losses"]) <= set(tasks) and not any(map(whole(0, sys.maxsize), counts))
    return None if right else words


def _source(value: Any) -> str | None:
    return None if value in ("generated", "files") else "'generated' or 'files'"


def _generator_states(value: Any) -> str | None:
    if not isinstance(value, list) or not all(isinstance(state, Tensor) for state in value):
        return "a list of states of the random generators of GPUs"
    faults = [_generator_state("cuda")(state) for state in value] if torch.cuda.is_available() else []
    return next(filter(None, faults), None)


def _damaged(source: Path) -> str:
    return f"{source}: damaged checkpoint"


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def random_state(device: torch.device) -> dict[str, Any]:
    """State of the random generators that training on `device` draws from: the same in all processes."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restores `random_state`, of whichever GPU; earlier releases kept all GPUs' and used the first."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0], device)
