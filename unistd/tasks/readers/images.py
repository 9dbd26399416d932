"""Pictures of single frames, as files: png, jpg, pgm and ppm, tif; also with .gz behind."""

from __future__ import annotations

import gzip
import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from unistd.tasks.files import DataFileError, in_words, open_file

FORMATS = ("PNG", "JPEG", "PPM", "TIFF")
MOST_TOGETHER = 1 << 28  # bytes of the frames of a sample, as they are stored
_MOST_PIXELS = 40_000_000  # four times those of any sensor that the tasks know
_MOST_BYTES = 1 << 28
_SUBFILE, _COPY_OR_MASK = 254, 1 | 4  # TIFF 6.0, NewSubfileType
_AS_RGB = ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX")


def read_image(path: Path) -> np.ndarray:
    """One picture, (C, h, w): uint8, or what deeper ones hold (uint16, int32, float32); palettes as their colours.

    Raises:
        DataFileError: not such a picture, truncated, or of more than 40 million pixels.
    """
    return decode_image(path, _content(path))


def decode_image(name: object, content: bytes) -> np.ndarray:
    """The same of the bytes of a file; `name` is what messages call it."""
    try:
        with warnings.catch_warnings(), Image.open(BytesIO(content), formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > _MOST_PIXELS:
                raise DataFileError(
                    f"{name}: {image.width} x {image.height} pixels, expected at most {_MOST_PIXELS} together"
                )
            _check_single(image)
            if image.mode == "1":
                image = image.convert("L")
            elif image.mode in _AS_RGB:
                image = image.convert("RGB")
            pixels = np.asarray(image)
            _check_end(image.format, content)
    except DataFileError:
        raise
    except Exception as error:  # whatever a decoder makes of damaged content
        reason = in_words(" ".join(str(error).split()) or type(error).__name__, 120)
        raise DataFileError(f"{name}: not a readable picture ({reason})") from None
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)


def _check_single(image: Image.Image) -> None:
    """Raises for a file of several pictures, one of which alone would be read; smaller copies of the first, and its
    mask, are none."""
    with suppress(EOFError):
        image.seek(1)
        if not getattr(image, "tag_v2", {}).get(_SUBFILE, 0) & _COPY_OR_MASK:
            raise ValueError("it holds several pictures, expected one a file")
    image.seek(0)


def _check_end(form: str | None, content: bytes) -> None:
    """Raises for what Pillow shows although a piece is missing or damaged behind the last pixel that it needs."""
    if form == "PNG":
        with Image.open(BytesIO(content), formats=("PNG",)) as image:
            image.verify()  # the CRC of every chunk, up to the last
        if b"\0\0\0\0IEND\xaeB`\x82" not in content:
            raise ValueError("it has no end")
    elif form == "JPEG" and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        raise ValueError("it has no end")


def read_images(paths: Sequence[Path], channels: int, rows: np.ndarray) -> np.ndarray:
    """Pictures of one size, (n, channels, h, w): the first channels of each; for `Clip.read`, bound to its paths.

    Raises DataFileError, also where one has fewer channels, or another size or type than the first.
    """
    result = None
    for number, row in enumerate(rows):
        picture = read_image(paths[row])
        if len(picture) < channels:
            raise DataFileError(f"{paths[row]}: {len(picture)} channels, expected {channels}")
        if result is None:
            size = channels * picture[0].nbytes
            if len(rows) * size > MOST_TOGETHER:
                raise DataFileError(
                    f"{paths[row]}: {len(rows)} frames of {size} bytes, expected at most {MOST_TOGETHER} together"
                )
            result = np.empty((len(rows), channels, *picture.shape[1:]), picture.dtype)
        if picture.shape[1:] != result.shape[2:] or picture.dtype != result.dtype:
            raise DataFileError(
                f"{paths[row]}: {picture.dtype} {in_words(picture.shape[1:])}, expected {result.dtype} "
                f"{in_words(result.shape[2:])} as in {paths[rows[0]].name}"
            )
        result[number] = picture[:channels]
    return result


def _content(path: Path) -> bytes:
    with open_file(path) as file:
        try:
            stream = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            content = stream.read(_MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            reason = in_words(" ".join(str(error).split()) or type(error).__name__)
            raise DataFileError(f"{path}: cannot be read ({reason})") from None
    if len(content) > _MOST_BYTES:
        raise DataFileError(f"{path}: more than {_MOST_BYTES} bytes, expected a picture of one frame")
    return content
