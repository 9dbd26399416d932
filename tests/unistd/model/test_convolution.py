import pytest
import torch
from support.tiny import spec
from torch import nn

from unistd.model.convolution import Decoder, Encoder, stage_strides


@pytest.mark.parametrize(
    ("patch", "strides"),
    [(1, [1, 1]), (2, [1, 2]), (4, [2, 2]), (5, [1, 5]), (6, [2, 3]), (8, [2, 2, 2]), (16, [2, 2, 2, 2])],
)
def test_any_patch_reaches_the_token_grid_and_back(patch, strides):
    assert stage_strides(patch) == strides
    task = spec("any", 3, 2 * patch, 3 * patch, 5, 7, patch)
    frames = torch.rand(2, *task.input_shape)
    for skips in (False, True):
        tokens, skipped = Encoder(task, 32, hidden=8, skips=skips)(frames)
        assert tokens.shape == (2, 6, 32)
        assert len(skipped) == 2 * skips
        decoder = Decoder(task, 32, hidden=8, residual=False, skips=skips)
        assert decoder(tokens, frames[:, -1], skipped).shape == (2, *task.target_shape)


@pytest.mark.parametrize(("height", "width"), [(9, 8), (8, 11), (13, 15), (7, 5)])
def test_sides_that_the_patch_does_not_divide_are_padded_and_cropped_back(height, width):
    task = spec("odd", 1, height, width, 3, 2, 4)
    rows, columns = task.grid
    assert (rows, columns) == (-(-height // 4), -(-width // 4))
    encoder, decoder = Encoder(task, 32, hidden=8), Decoder(task, 32, hidden=8, residual=True)
    frames = torch.rand(2, *task.input_shape)
    tokens, _ = encoder(frames)
    assert tokens.shape == (2, rows * columns, 32)
    assert torch.equal(decoder(tokens, frames[:, -1]), frames[:, -1:].expand(-1, 2, -1, -1, -1))
    whole = spec("whole", 1, 4 * rows, 4 * columns, 3, 2, 4)
    padded = frames[..., [min(row, height - 1) for row in range(4 * rows)], :]
    padded = padded[..., [min(column, width - 1) for column in range(4 * columns)]]
    larger = Encoder(whole, 32, hidden=8)
    larger.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(larger(padded)[0], tokens)


def test_a_token_sees_its_own_patch_and_all_frames_of_its_own_sample():
    task = spec("any", 1, 32, 32, 3, 3, 8)
    encoder = Encoder(task, 32, hidden=8)
    frames = torch.rand(2, *task.input_shape, requires_grad=True)
    tokens = encoder(frames)[0].unflatten(1, task.grid)
    (gradient,) = torch.autograd.grad(tokens[0, 1, 2].sum(), frames)
    seen = gradient.abs().amax(dim=(2, 3, 4))  # (sample, frame)
    assert (seen[0] > 0).all()
    assert (seen[1] == 0).all()
    # GroupNorm looks at the whole frame, so all patches count a little, but none as much as the token's own
    per_patch = gradient[0, :, 0].abs().sum(0).unflatten(1, (4, 8)).unflatten(0, (4, 8)).sum(dim=(1, 3))
    assert per_patch.argmax() == 1 * 4 + 2


def test_with_residual_the_start_is_to_repeat_the_last_frame():
    task = spec("any", 2, 8, 8, 3, 4, 4)
    frames = torch.rand(2, *task.input_shape)
    tokens = torch.randn(2, 4, 32)
    forecast = Decoder(task, 32, hidden=8, residual=True)(tokens, frames[:, -1])
    assert torch.equal(forecast, frames[:, -1:].expand_as(forecast))
    assert not torch.equal(Decoder(task, 32, hidden=8, residual=False)(tokens, frames[:, -1]), forecast)


def test_skips_carry_what_the_tokens_do_not():
    task = spec("odd", 2, 9, 13, 3, 4, 4)
    encoder, decoder = Encoder(task, 32, hidden=8, skips=True), Decoder(task, 32, hidden=8, residual=True, skips=True)
    frames = torch.rand(2, *task.input_shape, requires_grad=True)
    tokens, skipped = encoder(frames)
    assert [tuple(value.shape) for value in skipped] == [(2, 6, 12, 16), (2, 24, 6, 8)]
    still = decoder(tokens, frames[:, -1], skipped)
    assert torch.equal(still, frames[:, -1:].expand_as(still))  # at the start it repeats the last frame, too
    nn.init.normal_(decoder.readout.weight)
    without = decoder(tokens, frames[:, -1], tuple(map(torch.zeros_like, skipped)))
    for place in range(2):
        other = [torch.zeros_like(value) if i != place else value for i, value in enumerate(skipped)]
        assert not torch.allclose(decoder(tokens, frames[:, -1], other), without)
    alone = decoder(tokens.detach(), frames.detach()[:, -1], skipped)
    (gradient,) = torch.autograd.grad(alone[0].square().sum(), frames)
    assert (gradient[0].abs().amax((1, 2, 3)) > 0).all()
    assert (gradient[1] == 0).all()
