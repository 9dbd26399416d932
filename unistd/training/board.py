"""The final evaluation in TensorBoard: a run of each forecaster, below the training's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.utils.tensorboard import SummaryWriter

from unistd.training.evaluate import BASELINES, Evaluation
from unistd.training.run import Run

FORECASTERS = ("model", *BASELINES)


def write_scores(run: Run, step: int, evaluation: Evaluation) -> None:
    """Writes `test_MEASURE/TASK` at the checkpoint's step, and `test_MEASURE_per_lead/TASK` over the lead times."""
    for forecaster in FORECASTERS:
        tasks = {task: result[forecaster] for task, result in evaluation.items() if forecaster in result}
        if not tasks:
            continue
        with _board(run.scores / forecaster) as board:
            for task, scores in tasks.items():
                for name, value in scores.values.items():
                    points = [(f"test_{name}/{task}", value, step)]
                    points += [
                        (f"test_{name}_per_lead/{task}", at, lead) for lead, at in enumerate(scores.leads[name], 1)
                    ]
                    for tag, shown, place in points:
                        if shown is not None:
                            board.add_scalar(tag, shown, place)


@contextmanager
def _board(folder: Path) -> Iterator[SummaryWriter]:
    """A writer for a folder of any name: TensorBoard's own takes none that is not UTF-8."""
    with TemporaryDirectory() as temporary:
        with closing(SummaryWriter(temporary)) as board:
            yield board
        folder.mkdir(parents=True, exist_ok=True)
        for file in Path(temporary).iterdir():
            shutil.move(file, folder / file.name)


def remove_scores(run: Run) -> None:
    """Removes what an earlier evaluation left."""
    for file in run.scores.glob("*/events.out.tfevents.*"):
        file.unlink(missing_ok=True)
