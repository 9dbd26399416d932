"""All measures together: batches, missing values, bad input, what is undefined; and values by their names."""

import math

import pytest
import torch

from unistd.metrics import DEFAULT_METRICS, MEASURES, NETWORKS, ForecastMetrics, check_metrics, measure_of

EVERY = tuple(name for name in MEASURES if name not in NETWORKS)
THRESHOLDS = (0.2, 0.5, 0.8)


def measure(*pairs, metrics=EVERY):
    meters = ForecastMetrics(metrics, thresholds=THRESHOLDS)
    for prediction, target in pairs:
        meters.update(prediction, target)
    return meters.compute()


def assert_close(found, expected):
    """Values by name, or per lead time, of which some may be None in both."""
    pairs = found.items() if isinstance(found, dict) else enumerate(found)
    assert len(found) == len(expected)
    for key, value in pairs:
        assert (value is None) == (expected[key] is None), key
        assert value is None or value == pytest.approx(expected[key], rel=1e-9, abs=1e-12), key


def frames(samples=7, missing=False):
    target = torch.rand(samples, 5, 1, 24, 20)
    if missing:
        target[torch.rand_like(target) < 0.02] = math.nan
        target[2] = math.nan
        target[3, 1] = math.nan
        target[:, :, :, :3] = math.nan
    return target + 0.3 * torch.randn_like(target).nan_to_num(0).where(~target.isnan(), 0.5), target


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "missing values"])
@pytest.mark.parametrize("sizes", [(4, 3), (1,) * 7, (6, 1)], ids=str)
def test_batches_weigh_what_they_hold(sizes, missing):
    prediction, target = frames(missing=missing)
    prediction = prediction.nan_to_num(0.5)
    whole = measure((prediction, target))
    parts = measure(*zip(prediction.split(sizes), target.split(sizes), strict=True))
    assert_close(parts.values, whole.values)
    for name, leads in whole.leads.items():
        assert_close(parts.leads[name], leads)


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "missing values"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)], ids=str)
def test_parts_that_were_measured_apart_are_merged(order, missing):
    prediction, target = frames(missing=missing)
    prediction = prediction.nan_to_num(0.5)
    whole = measure((prediction, target))
    parts = [ForecastMetrics(EVERY, thresholds=THRESHOLDS) for _ in range(4)]  # the last one has seen nothing
    for part, *pair in zip(parts, prediction.split((2, 1, 4)), target.split((2, 1, 4)), strict=False):
        part.update(*pair)
    first, *others = (parts[place] for place in order)
    for part in others:
        first.merge(part)
    merged = first.compute()
    assert_close(merged.values, whole.values)
    for name, leads in whole.leads.items():
        assert_close(merged.leads[name], leads)


def test_what_is_missing_counts_nowhere():
    _, target = frames(missing=True)
    one, other = torch.rand_like(target), torch.rand_like(target)
    other = torch.where(target.isnan(), other, one)
    assert not torch.equal(one, other)
    assert measure((one, target)) == measure((other, target))


def test_frames_that_were_not_measured_at_all_change_nothing():
    prediction, target = frames(5)
    whole = measure((prediction, target))
    more = torch.cat([target, torch.full((2, 5, 1, 24, 20), math.nan)])
    assert measure((torch.cat([prediction, torch.rand(2, 5, 1, 24, 20)]), more)) == whole


def test_per_lead_is_what_that_frame_alone_gives():
    prediction, target = frames(missing=True)
    prediction = prediction.nan_to_num(0.5)
    alone = tuple(name for name in EVERY if name != "nino")  # which is of three frames
    whole = measure((prediction, target), metrics=alone)
    for lead in range(5):
        one = measure((prediction[:, lead : lead + 1], target[:, lead : lead + 1]), metrics=alone)
        assert_close({name: leads[lead] for name, leads in whole.leads.items()}, one.values)


def test_nothing_measured_is_undefined_everywhere():
    found = measure((torch.rand(2, 3, 1, 8, 8), torch.full((2, 3, 1, 8, 8), math.nan)))
    assert set(found.values.values()) == {None}
    assert all(set(leads) <= {None} for leads in found.leads.values())


def test_perfect_forecast_is_finite():
    target = torch.rand(3, 4, 1, 24, 48)
    found = measure((target, target))
    perfect = {"mse": 0, "mae": 0, "rmse": 0, "psnr": 100, "ssim": 1, "ssim_openstl": 1, "vrmse": 0, "vrmse_well": 0}
    perfect |= {"csi": 1, "pod": 1, "sucr": 1, "bias": 1, "hss": 1, "nino": 1}
    assert {name: found[name] for name in perfect} == pytest.approx(perfect)


def test_a_constant_world_has_undefined_measures_and_no_crash():
    target = torch.full((3, 4, 1, 24, 48), 0.1)
    found = measure((target + 0.01, target)).values
    assert found["mse"] == pytest.approx(1e-4, rel=1e-5)
    for name in ("vrmse", "csi", "csi_0.5", "pod", "sucr_0.2", "bias", "hss", "nino", "nino_weighted"):
        assert found[name] is None, name


def test_every_value_belongs_to_a_measure():
    prediction, target = frames()
    found = measure((prediction, target)).values
    assert all(measure_of(name) for name in found)
    assert measure_of("csi_pool4_16") is MEASURES["csi"]
    assert measure_of("csi_-1.5e+02") is MEASURES["csi"]
    assert measure_of("ssim_openstl") is MEASURES["ssim_openstl"]
    for name in ("", "msee", "mse_", "other_16", "mse_<b>", "csi_pool4_x"):
        assert measure_of(name) is None, name


def test_only_what_was_asked_for_is_measured():
    found = ForecastMetrics(("mse", "psnr"))
    found.update(torch.rand(1, 2, 1, 4, 4), torch.rand(1, 2, 1, 4, 4))
    assert set(found.compute().values) == {"mse", "mse_sum", "mse_physical", "psnr"}
    assert set(measure((torch.rand(1, 3, 1, 8, 8),) * 2, metrics=DEFAULT_METRICS).values) >= set(DEFAULT_METRICS)


def test_bad_input():
    batch = torch.rand(1, 2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"expected one shape \(B, T, C, H, W\)"):
        measure((batch, batch[:, :1]))
    with pytest.raises(ValueError, match="the prediction holds NaN or Inf"):
        measure((batch * math.nan, batch))
    with pytest.raises(ValueError, match="the target holds Inf"):
        measure((batch, batch / 0))
    with pytest.raises(ValueError, match="no frames were measured"):
        measure()


@pytest.mark.parametrize(
    ("metrics", "thresholds", "line"),
    [
        (("mse", "pnsr"), (), "metrics: unknown measure 'pnsr', did you mean 'psnr'"),
        (("mse", 3), (), "metrics: unknown measure '3', expected some of mse, mae"),
        (("mse", "mae", "mse"), (), "metrics: 'mse' is there twice"),
        (("mse", "csi", "pod"), (), "thresholds: found none, expected those of the events that csi, pod count"),
        (("csi",), (1, 1), r"thresholds: expected increasing numbers, found \[1, 1\]"),
        (("csi",), (2, 1), "thresholds: expected increasing numbers"),
        (("csi",), (math.nan,), "thresholds: expected finite numbers"),
        (("csi",), ("16",), r"thresholds: expected finite numbers, found \['16'\]"),
        (("csi",), (True,), "thresholds: expected finite numbers"),
    ],
)
def test_measures_that_cannot_be_asked_for(metrics, thresholds, line):
    with pytest.raises(ValueError, match=line):
        check_metrics(metrics, thresholds)
