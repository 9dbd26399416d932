import pytest
import torch

from unistd.model.position import sinusoidal_positions


def test_products_depend_on_the_displacement_alone():
    height, width = 5, 7
    positions = sinusoidal_positions(height, width, 32).double()
    assert positions.shape == (height * width, 32)
    grid = positions.unflatten(0, (height, width))
    products = torch.einsum("yxc,vuc->yxvu", grid, grid)
    shifted = products[1:, 1:, 1:, 1:]
    torch.testing.assert_close(shifted, products[:-1, :-1, :-1, :-1], atol=1e-5, rtol=0)  # sums of 32 float32 values


def test_every_place_has_its_own_and_rows_differ_from_columns():
    positions = sinusoidal_positions(16, 16, 16)
    distance = torch.cdist(positions, positions) + torch.eye(256)
    assert distance.min() > 0.1
    assert not torch.allclose(positions[1], positions[16])  # one to the right, one down


def test_channels_must_split_in_four():
    with pytest.raises(ValueError, match=r"^channels: expected a multiple of 4, found 30$"):
        sinusoidal_positions(4, 4, 30)
