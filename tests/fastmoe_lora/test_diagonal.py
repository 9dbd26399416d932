import pytest
import torch

from fastmoe_lora import rank_diagonal


def diagonal_and_gradient(rank: float, **options):
    r = torch.tensor([rank], dtype=torch.float64, requires_grad=True)
    d = rank_diagonal(r, 4, **options)
    slopes = torch.stack([torch.autograd.grad(d[0, k], r, retain_graph=True)[0][0] for k in range(4)])
    return d[0].tolist(), slopes.tolist()


@pytest.mark.parametrize(
    ("rank", "diagonal", "slope"),
    [
        (0.0, [0, 0, 0, 0], [1, 0, 0, 0]),
        (1.25, [1, 0.25, 0, 0], [0, 1, 0, 0]),
        (2.0, [1, 1, 0, 0], [0, 0, 1, 0]),  # right derivative at whole ranks
        (4.0, [1, 1, 1, 1], [0, 0, 0, 1]),  # left derivative at the end
    ],
)
def test_linear_gives_the_gradient_to_the_next_column_alone(rank, diagonal, slope):
    assert diagonal_and_gradient(rank) == (diagonal, slope)


def test_linear_is_the_interpolation_of_two_whole_ranks():
    a, b = torch.randn(4, 5, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    product = (b * rank_diagonal(torch.tensor(2.3, dtype=torch.float64), 4)) @ a
    torch.testing.assert_close(product, 0.7 * b[:, :2] @ a[:2] + 0.3 * b[:, :3] @ a[:3])


def test_as_printed_has_the_weights_swapped():
    assert diagonal_and_gradient(1.25, interpolation="as_printed") == ([1, 0.75, 0, 0], [0, -1, 0, 0])
    assert diagonal_and_gradient(2.0, interpolation="as_printed")[0] == [0, 0, 0, 0]  # off at whole ranks


@pytest.mark.parametrize("window", [1.0, 2.0, 3.0])
def test_sampled_draws_whole_ranks_whose_mean_is_the_linear_form(window):
    rank = torch.full((200_000,), 1.7, dtype=torch.float64, requires_grad=True)
    d = rank_diagonal(rank, 4, "sampled", window)
    assert set(d.unique().tolist()) <= {0.0, 1.0}
    assert (d.diff(dim=-1) <= 0).all()  # leading columns are on
    mean = rank_diagonal(rank, 4, "linear", window)
    # five standard deviations of the mean of 200,000 draws of 0 or 1
    torch.testing.assert_close(d.mean(0), mean[0], rtol=0, atol=5 * 0.5 / 200_000**0.5)
    torch.testing.assert_close(torch.autograd.grad(d.sum(), rank), torch.autograd.grad(mean.sum(), rank))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rank": 0}, "max_rank: got 0"),
        ({"max_rank": 4, "window": 0.0}, "window: got 0.0"),
        ({"max_rank": 4, "interpolation": "cubic"}, "interpolation: got 'cubic'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        rank_diagonal(torch.tensor([1.0]), **options)
