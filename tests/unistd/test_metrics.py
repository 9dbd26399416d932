"""Measures against their definitions."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from unistd.metrics import ForecastMetrics, repeat_last


def measure(*pairs):
    metrics = ForecastMetrics()
    for prediction, target in pairs:
        metrics.update(prediction, target)
    return metrics.compute()


def test_against_numpy_and_scikit_image():
    target = torch.rand(2, 3, 2, 9, 11)
    prediction = target + 0.3 * torch.randn_like(target)  # leaves [0, 1], so that clipping matters
    found = measure((prediction, target))
    p, t = (x.double().flatten(0, 1).numpy() for x in (prediction, target))
    c = p.clip(0, 1)
    frames = range(len(t))
    assert found["mse"] == pytest.approx(np.mean((p - t) ** 2), rel=1e-12)
    assert found["mae"] == pytest.approx(np.mean(np.abs(p - t)), rel=1e-12)
    psnr = np.mean([peak_signal_noise_ratio(t[i], c[i], data_range=1) for i in frames])
    assert found["psnr"] == pytest.approx(psnr, rel=1e-12)
    ssim = np.mean([structural_similarity(t[i], c[i], data_range=1, channel_axis=0) for i in frames])
    assert found["ssim"] == pytest.approx(ssim, rel=1e-12)


def test_psnr_is_the_mean_over_frames_not_of_the_mean_error():
    target = torch.zeros(1, 3, 1, 8, 8)
    prediction = target + torch.tensor([0.001, 0.01, 0.05]).sqrt().view(1, 3, 1, 1, 1)
    assert measure((prediction, target))["psnr"] == pytest.approx((30 + 20 - 10 * math.log10(0.05)) / 3, rel=1e-6)


def test_perfect_forecast_is_finite():
    frames = torch.rand(1, 2, 1, 8, 8)
    found = measure((frames, frames))
    assert found == pytest.approx({"mse": 0, "mae": 0, "psnr": 100, "ssim": 1})


def test_batches_weigh_what_they_hold():
    target = torch.rand(5, 2, 1, 8, 8)
    prediction = torch.rand_like(target)
    parts = [(prediction[:4], target[:4]), (prediction[4:], target[4:])]
    assert measure(*parts) == pytest.approx(measure((prediction, target)), rel=1e-12)


def test_bad_input():
    frames = torch.rand(1, 2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"expected one shape \(B, T, C, H, W\)"):
        measure((frames, frames[:, :1]))
    with pytest.raises(ValueError, match="NaN or Inf"):
        measure((frames * math.nan, frames))
    with pytest.raises(ValueError, match="no frames were measured"):
        measure()


def test_repeat_last_repeats_the_last_frame():
    inputs = torch.rand(2, 3, 1, 4, 4)
    repeated = repeat_last(inputs, 5)
    assert repeated.shape == (2, 5, 1, 4, 4)
    assert all(torch.equal(repeated[:, t], inputs[:, 2]) for t in range(5))
