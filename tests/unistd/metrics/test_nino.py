"""The Nino3.4 correlation against numpy and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from unistd.metrics import ForecastMetrics
from unistd.metrics.nino import lead_weights, nino_index


def measure(prediction, target, sizes=None):
    meters = ForecastMetrics(("nino",))
    sizes = sizes or [len(target)]
    for part in zip(prediction.split(sizes), target.split(sizes), strict=True):
        meters.update(*part)
    return meters.compute()


@pytest.mark.parametrize("sizes", [None, [4, 4, 1]])
def test_against_scipy(sizes):
    target = torch.rand(9, 14, 1, 24, 48)
    prediction = 0.6 * target + 0.4 * torch.rand_like(target)
    index = [frames[:, :, 0, 10:13, 19:30].double().numpy().mean((2, 3)) for frames in (prediction, target)]
    smooth = [sum(part[:, month : month + 12] for month in range(3)) / 3 for part in index]
    expected = [pearsonr(smooth[0][:, lead], smooth[1][:, lead]).statistic for lead in range(12)]
    found = measure(prediction, target, sizes)
    assert found.leads["nino"] == pytest.approx(expected, rel=1e-9)
    assert found.values["nino"] == pytest.approx(np.mean(expected), rel=1e-9)
    share = np.array([1.5] * 4 + [2] * 7 + [3]) * np.log(np.arange(1, 13))
    assert found.values["nino_weighted"] == pytest.approx(np.mean(share * expected), rel=1e-9)


def test_weights_go_on_for_long_forecasts():
    shares = [1.5] * 4 + [2] * 7 + [3] * 7 + [4] * 2
    expected = [share * math.log(lead) for lead, share in enumerate(shares, 1)]
    assert lead_weights(20).tolist() == pytest.approx(expected)


def test_correlation_does_not_depend_on_unit_or_size():
    target = torch.rand(6, 4, 1, 24, 48)
    assert measure(0.3 * target + 0.2, target).values["nino"] == pytest.approx(1, rel=1e-6)
    assert measure(1 - target, target).values["nino"] == pytest.approx(-1, rel=1e-6)


def test_the_region_alone_counts():
    target, prediction = torch.rand(6, 4, 1, 24, 48), torch.rand(6, 4, 1, 24, 48)
    prediction[..., 10:13, 19:30] = target[..., 10:13, 19:30]
    assert measure(prediction, target).values["nino"] == pytest.approx(1)
    target[..., 10:13, 19:30] = target[..., 10:13, 19:30].flip(0)
    assert measure(prediction, target).values["nino"] < 0.9


def test_missing_cells_and_months_are_left_out():
    target, prediction = torch.rand(2, 8, 5, 1, 24, 48, dtype=torch.float64)
    target[:, :, :, 11] = math.nan
    target[3, 2, 0, 10:13] = math.nan
    cells = torch.tensor([10, 12])
    smooth = [frames[:, :, 0, cells, 19:30].mean((2, 3)).unfold(1, 3, 1).mean(-1) for frames in (prediction, target)]
    rest = [index for index in range(8) if index != 3]
    expected = [pearsonr(smooth[0][rest, lead], smooth[1][rest, lead]).statistic for lead in range(3)]
    assert measure(prediction, target).leads["nino"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("samples", "months"), [(1, 6), (4, 2)], ids=["one sample", "too few months for a running mean"]
)
def test_undefined(samples, months):
    found = measure(torch.rand(samples, months, 1, 24, 48), torch.rand(samples, months, 1, 24, 48))
    assert found.values == {"nino": None, "nino_weighted": None}
    assert found.leads["nino"] == [None] * max(0, months - 2)


def test_constant_forecast_has_none_however_it_is_batched():
    target = torch.rand(9, 5, 1, 24, 48)
    prediction = torch.rand(1, 5, 1, 24, 48).expand_as(target)
    assert measure(prediction, target, [4, 4, 1]).values["nino"] is None


@pytest.mark.parametrize("size", [(1, 1), (8, 16), (48, 96)])
def test_index_of_other_grids(size):
    frames = torch.rand(2, 3, 1, *size)
    found = nino_index(frames, torch.ones_like(frames, dtype=torch.bool))
    if size == (48, 96):
        assert torch.allclose(found, frames[:, :, 0, 20:26, 38:60].mean((2, 3)))
    assert found.isfinite().all()
