"""FVD: the distance against torchmetrics' and by hand, the features by shape and padding."""

import pytest
import torch
from torch import nn

from unistd.metrics import ForecastMetrics
from unistd.metrics.fvd import Gaussian, frechet_distance
from unistd.metrics.i3d import CLASSES, I3D, LEAST_FRAMES, SIDE


def gaussian(features: torch.Tensor, parts: int = 1) -> Gaussian:
    whole = Gaussian()
    for part in features.chunk(parts):
        one = Gaussian()
        one.add(part)
        whole.merge(one)
    return whole


def test_moments_are_those_of_all_features_far_from_zero():
    features = torch.randn(50, 7, dtype=torch.float64) + 1e6
    mean, covariance = gaussian(features, parts=4).moments()
    torch.testing.assert_close(mean, features.mean(0))
    torch.testing.assert_close(covariance, features.T.cov(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("count", [5, 200], ids=["fewer than features", "many"])
def test_as_torchmetrics(count):
    from torchmetrics.image.fid import _compute_fid

    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(count, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    other = 1.5 * other + 0.3
    wanted = _compute_fid(one.mean(0), one.T.cov(), other.mean(0), other.T.cov())
    assert frechet_distance(gaussian(one), gaussian(other)) == pytest.approx(float(wanted), rel=1e-6)


def test_by_hand():
    """Means 0 and 3, variances 1 and 4: 9 + (1 + 4 - 2 * 2)."""
    one = torch.tensor([[-1.0], [1.0]]) / 2**0.5
    assert frechet_distance(gaussian(one), gaussian(2 * one + 3)) == pytest.approx(10)
    assert frechet_distance(gaussian(one), gaussian(one)) == pytest.approx(0, abs=1e-12)


def test_of_clips_as_of_their_features():
    """A network of two numbers in I3D's place: the mean of the clip, and of its last frame."""

    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, clip):
            assert clip.shape[1:] == (3, 4, SIDE, SIDE)
            return torch.stack([clip.mean((1, 2, 3, 4)), clip[:, :, -1].mean((1, 2, 3))], 1)

    prediction, target = torch.rand(6, 4, 1, 8, 8), torch.rand(6, 4, 1, 8, 8)
    target[5, 2, 0, 3, 3] = torch.nan
    metrics = [ForecastMetrics(["fvd"], networks={"fvd": Means()}) for _ in range(2)]
    metrics[0].update(prediction[:2], target[:2])
    metrics[1].update(prediction[2:], target[2:])
    metrics[0].merge(metrics[1])
    scores = metrics[0].compute()

    def features(clips):
        clips = 2 * clips[:5].double() - 1
        return torch.stack([clips.mean((1, 2, 3, 4)), clips[:, -1].mean((1, 2, 3))], 1)

    wanted = frechet_distance(gaussian(features(prediction)), gaussian(features(target)))
    assert scores["fvd"] == pytest.approx(wanted, rel=1e-3)
    assert scores.leads["fvd"] == []


def test_of_one_clip_it_is_undefined():
    metrics = ForecastMetrics(["fvd"], networks={"fvd": nn.Sequential(nn.Flatten(), nn.LazyLinear(2))})
    metrics.update(torch.rand(1, 2, 3, 8, 8), torch.rand(1, 2, 3, 8, 8))
    assert metrics.compute()["fvd"] is None


def test_i3d_of_the_shortest_clip():
    torch.manual_seed(0)
    network = I3D().eval()
    assert sum(value.numel() for value in network.parameters()) == 12_697_264  # as of published ports
    with torch.no_grad():
        logits = network(torch.rand(1, 3, LEAST_FRAMES, SIDE, SIDE) * 2 - 1)
    assert logits.shape == (1, CLASSES)
    assert logits.isfinite().all()


def test_i3d_pads_as_tensorflow_does():
    """Of a size that strides divide, the odd zero stands at the end: windows begin two pixels before the first."""
    unit = I3D().eval().Conv3d_1a_7x7
    clip = torch.zeros(1, 3, 16, 32, 32)
    clip[:, :, 0, 0, 0] = 1
    with torch.no_grad():
        unit.conv3d.weight.zero_()
        unit.conv3d.weight[0, :, 2, 2, 2] = 1
        found = unit(clip)
    assert found.shape == (1, 64, 8, 16, 16)
    assert found[0, 0].flatten().argmax() == 0
    assert found[0, 0, 0, 0, 0] == pytest.approx(3, rel=1e-2)
