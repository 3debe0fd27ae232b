"""A picture of the attention of one window of patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from lean3r.attention.shares import Shares, Window
from lean3r.types import Views

TILE_WIDTH, GAP, CAPTION, COLUMNS, TILES = 360, 10, 20, 4, 12
BACKGROUND, TEXT, OUTLINE = (24, 27, 34), (214, 218, 226), (64, 224, 255)
HEAT = np.array([[10, 10, 24], [96, 20, 90], [214, 62, 60], [250, 164, 58], [255, 246, 190]], dtype=np.float64)


def draw(
    views: Views, shares: Shares, window: Window, view: int, names: Sequence[str], title: Sequence[str]
) -> Image.Image:
    """Draw the query view with its window outlined, then the views with most attention; brighter patches have more.

    All tiles share one scale, the square root of the share, up to the highest half per cent of patches.
    """
    pictures = (views.images[0].permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
    height, width = pictures.shape[1:3]
    tile = TILE_WIDTH, max(1, round(TILE_WIDTH * height / width))
    others = [i for i in np.argsort(shares.by_view)[::-1].tolist() if i != view]
    shown = [view, *sorted(others[: TILES - 1])]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    above = GAP + CAPTION * len(title)
    size = (GAP + columns * (tile[0] + GAP), above + rows * (tile[1] + CAPTION + GAP) + 2 * CAPTION)
    sheet = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), "\n".join(title), fill=OUTLINE)
    top = max(float(np.quantile(shares.heat, 0.995)), 1e-12)
    for place, index in enumerate(shown):
        x = GAP + place % columns * (tile[0] + GAP)
        y = above + place // columns * (tile[1] + CAPTION + GAP)
        sheet.paste(_overlay(pictures[index], shares.heat[index] / top, tile), (x, y))
        if index == view:
            step = np.array([tile[0] / shares.heat.shape[2], tile[1] / shares.heat.shape[1]])
            low = np.array([window.col, window.row]) * step + (x, y)
            high = low + np.array([window.cols, window.rows]) * step
            pen.rectangle((*low.tolist(), *high.tolist()), outline=OUTLINE, width=3)
        label = f"{names[index]}  {100 * shares.by_view[index]:.1f} %" + ("  (looks)" if index == view else "")
        pen.text((x, y + tile[1] + 4), label, fill=OUTLINE if index == view else TEXT)
    hidden = len(names) - len(shown)
    note = "brighter: more attention from the outlined patches\n"
    note += f"90 % of the attention is on {shares.tokens_of_most:,} of {shares.tokens:,} tokens"
    note += f"; {hidden} pictures with less are not shown" if hidden else ""
    pen.text((GAP, size[1] - 2 * CAPTION), note, fill=TEXT)
    return sheet


def _overlay(picture: np.ndarray, heat: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A darkened grey picture under its heat [rows, cols] from 0 to 1; patches keep sharp edges."""
    level = np.sqrt(np.clip(heat, 0, 1))
    at = level * (len(HEAT) - 1)
    low = np.minimum(at.astype(int), len(HEAT) - 2)
    colour = HEAT[low] + (at - low)[..., None] * (HEAT[low + 1] - HEAT[low])
    colours = Image.fromarray(colour.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    opacity = Image.fromarray((level * 190).round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    base = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS).convert("L").convert("RGB")
    base = base.point(lambda value: value * 0.72)
    return Image.composite(colours, base, opacity)
