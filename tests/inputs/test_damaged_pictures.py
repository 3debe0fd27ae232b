"""A damaged picture is never used, whatever its format, and no picture costs gigabytes."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reading import load_views

from lean3r.errors import InputError
from lean3r.inputs import decoding
from lean3r.inputs.pictures import Pictures
from lean3r.inputs.upright import decode_whole, upright
from lean3r.inputs.views import decode_picture, network_size

FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 90},
    "MPO": {},
    "WEBP": {},
    "AVIF": {},
    "TIFF": {"compression": "tiff_lzw"},
    "GIF": {},
    "BMP": {},
    "PPM": {},
    "JPEG2000": {},
    "HEIF": {},
}
ORIENTATION = 0x0112
SIZE_OF = partial(network_size, resolution=240, patch=16)


def picture(width: int = 320, height: int = 240) -> Image.Image:
    """Ramps and grain: something that compresses to many bytes everywhere."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, width * height).reshape(height, width, 1)
    return Image.fromarray((ramp + rng.integers(0, 55, (height, width, 3))).astype(np.uint8))


def encode(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    if kind == "HEIF":
        from pillow_heif import register_heif_opener

        register_heif_opener()
    file = io.BytesIO()
    (image or picture()).save(file, kind, **{**FORMATS.get(kind, {}), **options})
    return file.getvalue()


def is_refused(content: bytes) -> bool:
    """Whether both ways of reading refuse it."""
    ways = (
        lambda file: decode_picture(file, "x", SIZE_OF),
        lambda file: decode_whole(file, "x", 10**9),
    )
    count = 0
    for way in ways:
        try:
            way(io.BytesIO(content))
        except InputError:
            count += 1
    assert count in (0, len(ways))
    return count > 0


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_off_anywhere(kind: str) -> None:
    content = encode(kind)
    assert not is_refused(content)
    assert all(is_refused(content[: int(len(content) * share)]) for share in (0.4, 0.6, 0.8, 0.95))


# Of the other formats only some damage can be told: they keep no check sum, and any bytes are a picture.
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 8}])
def test_damage_in_the_middle_of_a_jpeg(options: dict[str, Any]) -> None:
    content, rng = encode("JPEG", **options), random.Random(0)
    spots = [rng.randrange(len(content) // 4, len(content) * 3 // 4) for _ in range(20)]
    zeroed = [content[:at] + bytes(2000) + content[at + 2000 :] for at in spots]
    removed = [content[:at] + content[at + 700 :] for at in spots]
    told = [is_refused(damaged) for damaged in zeroed + removed]
    assert sum(told) >= 0.8 * len(told)


def test_damage_anywhere_in_a_png() -> None:
    content, rng = encode("PNG"), random.Random(0)
    spots = [rng.randrange(100, len(content) - 100) for _ in range(20)]
    assert all(is_refused(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]) for at in spots)
    assert all(is_refused(content[:at] + bytes(4096) + content[at + 4096 :]) for at in spots)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_data_after_an_intact_jpeg_does_not_matter(kind: str) -> None:
    assert not is_refused(encode(kind) + b"\xff\xd8\xff\xe0" + random.Random(0).randbytes(3000))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("size", [(16, 16), (17, 33), (639, 479)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("progressive", [False, True])
def test_intact_jpegs_of_every_kind_are_used(
    mode: str, size: tuple[int, int], subsampling: str, progressive: bool
) -> None:
    options = {} if mode != "RGB" else {"subsampling": subsampling}
    image = picture(*size).convert(mode)
    assert not is_refused(encode("JPEG", image, progressive=progressive, **options))


def test_odd_exif_of_an_intact_jpeg_is_not_damage() -> None:
    assert not is_refused(encode("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(range(200))))


def test_the_others_are_used(tmp_path: Path) -> None:
    content = encode("PNG")
    (tmp_path / "sound.png").write_bytes(content)
    (tmp_path / "damaged.png").write_bytes(content[:50_000] + bytes(9000) + content[59_000:])
    loaded = load_views(tmp_path, resolution=240, patch=16)
    assert [source.name for source in loaded.views.sources] == ["sound.png"]
    assert [name for name, _ in loaded.skipped] == ["damaged.png"]
    assert dict(Pictures([tmp_path]).read(["sound.png", "damaged.png"], 320)).keys() == {"sound.png"}


# EXIF that comes after the pixels, says impossible things, or cannot be written again.
ODD_EXIF = (
    b"Exif\0\0" + b"\xff" * 40,
    b"Exif\0\0II*\0\x08\0\0\0\x02\0"
    + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    + b"\x00\x9c\x07\0\xff\xff\xff\x7f\0\0\0\0",
    b"Exif\0\0II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x02\0\x04\0\0\0abc\0" + bytes(4),
    b"Exif\0\0II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x05\0\x01\0\0\0\x08\0\0\0" + bytes(4),
)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", ODD_EXIF)
def test_odd_exif_stops_nothing(kind: str, exif: bytes, tmp_path: Path) -> None:
    (tmp_path / "odd.jpg").write_bytes(encode(kind, exif=exif))
    originals = Pictures([tmp_path])
    seen = load_views(tmp_path, resolution=240, patch=16).views.sources[0]
    assert not list(originals.exif(["odd.jpg"], 0x8825))
    (written,) = originals.write(["odd.jpg"], tmp_path / "out")
    with Image.open(written) as image:
        assert image.size == (seen.width, seen.height)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "MPO"])
def test_written_pictures_are_turned_as_they_were_seen(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encode(kind, exif=exif)
    seen = np.asarray(decode_whole(io.BytesIO(content), "x", 10**9), np.int16)
    with Image.open(io.BytesIO(upright(content))) as image:
        assert image.getexif().get(ORIENTATION, 1) == 1
        written = np.asarray(image.convert("RGB"), np.int16)
    assert written.shape == seen.shape and np.abs(written - seen).mean() < 8


@pytest.mark.slow
def test_large_pictures_take_bounded_memory(tmp_path: Path) -> None:
    """A palette of one transparent colour, 0.1 MB as a file, 190 megapixels when decoded."""
    side = 13_800
    Image.new("P", (side, side)).save(tmp_path / "palette.png", transparency=0, compress_level=1)
    script = (
        "import resource, sys, lean3r.inputs.upright as u, lean3r.inputs.views as i\n"
        "from lean3r.inputs.decoding import own_pixel_limit\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = used()\n"
        "with own_pixel_limit(), open(sys.argv[1], 'rb') as f:\n"
        "    p = i.decode_picture(f, 'x', lambda width, height: (240, 240))\n"
        "    f.seek(0)\n"
        "    w = u.decode_whole(f, 'x', 1600)\n"
        "assert p.pixels.min() == 255 and w.size == (1725, 1725), (p.pixels.min(), w.size)\n"
        "print(used() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "palette.png")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 600


def test_a_large_picture_looks_as_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 255, (30, 40, 4), dtype=np.uint8)).resize(
        (1203, 901), Image.Resampling.BICUBIC
    )
    for mode in ("RGBA", "P", "I;16", "1"):
        if mode == "I;16":
            image = Image.fromarray(np.asarray(coarse.convert("L")).astype(np.uint16) * 257)
        else:
            image = coarse.convert("RGB").convert(mode) if mode in ("P", "1") else coarse.convert(mode)
        content = encode("PNG", image)
        usual = decode_picture(io.BytesIO(content), "x", SIZE_OF).pixels.astype(int)
        whole = np.asarray(decode_whole(io.BytesIO(content), "x", 10**9), int)
        monkeypatch.setattr(decoding, "LARGE_PIXELS", 1000)
        banded = decode_picture(io.BytesIO(content), "x", SIZE_OF).pixels.astype(int)
        assert np.abs(banded - usual).mean() < (6 if mode == "1" else 3), mode  # dots of a bilevel picture are finer
        assert np.array_equal(np.asarray(decode_whole(io.BytesIO(content), "x", 10**9), int), whole), mode
        monkeypatch.undo()


@pytest.mark.parametrize("kind", ["WEBP", "JPEG2000"])
def test_formats_whose_decoders_hold_many_copies_are_bounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoding.MAX_PIXELS_OF, kind, 50_000)
    with pytest.raises(InputError, match=f"megapixels, over the limit of 0 of {kind}"):
        decode_picture(io.BytesIO(encode(kind)), "x", SIZE_OF)


@pytest.mark.parametrize("tags", [{254: 1}, {50706: b"\x01\x04\0\0"}], ids=["NEF, ARW", "DNG"])
def test_the_preview_of_a_raw_file_does_not_pass_for_the_photo(tags: dict[int, Any], tmp_path: Path) -> None:
    file = tmp_path / "IMG_1.nef"
    file.write_bytes(encode("TIFF", picture(160, 120), tiffinfo=tags))
    with pytest.raises(InputError, match=r"IMG_1.nef: a camera's raw file.*save it as JPEG"):
        load_views([file], resolution=240, patch=16)
    assert is_refused(file.read_bytes())
    whole = encode("TIFF", picture(160, 120), tiffinfo={254: 0})
    assert not is_refused(whole)


def test_what_is_no_picture_is_not_called_one_that_cannot_be_turned(caplog: pytest.LogCaptureFixture) -> None:
    assert upright(b"some words") == b"some words" and not caplog.records
