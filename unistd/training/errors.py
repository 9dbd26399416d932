"""What ends a training."""


class TrainingError(RuntimeError):
    """Training cannot go on. One line; the last checkpoint is untouched."""
