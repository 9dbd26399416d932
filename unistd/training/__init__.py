"""Training: the config of a run, the loop, checkpoints and the evaluation."""

from unistd.training.config import Config
from unistd.training.errors import TrainingError
from unistd.training.run import Run, open_run
from unistd.training.settings import ConfigError, load_config
from unistd.training.trainer import Trainer

__all__ = ["Config", "ConfigError", "Run", "Trainer", "TrainingError", "load_config", "open_run"]
