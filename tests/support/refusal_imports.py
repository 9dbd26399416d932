"""Imported by the process that `refusal` forks its tries from: what is slow to import, and one thread for all of it."""

import torch

import fastmoe_lora  # noqa: F401
import unistd.commands
import unistd.model
import unistd.report
import unistd.tasks  # noqa: F401

torch.set_num_threads(1)
