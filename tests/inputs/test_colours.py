"""Films whose colours are not those of sRGB."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from lean3r.stream.frames import Source

COLOURS = np.array(
    [(255, 255, 255), (128, 128, 128), (30, 30, 30), (200, 120, 60), (40, 90, 160), (90, 140, 60)], np.uint8
)
WIDTH, HEIGHT, WHITE_NITS = 32, 64, 203  # ITU-R BT.2408: what is white in sRGB
BT2020_OF_BT709 = np.array([(0.6274, 0.3293, 0.0433), (0.0691, 0.9195, 0.0114), (0.0164, 0.0880, 0.8956)])
WEIGHTS = np.array([0.2627, 0.6780, 0.0593])  # of luminance in BT.2020


def hlg(nits: np.ndarray) -> np.ndarray:
    """The signal of hybrid log-gamma for a screen of 1,000 nits (ITU-R BT.2100)."""
    light = nits / 1000
    scene = light * np.maximum(light @ WEIGHTS, 1e-6)[..., None] ** (1 / 1.2 - 1)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


def pq(nits: np.ndarray) -> np.ndarray:
    """The signal of SMPTE ST 2084."""
    power = (nits / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def film(path: Path, trc: int) -> Path:
    """Three frames of six patches, 10 bits a colour, as phones store it: BT.2020, limited range."""
    srgb = COLOURS / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    red, green, blue = ({18: hlg, 16: pq}[trc](linear @ BT2020_OF_BT709.T * WHITE_NITS)).T
    luma = np.stack([red, green, blue], -1) @ WEIGHTS
    planes = (luma * 876 + 64, (blue - luma) / 1.8814 * 896 + 512, (red - luma) / 1.4746 * 896 + 512)
    frame = av.VideoFrame(WIDTH * len(COLOURS), HEIGHT, "yuv420p10le")
    for plane, values, part in zip(frame.planes, planes, (1, 2, 2), strict=True):
        rows = np.zeros((HEIGHT // part, plane.line_size // 2), np.uint16)
        rows[:, : frame.width // part] = np.repeat(np.round(values), WIDTH // part)
        plane.update(rows.tobytes())
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p10le"
        stream.codec_context.color_trc, stream.codec_context.color_range = trc, 1
        stream.codec_context.colorspace = stream.codec_context.color_primaries = 9
        for number in range(3):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("trc", [18, 16], ids=["hlg", "pq"])
def test_a_film_of_high_dynamic_range_has_the_colours_of_photos(trc: int, tmp_path: Path) -> None:
    """Read as a usual film, white is at 189 and 146 of 255, and colours are pale."""
    path = film(tmp_path / "phone.mp4", trc)
    with av.open(path) as container:
        for source in (path, container.decode(video=0)):
            pixels = np.asarray(next(iter(Source(source))).image)
            assert np.abs(pixels[HEIGHT // 2, WIDTH // 2 :: WIDTH].astype(int) - COLOURS).max() < 12
