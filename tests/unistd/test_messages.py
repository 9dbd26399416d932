"""What is shown of what somebody wrote: all of it where it is short, a bounded part on one line where it is not."""

import pytest

from unistd.messages import cut, shown


@pytest.mark.parametrize("width", [20, 80, 81])
def test_cut_is_as_wide_as_it_may_be(width):
    for length in (0, 1, width - 1, width, width + 1, 5000):
        assert len(cut("x" * length, width)) == min(length, width)
    assert cut("a\nb", width) == "a b"
    assert cut("a" * 99 + "b" * 99, width).strip("ab") == "..."


def test_shown_is_a_repr():
    assert shown("a\nb") == r"'a\nb'"
    assert shown(True) == "True"
    for value in ("x" * 9999, ["x" * 9999] * 99, {"x" * 9999: [[[[[[[[["x"]]]]]]]]]}, 10**4000, list(range(9999))):
        assert 10 < len(shown(value)) <= 80
        assert "\n" not in shown(value)
