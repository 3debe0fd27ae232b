"""Pictures and films of all directions."""

from __future__ import annotations

import io
import math
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lean3r.errors import InputError
from lean3r.inputs.decoding import EXIF, exif
from lean3r.inputs.listing import Still, find_pictures
from lean3r.inputs.panorama import HEADINGS_DEG, is_panorama
from lean3r.inputs.pictures import Pictures
from lean3r.stream.frames import Source

GPS = 0x8825
WAVES = np.random.default_rng(0).normal(0, 5, (3, 3, 3))  # colour, wave, direction


def seen(directions: np.ndarray) -> np.ndarray:
    """What lies in directions [..., 3] (right, down, ahead; of length 1): colours [..., 3] uint8."""
    waves = np.sin(np.einsum("cwd,...d->...cw", WAVES, directions)).sum(-1)
    return np.clip(128 + 40 * waves, 0, 255).astype(np.uint8)


def panorama(width: int = 512) -> Image.Image:
    right, down = np.meshgrid(
        (np.arange(width) + 0.5) / width * 2 * np.pi - np.pi,
        (np.arange(width // 2) + 0.5) / width * 2 * np.pi - np.pi / 2,
    )
    rays = np.stack([np.cos(down) * np.sin(right), np.sin(down), np.cos(down) * np.cos(right)], -1)
    return Image.fromarray(seen(rays))


def test_a_panorama_is_cut_into_what_a_usual_lens_sees(tmp_path: Path) -> None:
    notes = Image.Exif()
    notes[GPS] = {1: "N", 2: (47.0, 1.0, 2.0)}
    notes[EXIF] = {0x9003: "2026:05:01 10:00:00", 0x927C: b"points into the file"}
    panorama().save(tmp_path / "R001.jpg", quality=97, subsampling=0, exif=notes)
    Image.fromarray(np.asarray(panorama())[:, :200]).save(tmp_path / "usual.png")
    pictures = find_pictures([tmp_path]).items
    names = [f"R001_{heading:03d}deg.jpg" for heading in HEADINGS_DEG]
    assert [item.name for item in pictures] == [*names, "usual.png"]
    for heading, still in zip(np.deg2rad(HEADINGS_DEG), pictures, strict=False):
        assert isinstance(still, Still) and not still.is_loose
        with Image.open(io.BytesIO(still.open().read())) as cut:
            _, focal_mm = exif(cut, still.name)
            assert focal_mm and cut.getexif().get_ifd(GPS)[2] == (47.0, 1.0, 2.0)
            assert cut.getexif().get_ifd(EXIF).keys() >= {0x9003} and 0x927C not in cut.getexif().get_ifd(EXIF)
            pixels = np.asarray(cut)
        height, width = pixels.shape[:2]
        focal = focal_mm / math.hypot(36, 24) * math.hypot(width, height)
        assert math.degrees(2 * math.atan(width / 2 / focal)) == pytest.approx(91, abs=0.5)
        x, y = np.meshgrid((np.arange(width) + 0.5 - width / 2) / focal, (np.arange(height) + 0.5 - height / 2) / focal)
        rays = np.stack([x * np.cos(heading) + np.sin(heading), y, np.cos(heading) - x * np.sin(heading)], -1)
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        assert np.abs(pixels.astype(int) - seen(rays)).mean() < 2.5


def test_usual_pictures_twice_as_wide_as_high_are_none() -> None:
    whole = panorama()
    assert is_panorama(whole) and is_panorama(whole.rotate(180))
    assert not is_panorama(whole.crop((0, 64, 384, 256)))  # neither edges nor poles
    assert not is_panorama(whole.crop((0, 64, 512, 192)))  # edges, but no poles
    assert not is_panorama(Image.new("RGB", (512, 256), "white"))
    studio = Image.new("RGB", (512, 256), "white")
    studio.paste(whole.crop((0, 100, 128, 164)), (180, 100))
    assert not is_panorama(studio)


def test_pictures_in_memory_stay_what_they_are() -> None:
    assert len(Pictures([np.asarray(panorama()), np.asarray(panorama(256))])) == 2


def test_a_film_of_all_directions_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "sphere.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 512, 256, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_image(panorama())))
        container.mux(stream.encode())
    with pytest.raises(InputError, match=r"a film of 360 degrees.*ffmpeg -i sphere.mp4"):
        find_pictures([path])


def test_a_stream_of_panoramas_is_refused_with_what_to_do(tmp_path: Path) -> None:
    panorama().save(tmp_path / "R001.png")
    with pytest.raises(InputError, match=r"holds panoramas.*reconstruct"):
        next(iter(Source(tmp_path)))
