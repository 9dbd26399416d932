"""A training that is told to stop after one of its steps."""

import signal

from unistd.training.trainer import Trainer


class Stopping(Trainer):
    """``stop_at``: the step; None: it goes on to its end."""

    stop_at: int | None = None

    def _train_step(self, *arguments):
        super()._train_step(*arguments)
        if self.step == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
