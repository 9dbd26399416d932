"""The forecasts that take no model."""

import math

import torch

from unistd.metrics import TrainingMean, linear, repeat_last


def test_repeat_last_repeats_the_last_frame():
    inputs = torch.rand(2, 3, 1, 4, 4)
    repeated = repeat_last(inputs, 5)
    assert repeated.shape == (2, 5, 1, 4, 4)
    assert all(torch.equal(repeated[:, t], inputs[:, 2]) for t in range(5))


def test_linear_goes_on_and_is_clipped():
    inputs = torch.tensor([[0.9, 0.2, 0.3], [0.1, 0.5, 0.25]]).view(2, 3, 1, 1, 1)
    found = linear(inputs, 8).view(2, 8)
    torch.testing.assert_close(found[0], torch.tensor([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0]))
    torch.testing.assert_close(found[1], torch.zeros(8))


def test_training_mean_is_of_every_measured_pixel():
    mean = TrainingMean()
    mean.add(torch.tensor([[0.0, math.nan, 1.0], [0.5, math.nan, math.nan]]).view(2, 1, 1, 3))
    mean.add(torch.tensor([[1.0, math.nan, 0.5]]).view(1, 1, 1, 3))
    assert mean.samples == 2
    found = mean(torch.rand(4, 2, 1, 1, 3), 5)
    assert found.shape == (4, 5, 1, 1, 3)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.0, 0.75]).view(1, 1, 1, 1, 3).expand(4, 5, 1, 1, 3))
