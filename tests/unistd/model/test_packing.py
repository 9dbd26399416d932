import torch

from unistd.model.packing import groups, join, pack, unpack


def test_tasks_of_equal_length_form_one_group_and_unpack_in_the_order_of_the_caller():
    tokens = {"a": torch.randn(2, 9, 4), "b": torch.randn(1, 5, 4), "c": torch.randn(3, 9, 4)}
    packed, layout = pack(tokens)
    assert packed.shape == (2 * 9 + 1 * 5 + 3 * 9, 4)
    assert layout == ((1, 5), (5, 9))
    short, long = groups(packed, layout)
    assert torch.equal(short, tokens["b"])
    assert torch.equal(long, torch.cat([tokens["a"], tokens["c"]]))
    assert torch.equal(join([short, long]), packed)
    found = unpack(packed, {name: tuple(value.shape[:2]) for name, value in tokens.items()})
    assert list(found) == ["a", "b", "c"]
    assert all(torch.equal(found[name], value) for name, value in tokens.items())


def test_one_task_is_a_view():
    tokens = torch.randn(2, 9, 4)
    packed, layout = pack({"a": tokens})
    assert packed.data_ptr() == groups(packed, layout)[0].data_ptr() == tokens.data_ptr()
