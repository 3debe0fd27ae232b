"""Decoding, colour, orientation, size rule and the exactness of the pixel transform, on generated pictures."""

from __future__ import annotations

import io
import logging
import math
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from reading import load_views

from lean3r.errors import InputError, UsageError
from lean3r.inputs.decoding import TURNS
from lean3r.inputs.views import Picture, assemble, decode_picture, network_size
from lean3r.types import Source

SIZE: dict[str, Any] = {"resolution": 240, "patch": 16}
SIZE_OF = partial(network_size, **SIZE)
ORIENTATION, EXIF_IFD, FOCAL_35MM, EXIF_WIDTH, EXIF_HEIGHT = 0x0112, 0x8769, 0xA405, 0xA002, 0xA003


def encode(image: Image.Image, kind: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def decode(file: io.BytesIO) -> np.ndarray:
    return decode_picture(file, "x", SIZE_OF).pixels


def dot(width: int, height: int, x: float, y: float, sigma: float) -> Image.Image:
    """A bright Gaussian on black, centred at (x, y) with the top-left pixel centre at 0.5."""
    rows, cols = np.mgrid[:height, :width] + 0.5
    light = np.exp(-((cols - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return Image.fromarray((255 * light).round().astype(np.uint8)).convert("RGB")


def centre_of_light(pixels: np.ndarray) -> tuple[float, float]:
    light = pixels.astype(float).sum(-1)
    rows, cols = np.mgrid[: light.shape[0], : light.shape[1]] + 0.5
    return (cols * light).sum() / light.sum(), (rows * light).sum() / light.sum()


@settings(max_examples=150, deadline=None)
@given(st.integers(16, 9000), st.integers(16, 9000), st.sampled_from([(240, 16), (224, 14), (192, 16), (518, 14)]))
def test_network_size_keeps_area_and_crops_under_a_patch(width: int, height: int, size: tuple[int, int]) -> None:
    resolution, patch = size
    if max(width, height) > 4 * min(width, height):
        return
    columns, rows = network_size(width, height, resolution, patch)
    assert columns % patch == rows % patch == 0
    assert abs(columns * rows / resolution**2 - 1) <= 0.08
    scale = min(width / columns, height / rows)
    assert max(width / scale - columns, height / scale - rows) / 2 < patch
    assert network_size(height, width, resolution, patch) == (rows, columns)


def test_network_size_of_common_shapes() -> None:
    assert network_size(4000, 3000, **SIZE) == (272, 208)
    assert network_size(1080, 1920, **SIZE) == (176, 320)
    assert network_size(500, 500, **SIZE) == (240, 240)
    assert min(network_size(100, 400, **SIZE)) >= 3 * 16
    with pytest.raises(UsageError, match="at least 48"):
        network_size(100, 100, 40, 16)


# The last one is decoded at half size, with a part of a pixel left over on both sides.
@pytest.mark.parametrize(("kind", "size"), [("PNG", (1003, 701)), ("JPEG", (643, 1199)), ("JPEG", (1999, 1333))])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_pixel_transform_maps_a_dot_back(size: tuple[int, int], orientation: int, kind: str) -> None:
    width, height = size
    x, y = 0.27 * width, 0.66 * height
    upright = dot(width, height, x, y, sigma=max(size) / 60)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    undo = {6: 8, 8: 6}.get(orientation, orientation)
    stored = upright.transpose(TURNS[undo]) if orientation > 1 else upright
    picture = decode_picture(encode(stored, kind, exif=exif), "dot", SIZE_OF)

    assert (picture.source.width, picture.source.height) == size
    assert picture.pixels.shape[1::-1] == network_size(width, height, **SIZE)
    sx, sy, ox, oy = picture.source.original_from_network
    assert sx == sy
    network_x, network_y = centre_of_light(picture.pixels)
    assert abs((x - ox) / sx - network_x) < 0.05
    assert abs((y - oy) / sy - network_y) < 0.05


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "AVIF", "PNG"])
def test_orientation_is_applied_once_in_every_format(kind: str) -> None:
    upright = dot(400, 300, 90, 210, sigma=12)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture = decode_picture(encode(upright.transpose(TURNS[8]), kind, exif=exif), "x", SIZE_OF)
    assert (picture.source.width, picture.source.height) == (400, 300)
    sx, _, ox, oy = picture.source.original_from_network
    x, y = centre_of_light(np.where(picture.pixels > 40, picture.pixels, 0))
    assert math.dist((sx * x + ox, sx * y + oy), (90, 210)) < 1.0


def test_heif_turns_by_its_own_boxes_and_not_by_exif() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture = decode_picture(encode(dot(400, 300, 90, 210, sigma=12), "HEIF", exif=exif), "x", SIZE_OF)
    assert (picture.source.width, picture.source.height) == (400, 300)


def test_focal_length_from_exif() -> None:
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[FOCAL_35MM] = 26
    picture = decode_picture(encode(Image.new("RGB", (400, 300)), "JPEG", exif=exif), "x", SIZE_OF)
    assert picture.source.focal_px == pytest.approx(26 / math.hypot(36, 24) * 500)
    assert decode_picture(encode(Image.new("RGB", (400, 300)), "JPEG"), "x", SIZE_OF).source.focal_px is None


@pytest.mark.parametrize(
    ("size", "is_told"),
    [((400, 300), True), ((300, 400), True), ((133, 100), True), ((400, 260), False), ((300, 300), False)],
)
def test_the_focal_length_of_a_cropped_picture_is_not_that_of_exif(size: tuple[int, int], is_told: bool) -> None:
    """Of two photos cropped to three fifths it was a third off, and said to be right to 5 %."""
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD).update({FOCAL_35MM: 26, EXIF_WIDTH: 4000, EXIF_HEIGHT: 3000})
    picture = decode_picture(encode(Image.new("RGB", size), "JPEG", exif=exif), "x", SIZE_OF)
    assert (picture.source.focal_px is not None) == is_told


@pytest.mark.parametrize("side", [(4000, 1), 0, "wide"])
def test_an_odd_size_in_exif_leaves_the_rest_of_it(side: Any) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif.get_ifd(EXIF_IFD).update({FOCAL_35MM: 26, EXIF_WIDTH: side, EXIF_HEIGHT: 3000})
    picture = decode_picture(encode(Image.new("RGB", (400, 300)), "JPEG", exif=exif), "x", SIZE_OF)
    assert picture.source.focal_px is not None and picture.source.width == 300


def test_transparency_is_white_and_hides_its_colour() -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 0] = 255
    pixels[:, 32:, 3] = 255
    for mode in ("RGBA", "LA", "PA"):
        source = Image.fromarray(pixels).convert("LA" if mode == "LA" else "RGBA")
        result = decode(encode(source, "TIFF" if mode == "PA" else "PNG"))
        assert (result[:, :100] >= 254).all(), mode
        assert (result[:, 140:] == (76 if mode == "LA" else (255, 0, 0))).all(), mode
    palette = Image.fromarray(pixels[..., :3]).quantize(4)
    assert (decode(encode(palette, transparency=palette.getpixel((0, 0)))) == 255).all()


@pytest.mark.parametrize(("mode", "expected"), [("L", 90), ("RGB", (200, 100, 50)), ("P", (200, 100, 50)), ("1", 255)])
def test_flat_colours_survive(mode: str, expected: int | tuple[int, ...]) -> None:
    flat = Image.new("RGB", (50, 40), expected) if mode == "P" else Image.new(mode, (50, 40), expected)
    assert (decode(encode(flat.quantize(8) if mode == "P" else flat)) == expected).all()


def test_cmyk_is_not_inverted() -> None:
    red = Image.new("CMYK", (64, 48), (0, 255, 255, 0))
    assert np.abs(decode(encode(red, "JPEG", quality=95)).astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_divided_by_257(kind: str) -> None:
    for value in (0, 128, 257 * 100, 32768, 65535):
        flat = Image.fromarray(np.full((40, 60), value, np.uint16))
        assert (decode(encode(flat, kind)) == round(value / 257)).all()


def test_unusable_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="floating-point"):
        decode(encode(Image.fromarray(np.full((40, 60), np.nan, np.float32)), "TIFF"))
    with pytest.raises(InputError, match="32-bit"):
        decode(encode(Image.fromarray(np.full((40, 60), 70000, np.int32)), "TIFF"))
    with pytest.raises(InputError, match="too small: 15x200"):
        decode(encode(Image.new("RGB", (15, 200))))
    with pytest.raises(InputError, match="at most 4:1"):
        decode(encode(Image.new("RGB", (401, 100))))
    with pytest.raises(InputError, match="empty"):
        decode(io.BytesIO())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "AVIF", "HEIF"])
def test_truncated_files_are_named_damaged(kind: str) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    whole = encode(Image.fromarray(noise), kind).getvalue()
    with pytest.raises(InputError, match=r"damaged|not an image"):
        decode(io.BytesIO(whole[: len(whole) // 2]))


def test_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 20_000, 10_001, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InputError, match=r"bomb.png: 20000x10001 is 200 megapixels, over the limit of 200"):
        load_views(tmp_path, **SIZE)
    assert before == Image.MAX_IMAGE_PIXELS


def test_first_page_is_used_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    pages = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue")]
    with caplog.at_level(logging.WARNING, "lean3r"):
        assert (decode(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])) == (255, 0, 0)).all()
    assert "only the first is used" in caplog.text


def test_one_size_has_no_mask(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), (255, 0, 51)).save(tmp_path / "one.png")
    seen = []
    loaded = load_views(str(tmp_path / "one.png"), **SIZE, progress=lambda *p: seen.append(p))
    assert loaded.views.mask is None and loaded.views.images.dtype == torch.float32
    assert torch.allclose(loaded.views.images[0, 0, :, 5, 5], torch.tensor([1.0, 0.0, 0.2]))
    assert loaded.views.sources[0].name == "one.png" and loaded.skipped == () and seen == [(1, 1)]


def test_mixed_sizes_are_padded_by_whole_patches_and_mapped_back(tmp_path: Path) -> None:
    sizes = [(900, 600), (601, 907), (500, 500), (1000, 253)]
    for i, (w, h) in enumerate(sizes):
        dot(w, h, 0.4 * w, 0.3 * h, sigma=max(w, h) / 50).save(tmp_path / f"{i}.png")
    views = load_views(tmp_path, **SIZE).views
    assert views.mask is not None
    height, width = views.images.shape[-2:]
    for i, (w, h) in enumerate(sizes):
        columns, rows = network_size(w, h, **SIZE)
        mask = views.mask[0, i]
        assert mask.sum() == columns * rows
        patches = mask.reshape(height // 16, 16, width // 16, 16).float().mean((1, 3))
        assert ((patches == 0) | (patches == 1)).all()
        left, top = int(mask.any(0).float().argmax()), int(mask.any(1).float().argmax())
        assert 0 <= width - columns - 2 * left <= 16 and 0 <= height - rows - 2 * top <= 16
        assert (views.images[0, i][:, ~mask] == 0.5).all()
        pixels = (views.images[0, i] * mask).permute(1, 2, 0).numpy()
        x, y = centre_of_light(pixels)
        sx, sy, ox, oy = views.sources[i].original_from_network
        assert math.dist((sx * x + ox, sy * y + oy), (0.4 * w, 0.3 * h)) < 0.1 * sx


def test_intrinsics_travel_with_the_transform() -> None:
    source = Source("x", 900, 600, (2.0, 2.0, 10.0, -6.0))
    small = Picture(source, np.zeros((32, 48, 3), np.uint8))
    large = Picture(Source("y", 90, 60), np.zeros((64, 96, 3), np.uint8))
    moved = assemble([small, large], 16).sources[0]
    assert moved.original_from_network == (2.0, 2.0, 10.0 - 2 * 16, -6.0 - 2 * 16)
    centre = moved.original_intrinsics(np.array([[50.0, 0, 16 + 24], [0, 50, 16 + 16], [0, 0, 1]]))
    assert centre.tolist() == [[100, 0, 58], [0, 100, 26], [0, 0, 1]]


def test_photographs_are_resized_as_pillow_would() -> None:
    rng = np.random.default_rng(1)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((1600, 1200), 3)
    reference = np.asarray(ImageOps.fit(smooth, (272, 208), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(decode(encode(smooth, "JPEG", quality=98)).astype(int) - reference).mean() < 1.5
