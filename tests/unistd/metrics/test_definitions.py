"""Errors, PSNR and SSIM against numpy, scikit-image and cases computed by hand."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from unistd.metrics import ForecastMetrics

METRICS = ("mse", "mae", "rmse", "psnr", "ssim", "ssim_openstl", "vrmse", "vrmse_well")
NAN = math.nan


def measure(prediction, target, metrics=METRICS, scale=1.0):
    meters = ForecastMetrics(metrics, scale)
    meters.update(prediction, target)
    return meters.compute()


def pixels(*values):
    """A frame each of one row of pixels: (1, T, 1, 1, W)."""
    return torch.tensor(values).view(1, len(values), 1, 1, -1)


def test_errors_against_numpy():
    target = torch.rand(2, 3, 2, 9, 11)
    prediction = target + 0.3 * torch.randn_like(target)  # leaves [0, 1], so that clipping would matter
    found = measure(prediction, target, scale=50.0).values
    p, t = (x.double().numpy() for x in (prediction, target))
    mse, mae, size = np.mean((p - t) ** 2), np.mean(np.abs(p - t)), 2 * 9 * 11
    assert found["mse"] == pytest.approx(mse, rel=1e-12)
    assert found["mse_sum"] == pytest.approx(((p - t) ** 2).sum((2, 3, 4)).mean(), rel=1e-12)
    assert found["mse_physical"] == pytest.approx(np.mean((50 * p - 50 * t) ** 2), rel=1e-12)
    assert found["mae"] == pytest.approx(mae, rel=1e-12)
    assert found["mae_sum"] == pytest.approx(np.abs(p - t).sum((2, 3, 4)).mean(), rel=1e-12)
    assert found["mae_physical"] == pytest.approx(50 * mae, rel=1e-12)
    assert found["rmse"] == pytest.approx(np.sqrt(mse), rel=1e-12)
    assert found["rmse_sum"] == pytest.approx(np.sqrt(mse * size), rel=1e-12)
    assert found["rmse_physical"] == pytest.approx(50 * np.sqrt(mse), rel=1e-12)
    assert found["vrmse"] == pytest.approx(np.sqrt(mse / t.var()), rel=1e-9)
    per_frame = np.sqrt(((p - t) ** 2).mean((3, 4)) / (t.var((3, 4), ddof=1) + 1e-7))
    assert found["vrmse_well"] == pytest.approx(per_frame.mean(), rel=1e-9)


def test_errors_by_hand():
    """Frames (0, 0.5) and (1, missing), forecast as (0.1, 0.5) and (0.8, anything)."""
    found = measure(pixels([0.1, 0.5], [0.8, 9.0]), pixels([0.0, 0.5], [1.0, NAN]), ("mse", "mae", "rmse", "vrmse"), 10)
    assert found.values["mse"] == pytest.approx((0.01 + 0 + 0.04) / 3, rel=1e-6)
    assert found.leads["mse"] == pytest.approx([0.005, 0.04], rel=1e-6)
    assert found.values["mae"] == pytest.approx(0.1, rel=1e-6)
    assert found.leads["mae_physical"] == pytest.approx([0.5, 2.0], rel=1e-6)
    assert found.values["mae_sum"] == pytest.approx(0.2, rel=1e-6), "two pixels a frame, the missing one as the others"
    assert found.leads["rmse"] == pytest.approx([0.005**0.5, 0.2], rel=1e-6)
    variance = (0 + 0.25 + 1) / 3 - 0.5**2
    assert found.values["vrmse"] == pytest.approx((0.05 / 3 / variance) ** 0.5, rel=1e-6)
    assert found.leads["vrmse"] == [pytest.approx((0.005 / 0.0625) ** 0.5, rel=1e-6), None]


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_vrmse_of_the_targets_mean_is_one(offset):
    target = torch.rand(6, 3, 2, 4, 5, dtype=torch.float64) + offset
    assert measure(target.mean().expand_as(target), target, ("vrmse",)).values["vrmse"] == pytest.approx(1, rel=1e-9)


def test_psnr_and_ssim_against_scikit_image():
    target = torch.rand(2, 3, 2, 19, 11)
    prediction = target + 0.3 * torch.randn_like(target)
    found = measure(prediction, target).values
    t, c = (x.double().flatten(0, 1).numpy() for x in (target, prediction.clamp(0, 1)))
    psnr = np.mean([peak_signal_noise_ratio(t[i], c[i], data_range=1) for i in range(6)])
    assert found["psnr"] == pytest.approx(psnr, rel=1e-12)
    for name, span in (("ssim", 1), ("ssim_openstl", 2)):
        ssim = np.mean([structural_similarity(t[i], c[i], data_range=span, channel_axis=0) for i in range(6)])
        assert found[name] == pytest.approx(ssim, rel=1e-12)


def test_frames_are_filtered_in_parts_as_one(monkeypatch):
    prediction, target = torch.rand(2, 5, 1, 12, 12), torch.rand(2, 5, 1, 12, 12)
    whole = measure(prediction, target)
    monkeypatch.setattr("unistd.metrics.ssim._PIXELS", 300)
    monkeypatch.setattr("unistd.metrics.forecast._PIXELS", 100)
    parts = measure(prediction, target)
    assert parts.values == pytest.approx(whole.values, rel=1e-12)


def test_psnr_is_the_mean_over_frames_not_of_the_mean_error():
    target = torch.zeros(1, 3, 1, 8, 8)
    prediction = target + torch.tensor([0.001, 0.01, 0.05]).sqrt().view(1, 3, 1, 1, 1)
    found = measure(prediction, target)
    assert found.values["psnr"] == pytest.approx((30 + 20 - 10 * math.log10(0.05)) / 3, rel=1e-6)
    assert found.leads["psnr"] == pytest.approx([30, 20, -10 * math.log10(0.05)], rel=1e-6)


def test_psnr_of_the_measured_pixels():
    found = measure(pixels([0.1, 0.0], [0.0, 0.0]), pixels([0.0, NAN], [NAN, NAN]), ("psnr",))
    assert found.leads["psnr"] == [pytest.approx(20, rel=1e-6), None]
    assert found.values["psnr"] == pytest.approx(20, rel=1e-6)


@pytest.mark.parametrize("holes", [[(0, 0)], [(0, 8), (9, 9)], [(2, 12), (11, 0)]], ids=str)
def test_ssim_is_the_mean_over_windows_without_a_missing_pixel(holes):
    target, prediction = torch.rand(1, 1, 2, 14, 17), torch.rand(1, 1, 2, 14, 17)
    whole = np.ones((2, 8, 11), bool)
    maps = [
        structural_similarity(
            target[0, 0, channel].double().numpy(), prediction[0, 0, channel].double().numpy(), data_range=1, full=True
        )[1][3:-3, 3:-3]
        for channel in range(2)
    ]
    for channel, (row, column) in enumerate(holes):
        target[0, 0, channel, row, column] = NAN
        whole[channel, max(0, row - 6) : row + 1, max(0, column - 6) : column + 1] = False
    assert measure(prediction, target).values["ssim"] == pytest.approx(np.stack(maps)[whole].mean(), rel=1e-10)


def test_ssim_of_no_whole_window_is_undefined():
    target = torch.rand(1, 1, 1, 9, 9)
    target[..., 4, 4] = NAN
    assert measure(torch.rand(1, 1, 1, 9, 9), target, ("ssim",)).values["ssim"] is None
