"""A task of one's own: files that a few lines of YAML describe, read as those of the ten are."""

from unistd.tasks.own.complete import complete
from unistd.tasks.own.description import OwnTask, check_name
from unistd.tasks.own.reader import own_task

__all__ = ["OwnTask", "check_name", "complete", "own_task"]
