"""Single frames as files: what is in them, and files that are no such pictures."""

import gzip
import zlib

import numpy as np
import pytest
from PIL import Image
from support.bad_files import refusal

from unistd.tasks.readers.images import read_image, read_images

GREY = np.random.default_rng(0).integers(0, 256, (6, 8), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)


@pytest.mark.parametrize("name", ["frame.png", "frame.pgm", "frame.tif", "frame.pgm.gz"])
def test_grey_pictures(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(GREY).save(path.with_suffix("") if path.suffix == ".gz" else path)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    assert np.array_equal(read_image(path), GREY[None])


def test_colours_palettes_and_depths(tmp_path):
    path = tmp_path / "frame.png"
    Image.fromarray(COLOUR).save(path)
    assert np.array_equal(read_image(path), COLOUR.transpose(2, 0, 1))
    assert np.array_equal(read_images([path], 1, np.array([0, 0])), np.stack([COLOUR[None, :, :, 0]] * 2))
    Image.fromarray(GREY).convert("P").save(path)
    assert np.array_equal(read_image(path), np.stack([GREY] * 3))
    Image.fromarray(GREY > 100).save(path)
    assert np.array_equal(read_image(path), np.where(GREY > 100, 255, 0)[None])
    Image.fromarray(GREY.astype(np.uint16) * 257).save(path)
    assert np.array_equal(read_image(path), GREY[None].astype(np.uint16) * 257)


def test_frames_that_do_not_go_together(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    Image.fromarray(GREY).save(paths[0])
    Image.fromarray(GREY[:4]).save(paths[1])
    assert "expected uint8 (6, 8) as in a.png" in refusal(f"{paths[1]}: ", read_images, paths, 1, np.array([0, 1]))
    assert "1 channels, expected 3" in refusal(f"{paths[0]}: ", read_images, paths, 3, np.array([0]))


def huge_header(content):
    """A PNG that declares 60,000 x 60,000 pixels."""
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:40],
        lambda content: content[: len(content) // 2],
        lambda content: b"GIF89a" + content,
        lambda content: content[:60] + b"\xff" * 30 + content[90:],
        huge_header,
    ],
)
def test_damaged_pictures(tmp_path, damage):
    path = tmp_path / "frame.png"
    Image.fromarray(COLOUR).save(path)
    path.write_bytes(damage(path.read_bytes()))
    refusal(f"{path}: ", read_image, path)


def test_damaged_gzip_and_no_file(tmp_path):
    path = tmp_path / "frame.pgm.gz"
    path.write_bytes(gzip.compress(b"P5 8 6 255 " + GREY.tobytes())[:-9])
    assert "cannot be read" in refusal(f"{path}: ", read_image, path)
    refusal(f"{tmp_path / 'none.png'}: ", read_image, tmp_path / "none.png")
