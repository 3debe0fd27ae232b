"""What one window of patches looks at, as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from lean3r.attention.probe import Call, weights
from lean3r.errors import UsageError
from lean3r.types import TokenLayout, Views

SIDE = 4  # patches of a query window, as in the sparse mechanisms
MOST = 0.9
TILE_WIDTH, GAP, CAPTION, COLUMNS, TILES = 360, 10, 20, 4, 12
BACKGROUND, TEXT, OUTLINE = (24, 27, 34), (214, 218, 226), (64, 224, 255)
HEAT = np.array([[10, 10, 24], [96, 20, 90], [214, 62, 60], [250, 164, 58], [255, 246, 190]], dtype=np.float64)


@dataclass(frozen=True)
class Window:
    """Patches [row, row + rows) x [col, col + cols) of one view."""

    row: int
    col: int
    rows: int
    cols: int

    def as_dict(self) -> dict[str, int]:
        """JSON-ready."""
        return dict(vars(self))


@dataclass(frozen=True)
class Shares:
    """heat [S, rows, cols]: the share of the window's attention that each patch gets, mean over heads; by_view its
    sums, special what the special tokens get; tokens_of_most is the number of tokens that hold 90 per cent."""

    heat: np.ndarray
    by_view: list[float]
    special: float
    tokens: int
    tokens_of_most: int


def query_window(layout: TokenLayout, views: Views, view: int, at: tuple[float, float] | None) -> Window:
    """The window that holds a spot, in pixels of the original picture; UsageError when the picture does not."""
    height, width = views.images.shape[-2:]
    source = views.sources[view]
    x, y = at or (source.width / 2, source.height / 2)
    scale_x, scale_y, offset_x, offset_y = source.original_from_network
    col, row = (x - offset_x) / scale_x / width * layout.cols, (y - offset_y) / scale_y / height * layout.rows
    if not (0 <= x < source.width and 0 <= y < source.height and 0 <= col < layout.cols and 0 <= row < layout.rows):
        raise UsageError(f"--at is {x:g} {y:g}; {source.name} is {source.width} x {source.height} pixels.")
    top, left = int(row) // SIDE * SIDE, int(col) // SIDE * SIDE
    return Window(top, left, min(SIDE, layout.rows - top), min(SIDE, layout.cols - left))


def shares(call: Call, window: Window, view: int) -> Shares:
    """Who gets the attention of a window of one view, in the first scene of a batch."""
    layout = call.layout
    order = layout.order()
    place = torch.arange(layout.patches) if order is None else order.argsort()  # row-major -> the layout's order
    grid = place.unflatten(0, (layout.rows, layout.cols))
    members = grid[window.row : window.row + window.rows, window.col : window.col + window.cols].flatten()
    queries = view * layout.tokens + layout.special + members
    if call.projected.key_mask is not None:
        queries = queries[call.projected.key_mask[0].cpu()[queries]]
    if not len(queries):
        raise UsageError("that spot is padding; choose another with --at.")
    found = weights(call, queries.to(call.projected.v.device))[0].float().mean(0).cpu().clamp_min(0)
    found = found / found.sum()
    ranked = found.sort(descending=True).values.cumsum(0)
    by_view = found.unflatten(0, (layout.views, layout.tokens))
    patches = by_view[:, layout.special :][:, place].unflatten(1, (layout.rows, layout.cols))
    return Shares(
        patches.numpy(),
        patches.sum((1, 2)).tolist(),
        float(by_view[:, : layout.special].sum()),
        len(found),
        int((ranked < MOST).sum()) + 1,
    )


def draw(
    views: Views, found: Shares, window: Window, view: int, names: Sequence[str], title: Sequence[str]
) -> Image.Image:
    """The view that looks, its window outlined, then those that get most: bright where they get more. The lines of the
    title are above.

    All tiles share one scale, the square root of the share, up to the highest half per cent of patches.
    """
    pictures = (views.images[0].permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
    height, width = pictures.shape[1:3]
    tile = TILE_WIDTH, max(1, round(TILE_WIDTH * height / width))
    others = [i for i in np.argsort(found.by_view)[::-1].tolist() if i != view]
    shown = [view, *sorted(others[: TILES - 1])]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    above = GAP + CAPTION * len(title)
    size = (GAP + columns * (tile[0] + GAP), above + rows * (tile[1] + CAPTION + GAP) + 2 * CAPTION)
    sheet = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), "\n".join(title), fill=OUTLINE)
    top = max(float(np.quantile(found.heat, 0.995)), 1e-12)
    for place, index in enumerate(shown):
        x = GAP + place % columns * (tile[0] + GAP)
        y = above + place // columns * (tile[1] + CAPTION + GAP)
        sheet.paste(_overlay(pictures[index], found.heat[index] / top, tile), (x, y))
        if index == view:
            step = np.array([tile[0] / found.heat.shape[2], tile[1] / found.heat.shape[1]])
            low = np.array([window.col, window.row]) * step + (x, y)
            high = low + np.array([window.cols, window.rows]) * step
            pen.rectangle((*low.tolist(), *high.tolist()), outline=OUTLINE, width=3)
        label = f"{names[index]}  {100 * found.by_view[index]:.1f} %" + ("  (looks)" if index == view else "")
        pen.text((x, y + tile[1] + 4), label, fill=OUTLINE if index == view else TEXT)
    hidden = len(names) - len(shown)
    note = "brighter: more attention from the outlined patches\n"
    note += f"90 % of the attention is on {found.tokens_of_most:,} of {found.tokens:,} tokens"
    note += f"; {hidden} pictures with less are not shown" if hidden else ""
    pen.text((GAP, size[1] - 2 * CAPTION), note, fill=TEXT)
    return sheet


def _overlay(picture: np.ndarray, heat: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A darkened grey picture under its heat [rows, cols], 1 the brightest; patches keep their edges."""
    level = np.sqrt(np.clip(heat, 0, 1))
    at = level * (len(HEAT) - 1)
    low = np.minimum(at.astype(int), len(HEAT) - 2)
    colour = HEAT[low] + (at - low)[..., None] * (HEAT[low + 1] - HEAT[low])
    colours = Image.fromarray(colour.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    opacity = Image.fromarray((level * 190).round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    base = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS).convert("L").convert("RGB")
    base = base.point(lambda value: value * 0.72)
    return Image.composite(colours, base, opacity)
