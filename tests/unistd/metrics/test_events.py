"""Scores of events against counting by hand and torchmetrics."""

import math

import pytest
import torch
from torch.nn import functional as F

from unistd.metrics import ForecastMetrics
from unistd.model.torchvision_ops import define_missing_ops
from unistd.tasks import get_task

NAMES = ("csi", "pod", "sucr", "bias", "hss")
SEVIR = get_task("sevir").spec


def measure(prediction, target, thresholds=SEVIR.thresholds, scale=255.0, offset=0.0, metrics=NAMES):
    meters = ForecastMetrics(metrics, scale, offset, thresholds)
    meters.update(prediction, target)
    return meters.compute()


def row(*levels):
    """One frame (1, 1, 1, 1, W) of levels of 255, as float32 shares."""
    return (torch.tensor(levels) / 255).view(1, 1, 1, 1, -1)


def test_by_hand():
    """At 16: 3 hits, 1 miss, 2 false alarms, 4 correct rejections; at 74: 1, 1, 1, 7; more is never observed."""
    target = row(16, 80, 90, 20, 0, 0, 15, 0, 0, 15)
    prediction = row(70, 20, 75, 10, 100, 16, 0, 0, 0, 0)
    found = measure(prediction, target).values
    assert found["csi_16"] == pytest.approx(3 / 6)
    assert found["pod_16"] == pytest.approx(3 / 4)
    assert found["sucr_16"] == pytest.approx(3 / 5)
    assert found["bias_16"] == pytest.approx(5 / 4)
    assert found["hss_16"] == pytest.approx(2 * (3 * 4 - 1 * 2) / (4 * 5 + 5 * 6))
    assert found["csi_74"] == pytest.approx(1 / 3)
    assert found["hss_74"] == pytest.approx(2 * (1 * 7 - 1) / (2 * 8 + 2 * 8))
    assert found["csi_133"] is None
    assert found["csi"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["pod"] == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_a_score_of_no_forecast_event_counts_as_zero_in_the_mean():
    found = measure(row(20, 0, 0), row(20, 80, 0)).values
    assert found["sucr_16"] == 1
    assert found["sucr_74"] is None
    assert found["sucr"] == pytest.approx(0.5)
    assert found["csi_74"] == 0
    assert found["bias_74"] == 0


@pytest.mark.parametrize("level", SEVIR.thresholds)
def test_an_event_is_at_or_above_the_threshold(level):
    """However the share of the scale was rounded."""
    for shares in (torch.tensor([level / 255]), torch.tensor([level]) / 255, torch.tensor([level]) * (1 / 255)):
        at = shares.float().view(1, 1, 1, 1, 1)
        below = torch.tensor((level - 1) / 255).view(1, 1, 1, 1, 1)
        assert measure(at, at).values[f"csi_{level}"] == 1
        assert measure(below, at).values[f"csi_{level}"] == 0


def test_against_torchmetrics():
    define_missing_ops()
    from torchmetrics.regression import CriticalSuccessIndex

    prediction, target = torch.rand(3, 4, 1, 10, 9), torch.rand(3, 4, 1, 10, 9)
    found = measure(prediction, target)
    for threshold in SEVIR.thresholds:
        oracle = CriticalSuccessIndex(threshold / 255)
        assert found.values[f"csi_{threshold}"] == pytest.approx(oracle(prediction, target).item(), rel=1e-6)
        each = CriticalSuccessIndex(threshold / 255, keep_sequence_dim=0)(
            prediction.transpose(0, 1), target.transpose(0, 1)
        )
        assert found.leads[f"csi_{threshold}"] == pytest.approx(each.tolist(), rel=1e-6)


def test_counts_run_over_the_set_not_per_sample():
    """One hit of one event, and no hit of three: 1/4, not the mean of 1 and 0."""
    meters = ForecastMetrics(("csi",), thresholds=(0.5,))
    meters.update(torch.tensor([1.0, 0, 0]).view(1, 1, 1, 1, 3), torch.tensor([1.0, 0, 0]).view(1, 1, 1, 1, 3))
    meters.update(torch.zeros(1, 1, 1, 1, 3), torch.ones(1, 1, 1, 1, 3))
    assert meters.compute().values["csi"] == pytest.approx(1 / 4)


def test_pooled_scores_are_those_of_pooled_frames():
    prediction, target = torch.rand(2, 3, 1, 35, 33) ** 3, torch.rand(2, 3, 1, 35, 33) ** 3
    found = measure(prediction, target, (200, 250))
    for pool in (4, 16):
        pooled = [F.max_pool2d(frames.flatten(0, 1), pool).unflatten(0, (2, 3)) for frames in (prediction, target)]
        alone = measure(*pooled, (200, 250), metrics=("csi",)).values
        for suffix in ("", "_200", "_250"):
            assert found.values[f"csi_pool{pool}{suffix}"] == pytest.approx(alone[f"csi{suffix}"], rel=1e-12)
    assert "pod_pool4" not in found.values


def test_pooling_forgives_a_shift():
    target, prediction = torch.zeros(1, 1, 1, 16, 16), torch.zeros(1, 1, 1, 16, 16)
    target[..., 5, 5], prediction[..., 6, 6] = 1, 1
    found = measure(prediction, target, (100,)).values
    assert (found["csi"], found["csi_pool4"], found["csi_pool16"]) == (0, 1, 1)


def test_small_frames_have_no_pooled_scores():
    found = measure(torch.rand(1, 1, 1, 8, 9), torch.rand(1, 1, 1, 8, 9)).values
    assert "csi_pool4" in found
    assert "csi_pool16" not in found


def test_a_block_with_a_missing_pixel_is_left_out():
    target, prediction = torch.zeros(1, 1, 1, 4, 8), torch.ones(1, 1, 1, 4, 8)
    target[..., 1, 1], target[..., 0, 5] = 1, 1
    target[..., 3, 3] = math.nan
    found = measure(prediction, target, (100,)).values
    assert found["csi"] == pytest.approx(2 / 31)
    assert found["csi_pool4"] == 1


def test_thresholds_are_in_physical_units():
    shares = (torch.tensor([0.0, 1.0, 2.0, 3.0]) + 2) / 10
    found = measure(shares.view(1, 1, 1, 1, 4), shares.view(1, 1, 1, 1, 4), (-1.0, 1.5), 10.0, -2.0).values
    assert found["bias_-1"] == 1
    assert found["hss_-1"] is None, "all are events: there is nothing to tell apart"
    assert found["hss_1.5"] == 1
