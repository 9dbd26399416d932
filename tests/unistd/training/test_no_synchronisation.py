"""A training step asks the device for nothing: numbers are read where they are logged, and nowhere else.

On a GPU each of these calls would wait until it has done all that it was given. Here they raise, except on what is read
in a step that is logged.
"""

import io
from contextlib import contextmanager

import pytest
import torch
from rich.console import Console
from support.tiny_run import tiny_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unistd.training.log import read_log
from unistd.training.run import Run
from unistd.training.trainer import Trainer

# what makes a tensor's numbers the host's, or a shape depend on them
READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "_unique2"}


class Synchronised(AssertionError):
    pass


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.partition("::")[2]
        masks = name.startswith("index") and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:2])
        )
        if name in READS or masks:
            raise Synchronised(f"aten::{name}")
        return function(*args, **(kwargs or {}))


@contextmanager
def no_reads():
    """Inside `with`, reading a tensor raises."""

    def refuse(name):
        def read(*arguments, **options):
            raise Synchronised(f"Tensor.{name}")

        return read

    with pytest.MonkeyPatch.context() as patch, NoReads():
        for name in ("cpu", "tolist", "numpy", "__array__"):
            patch.setattr(Tensor, name, refuse(name))
        yield


class Watched(Trainer):
    """Its steps may not read."""

    watched = 0

    def _train_step(self, *arguments):
        if self.step % self.epoch_steps == 0 or self.step + 1 == self.steps:
            # ranks are frozen between two epochs, and a first step makes the optimizer's state
            return super()._train_step(*arguments)
        self.watched += 1
        with no_reads():
            return super()._train_step(*arguments)


CASES = {
    "mixed batches": {},
    "one task a step": {"train.tasks_per_step": 1},
    "several passes": {"train.accumulate": 2, "train.batch_size": 1, "train.epoch_samples": 8},
    "by losses": {"train.sampling": "loss_balanced", "train.tasks_per_step": 2},
    "bf16": {"train.precision": "bf16-mixed"},
    "fp16": {"train.precision": "16-mixed"},
    "no clipping": {"optim.clip": None},
    "checkpointing": {"model.checkpointing": True},
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_reads_nothing_from_the_device(tmp_path, case):
    changes = {"train.epoch_samples": 8, "train.log_every": 1000, "data.val_samples": 0}
    running = Watched(tiny_config(tmp_path, changes | CASES[case]), Run(tmp_path), Console(file=io.StringIO()))
    running.fit()
    assert running.watched >= running.steps - running.config.train.epochs - 1 > 4
    assert [r["step"] for r in read_log(running.run.log) if "losses" in r] == [running.steps]


@pytest.mark.parametrize(
    "read",
    [
        Tensor.item,
        lambda value: value.cpu(),
        lambda value: value.tolist(),
        bool,
        float,
        Tensor.nonzero,
        lambda value: value.expand(2)[value.expand(2) > 0],
        lambda value: torch.equal(value, value),
    ],
    ids=["item", "cpu", "tolist", "bool", "float", "nonzero", "mask", "equal"],
)
def test_reads_are_noticed(read):
    with no_reads(), pytest.raises(Synchronised):
        read(torch.ones(()))
