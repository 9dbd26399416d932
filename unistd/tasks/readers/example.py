"""`tf.train.Example` messages of TensorFlow, without TensorFlow: which bytes belong to which key.

Source: example.proto and feature.proto of TensorFlow; the wire format of Protocol Buffers.
    Example {1: Features}, Features {1: entries of a map}, entry {1: key, 2: Feature}, Feature {1: BytesList},
    BytesList {1: bytes, repeated}
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def bytes_features(message: bytes) -> dict[str, list[memoryview]]:
    """Key -> its byte strings, views of `message`; for features of numbers an empty list.

    Raises ValueError where it is no such message.
    """
    features: dict[str, list[memoryview]] = {}
    for part in _parts(memoryview(message), 1):
        for entry in _parts(part, 1):
            keys = [bytes(key).decode("utf-8") for key in _parts(entry, 1)]
            if len(keys) != 1:
                raise ValueError(f"a feature of {len(keys)} keys")
            lists = (texts for feature in _parts(entry, 2) for texts in _parts(feature, 1))
            features[keys[0]] = [text for texts in lists for text in _parts(texts, 1)]
    return features


def _parts(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The fields of that number in a message, all of which must be strings or messages."""
    place, end = 0, len(message)
    while place < end:
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            length, place = _varint(message, place)
            if length > end - place:
                raise ValueError(f"a field of {length} bytes where {end - place} are left")
            if number == wanted:
                yield message[place : place + length]
            place += length
        elif kind in (_FIXED64, _FIXED32) and number != wanted:
            place += 8 if kind == _FIXED64 else 4
        elif kind == _VARINT and number != wanted:
            _, place = _varint(message, place)
        else:
            raise ValueError(f"field {number} of wire type {kind}")
    if place != end:
        raise ValueError("a field that is cut")


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("a number that is cut")
        byte, place = message[place], place + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number of more than 10 bytes")
