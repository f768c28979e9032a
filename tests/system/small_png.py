"""PNG with a palette: a picture of a page has few colours, so that two thirds of its bytes can go."""

import struct
import zlib
from collections import Counter
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB, PALETTE = 2, 3
MOST_COLOURS = 256
Colour = tuple[int, int, int]


def small(png: bytes) -> bytes:
    """Return a picture of eight-bit RGB with the 256 colours that it uses most; others become the nearest of these."""
    chunks = list(_chunks(png))
    header = chunks[0][1]
    width, height, depth, kind = struct.unpack(">IIBB", header[:10])
    if (depth, kind) != (8, RGB):
        raise ValueError(f"the picture has {depth} bits and is of PNG's kind {kind}; allowed: 8 bits, kind 2 (RGB)")
    data = zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT"))
    rows = [[*zip(row[::3], row[1::3], row[2::3], strict=True)] for row in _unfiltered(data, 3 * width, height)]
    used: Counter[Colour] = Counter(colour for row in rows for colour in row)
    palette = [colour for colour, _ in used.most_common(MOST_COLOURS)]
    places = {colour: _nearest(colour, palette) for colour in used}
    image = b"".join(b"\0" + bytes(places[colour] for colour in row) for row in rows)
    return b"".join(
        [
            SIGNATURE,
            _chunk(b"IHDR", struct.pack(">IIBB3x", width, height, 8, PALETTE)),
            _chunk(b"PLTE", bytes(part for colour in palette for part in colour)),
            _chunk(b"IDAT", zlib.compress(image, 9)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at < len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        yield name, png[at + 8 : at + 8 + length]
        at += 12 + length


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _unfiltered(data: bytes, stride: int, height: int) -> Iterator[bytes]:
    """Yield the rows as they were before each byte was told by its neighbours (PNG, section 9)."""
    above = bytes(stride)
    for start in range(0, height * (stride + 1), stride + 1):
        kind, row = data[start], bytearray(data[start + 1 : start + 1 + stride])
        for n, byte in enumerate(row):
            left, corner = (row[n - 3], above[n - 3]) if n >= 3 else (0, 0)
            row[n] = (byte + _guess(kind, left, above[n], corner)) & 0xFF
        above = bytes(row)
        yield above


def _guess(kind: int, left: int, up: int, corner: int) -> int:
    if kind == 4:
        by_left, by_up, by_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
        if by_left <= by_up and by_left <= by_corner:
            return left
        return up if by_up <= by_corner else corner
    return (0, left, up, (left + up) // 2)[kind]


def _nearest(colour: Colour, palette: list[Colour]) -> int:
    def distance(place: int) -> int:
        return sum((a - b) ** 2 for a, b in zip(colour, palette[place], strict=True))

    return min(range(len(palette)), key=distance)
