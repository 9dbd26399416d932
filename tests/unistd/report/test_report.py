"""The report: one page that needs nothing else, with every task, curve, rank and gate in it."""

import base64
import io
import re
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from unistd import TASKS
from unistd.report.adapters import gate_groups, rank_groups
from unistd.report.charts import PAGE_COLOURS, learning_curves, rank_curves
from unistd.report.examples import _spread
from unistd.report.pictures import GAP, error_picture, frame_picture, save_gif, strip
from unistd.training.run import open_run


@pytest.fixture(scope="module")
def page(finished_run):
    return (finished_run / "report.html").read_text()


def decode(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_page_is_self_contained(page):
    outside = [link for link in re.findall(r'(?:src|href)="([^"]*)"', page) if not link.startswith(("data:", "#"))]
    assert not outside
    assert not re.findall(r"url\((?!#)|@import", page)
    assert "<script" not in page


def test_page_names_every_task_and_inlines_its_strips(page):
    for task in ("taxibj", "kth", "enso"):
        assert TASKS[task].spec.title in page
        for alt in ("input frames of", "true frames of", "forecast frames of", "error of the forecast of"):
            assert f'alt="{alt} {task}"' in page
    pictures = [decode(uri) for uri in re.findall(r'data:image/png;base64,[^"]+', page)]
    assert len(pictures) == 3 * 5
    assert pictures[0].size == (2 * 8 + GAP, 8)


def test_charts_take_their_colours_from_the_page(page):
    assert page.count("<svg") == 2 + 3, "training, ranks, and the lead times of each task"
    assert not [colour for colour in PAGE_COLOURS if colour in page]
    for colour in PAGE_COLOURS.values():
        assert re.search(re.escape(colour.removeprefix("var(").removesuffix(")")) + r":", page), (
            f"{colour} is undefined"
        )


def test_ids_of_the_charts_do_not_clash(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    charts = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in re.findall(r"<svg.*?</svg>", page, re.S)]
    assert ids
    both = set().union(*(one & other for one, other in combinations(charts, 2)))
    assert not {name for name in both if f"url(#{name})" in page or f'href="#{name}"' in page}


def test_charts_of_an_empty_log():
    assert "<svg" in learning_curves([{"step": 0, "baselines": {"kth": 0.1}}], 10)
    assert "<svg" in rank_curves([])


def test_ranks_by_projection(finished_run):
    _, _, model = open_run(finished_run)
    groups = {group.projection: group.rows for group in rank_groups(model)}
    assert {name: len(rows) for name, rows in groups.items()} == {
        "query": 2, "key": 2, "value": 2, "output": 2, "temporal": 2
    }  # fmt: skip
    layer = model.ramoe_layers()["trunk.blocks.0.attention.qkv"]
    assert [row[0] for row in groups["value"]] == layer.rank[2].tolist()
    assert sum(sum(row) for rows in groups.values() for row in rows) == 25


def test_gates_are_shown_against_an_even_share():
    layers = {
        "trunk.blocks.0.attention.qkv": torch.tensor([[0.5, 0.25, 0.25], [1 / 3] * 3, [0.0, 0.0, 1.0]]),
        "trunk.blocks.0.attention.proj": torch.tensor([[0.75, 0.25]]),
        "trunk.blocks.0.temporal.up": torch.tensor([[0.5, 0.5]]),
    }
    groups = {group.projection: group.rows["kth"] for group in gate_groups({"kth": layers})}
    assert groups["query"] == [[1.5, 0.75, 0.75]]
    assert groups["key"][0] == pytest.approx([1, 1, 1])
    assert groups["value"] == [[0, 0, 3]]
    assert groups["output"] == [[1.5, 0.5]]
    assert groups["temporal"] == [[1, 1]]


@pytest.mark.parametrize("task", ["taxibj", "bair", "kth", "enso"])
def test_frames_become_pictures(task):
    spec = TASKS[task].spec
    frame = np.linspace(0, 1, spec.channels * 6, dtype=np.float32).reshape(spec.channels, 2, 3)
    picture = frame_picture(frame, spec)
    assert picture.shape == (2, 3, 3)
    assert picture.dtype == np.uint8
    if spec.channels == 3:
        np.testing.assert_array_equal(picture, np.rint(255 * frame).transpose(1, 2, 0))
    else:
        brightness = picture.astype(int).sum(-1).flatten()
        assert (np.diff(brightness) > 0).all()
    np.testing.assert_array_equal(frame_picture(frame * 0 + 7, spec), frame_picture(frame * 0 + 1, spec))


def test_false_colour_spans_the_limits():
    spec = TASKS["enso"].spec
    frame = np.linspace(0.4, 0.6, 6, dtype=np.float32).reshape(1, 2, 3)
    stretched = frame_picture(frame, spec, (float(frame.min()), float(frame.max())))
    np.testing.assert_array_equal(stretched, frame_picture((frame - 0.4) / 0.2, spec))


def test_error_is_black_where_there_is_none():
    picture = error_picture(np.array([[[0.0, -0.5, 0.25]]]), largest=0.5)
    assert picture[0, 0].max() < 5
    assert picture[0, 1].min() > 180, "the largest error is the brightest, whatever its sign"


def test_strip_keeps_pixels_and_order():
    red, blue = np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    image = decode(strip([red, blue]))
    assert image.size == (3 + GAP + 3, 2)
    assert image.getpixel((0, 0)) == (255, 0, 0, 255)
    assert image.getpixel((3, 0))[3] == 0
    assert image.getpixel((7, 1)) == (0, 0, 255, 255)


def test_shown_frames_are_spread_and_end_with_the_last():
    assert _spread(10, 5) == [1, 3, 5, 7, 9]
    assert _spread(3, 5) == [0, 1, 2]
    assert _spread(9, 3) == [2, 5, 8]


def test_gif_plays_all_frames(tmp_path):
    spec = TASKS["kth"].spec.replace(height=16, width=16)
    save_gif(tmp_path / "a.gif", np.random.default_rng(0).random((4, 1, 16, 16)), spec)
    with Image.open(tmp_path / "a.gif") as animation:
        assert (animation.n_frames, animation.size) == (4, (256, 256))
