"""What pictures alone tell: nothing, noise, the same again, sky; and walls that are no sky."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lean3r.geometry.content import emptiness, repeats, sky

HEIGHT, WIDTH = 208, 272
ALL = np.ones((HEIGHT, WIDTH), bool)


def textured(seed: int = 0) -> np.ndarray:
    """A picture with structure at all sizes, as photographs have."""
    rng, total = np.random.default_rng(seed), np.zeros((HEIGHT, WIDTH, 3))
    for cells in (4, 8, 16, 32, 64):
        part = Image.fromarray(rng.integers(0, 256, (cells * 3 // 4, cells, 3), np.uint8))
        total += np.asarray(part.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), float) / 5
    return total.round().astype(np.uint8)


def empty(kind: str) -> np.ndarray:
    rng, ramp = np.random.default_rng(0), np.linspace(60, 220, WIDTH)[None, :, None]
    shape = (HEIGHT, WIDTH, 3)
    made = {
        "black": np.zeros(shape),
        "dark with sensor noise": np.clip(rng.normal(2, 1, shape), 0, 255),
        "white": np.full(shape, 255),
        "gradient": np.broadcast_to(ramp, shape),
        "noise": rng.integers(0, 256, shape),
        "weak noise": rng.normal(128, 12, shape),
    }
    return made[kind].astype(np.uint8)


@pytest.mark.parametrize("kind", ["black", "dark with sensor noise", "white", "gradient", "noise", "weak noise"])
@pytest.mark.parametrize("scale", [1, 2])
def test_pictures_without_content_are_recognised(kind: str, scale: int) -> None:
    image = np.kron(empty(kind), np.ones((scale, scale, 1), np.uint8)) if "noise" not in kind else empty(kind)
    expected = "noise" if kind in ("noise", "weak noise") else "no-content"
    assert emptiness(image, np.ones(image.shape[:2], bool)) == expected


def test_pictures_with_content_are_not(data_dir) -> None:
    assert emptiness(textured(), ALL) is None
    for path in (data_dir / "scenes").glob("*/images/*"):
        with Image.open(path) as image:
            small = np.asarray(image.convert("RGB").resize((WIDTH, HEIGHT)))
        assert emptiness(small, ALL) is None, path


def test_only_selected_pixels_are_judged() -> None:
    image = np.where(np.arange(WIDTH)[None, :, None] < 100, textured(), 0).astype(np.uint8)
    right = ALL & (np.arange(WIDTH) >= 104)
    assert emptiness(image, ALL) is None and emptiness(image, right) == "no-content"


def test_repeated_pictures_are_recognised() -> None:
    one, other = textured(1), textured(2)
    near = np.clip(one + np.random.default_rng(0).normal(0, 1.5, one.shape), 0, 255).astype(np.uint8)
    assert repeats(np.stack([one, other, near, other, one])).tolist() == [0, 1, 0, 1, 0]


def landscape(sky_rgb: tuple[float, float, float], texture: float) -> np.ndarray:
    """Upper 80 rows of one smooth colour, with some texture, above something structured and darker."""
    rng = np.random.default_rng(3)
    image = textured() * 0.6
    rows = np.linspace(0, 20, 80)[:, None, None]
    image[:80] = np.asarray(sky_rgb) - rows + rng.normal(0, texture, (80, WIDTH, 1))
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("rgb", [(235, 240, 250), (150, 190, 245), (90, 140, 220)])
@pytest.mark.parametrize("scale", [1, 2])
def test_bright_and_blue_skies_are_found_at_any_size(rgb, scale: int) -> None:
    image = np.kron(landscape(rgb, 0.5), np.ones((scale, scale, 1), np.uint8))
    found = sky(image, np.ones(image.shape[:2], bool))
    assert found[: 78 * scale].mean() > 0.98 and found[82 * scale :].mean() < 0.005


@pytest.mark.parametrize("rgb, texture", [((235, 235, 230), 3.0), ((200, 170, 120), 0.5), ((110, 110, 115), 0.5)])
def test_textured_warm_and_dark_walls_are_not_sky(rgb, texture: float) -> None:
    assert not sky(landscape(rgb, texture), ALL).any()


def test_sky_starts_at_the_upper_border() -> None:
    image = landscape((235, 240, 250), 0.5)[::-1].copy()
    assert not sky(image, ALL).any()
