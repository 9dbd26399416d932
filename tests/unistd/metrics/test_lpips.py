"""LPIPS against torchmetrics' network with the same weights."""

import pytest
import torch

from unistd.metrics import ForecastMetrics
from unistd.metrics.lpips import SMALLEST_SIDE, SPARE, PerceptualNetwork
from unistd.model.torchvision_ops import define_missing_ops
from unistd.state_files import load_state

FRAMES = (2, 3, 3, 40, 48)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """torchmetrics' network with random weights, and the file of its state dict."""
    define_missing_ops()
    from torchmetrics.functional.image.lpips import _LPIPS

    torch.manual_seed(0)
    network = _LPIPS(pretrained=False, net="alex", pnet_rand=True, eval_mode=True)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.startswith("lin"):
                value.abs_()  # as trained heads are
    path = tmp_path_factory.mktemp("weights") / "lpips.pt"
    torch.save(network.state_dict(), path)
    return network.eval(), path


@pytest.fixture(scope="module")
def network(published):
    network = PerceptualNetwork()
    load_state(network, published[1], "metrics.lpips_weights", SPARE)
    return network


def _frames():
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(FRAMES, generator=generator) for _ in range(2))


def test_as_torchmetrics_of_each_frame(published, network):
    prediction, target = _frames()
    metrics = ForecastMetrics(["lpips"], networks={"lpips": network})
    metrics.update(prediction * 1.5 - 0.2, target)
    scores = metrics.compute()
    with torch.no_grad():
        clipped = (prediction * 1.5 - 0.2).clamp(0, 1)
        wanted = published[0](2 * clipped.flatten(0, 1) - 1, 2 * target.flatten(0, 1) - 1)
    wanted = wanted.view(2, 3).mean(0)
    assert scores["lpips"] == pytest.approx(float(wanted.mean()), rel=1e-5)
    assert scores.leads["lpips"] == pytest.approx(wanted.tolist(), rel=1e-5)


def test_grey_is_repeated_and_frames_with_missing_pixels_are_left_out(network):
    prediction, target = (frames[:, :, :1] for frames in _frames())
    grey, colour = (ForecastMetrics(["lpips"], networks={"lpips": network}) for _ in range(2))
    grey.update(prediction, target)
    colour.update(prediction.expand(FRAMES), target.expand(FRAMES))
    assert grey.compute()["lpips"] == pytest.approx(colour.compute()["lpips"], rel=1e-6)
    holed = target.clone()
    holed[:, 1, :, 5, 5] = torch.nan
    part = ForecastMetrics(["lpips"], networks={"lpips": network})
    part.update(prediction, holed)
    leads, all_leads = part.compute().leads["lpips"], grey.compute().leads["lpips"]
    assert leads[1] is None
    assert [leads[0], leads[2]] == pytest.approx([all_leads[0], all_leads[2]])


def test_equal_frames_have_no_distance_down_to_the_smallest_size(network):
    frames = torch.rand(1, 1, 3, SMALLEST_SIDE, SMALLEST_SIDE)
    metrics = ForecastMetrics(["lpips"], networks={"lpips": network})
    metrics.update(frames, frames)
    assert metrics.compute()["lpips"] == 0


def test_a_measure_without_its_network_is_refused():
    with pytest.raises(ValueError, match=r"^networks: found none for 'lpips', expected its network$"):
        ForecastMetrics(["lpips"])
