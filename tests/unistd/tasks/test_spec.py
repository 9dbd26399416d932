"""TaskSpec: shapes, tokens and checks."""

import pytest

from unistd.tasks import TASKS, get_task

# C, H, W, Tin, Tout and tokens of the published protocol (PredBench).
PROTOCOL = {
    "taxibj": (2, 32, 32, 4, 4, 256),
    "traffic4cast": (8, 128, 112, 9, 3, 224),
    "moving_mnist": (1, 64, 64, 10, 10, 256),
    "bair": (3, 64, 64, 2, 10, 256),
    "human36m": (3, 256, 256, 4, 4, 256),
    "kth": (1, 128, 128, 10, 10, 256),
    "cityscapes": (3, 128, 128, 10, 10, 256),
    "kitti": (3, 128, 160, 10, 10, 320),
    "sevir": (1, 384, 384, 13, 12, 576),
    "enso": (1, 24, 48, 12, 14, 288),
}


def test_the_ten_tasks_keep_the_protocol_and_its_order():
    assert list(TASKS) == list(PROTOCOL)
    for name, (c, h, w, t_in, t_out, tokens) in PROTOCOL.items():
        spec = TASKS[name].spec
        assert spec.name == name
        assert spec.input_shape == (t_in, c, h, w)
        assert spec.target_shape == (t_out, c, h, w)
        assert spec.tokens == tokens == spec.grid[0] * spec.grid[1]


def test_enso_normalises_by_the_extremes_of_the_data_set():
    spec = TASKS["enso"].spec
    assert spec.offset == -16.549121856689453
    assert spec.scale + spec.offset == pytest.approx(10.198975563049316, abs=1e-12)


def test_replace_gives_a_checked_copy():
    spec = get_task("kitti").spec
    small = spec.replace(height=32, width=40, patch=4)
    assert small.grid == (8, 10)
    assert spec.height == 128
    assert small.replace(width=42).grid == (8, 11), "the last token lies half outside"
    with pytest.raises(ValueError, match="height is 32, expected at least patch 33"):
        small.replace(patch=33)
    with pytest.raises(ValueError, match="unknown field 'heigth', did you mean 'height'"):
        spec.replace(heigth=64)


@pytest.mark.parametrize("value", [0, -4, 2.0, True, "8"])
def test_sizes_are_positive_whole_numbers(value):
    with pytest.raises(ValueError, match=f"frames_in is {value!r}, expected a positive whole number"):
        get_task("bair").spec.replace(frames_in=value)


def test_scale_is_positive():
    with pytest.raises(ValueError, match=r"task bair: scale is 0\.0, expected a positive number"):
        get_task("bair").spec.replace(scale=0.0)


def test_missing_values_are_a_choice_of_the_task():
    spec = get_task("enso").spec
    assert not spec.missing
    assert spec.replace(missing=True).missing


@pytest.mark.parametrize("value", [1, "yes", None])
def test_missing_is_true_or_false(value):
    with pytest.raises(ValueError, match=f"task enso: missing is {value!r}, expected true or false"):
        get_task("enso").spec.replace(missing=value)
