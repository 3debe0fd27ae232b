"""The drawings of the report as inline SVG; texts are escaped, and colours come from the page's style."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup
from PIL import Image

from lean3r.geometry.overhead import Grid, highest

PLAN = 640.0, 430.0  # of the drawing, in its own pixels
MARGIN = 26.0
LABELLED = 60  # views that are numbered in a drawing
BLACK_OR_WHITE = 0.179  # luminance of a background on which both are equally legible
IN_CELLS = 18  # views up to which the cells of a matrix hold numbers
WARM = np.array([(247, 251, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107)], float)


def svg(width: float, height: float, label: str, parts: Iterable[str], kind: str = "") -> Markup:
    """A drawing with a text for those who do not see it."""
    head = Markup('<svg class="chart {}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">')
    return head.format(kind, width, height, label) + Markup("").join(parts) + Markup("</svg>")


def element(name: str, content: str = "", **attributes: object) -> Markup:
    """An element; `_` of an attribute's name is `-`, and numbers have at most two decimals."""
    pairs = (Markup(' {}="{}"').format(k.rstrip("_").replace("_", "-"), _short(v)) for k, v in attributes.items())
    opened = Markup("<{}{}>").format(Markup(name), Markup("").join(pairs))
    return opened + content + Markup("</{}>").format(Markup(name))


def bars(values: Sequence[float | None], names: Sequence[str], label: str, unit: str, kinds: Sequence[str]) -> Markup:
    """One bar a view, with the median as a line; None leaves a gap. `kinds` are the classes of the bars."""
    known = np.array([value for value in values if value is not None])
    top = float(known.max()) if len(known) and known.max() > 0 else 1.0
    width, height, left = 640.0, 150.0, 58.0
    step = (width - left - 6) / max(len(values), 1)
    parts = _scale(top, left, width, height - 22, 8.0, unit)
    for number, (value, name, kind) in enumerate(zip(values, names, kinds, strict=True)):
        x = left + number * step
        if value is not None:
            tall = (height - 30) * value / top
            said = element("title", Markup("{}: {:.3g} {}").format(name, value, unit))
            bar = {"x": x + 0.1 * step, "y": height - 22 - tall, "width": 0.8 * step, "height": max(tall, 0.5)}
            parts.append(element("rect", said, class_=f"bar {kind}", **bar))
        if len(values) <= LABELLED or number % 10 == 0:
            place = {"x": x + step / 2, "y": height - 8, "text_anchor": "middle"}
            parts.append(element("text", str(number + 1), class_="tick", **place))
    if len(known):
        y = height - 22 - (height - 30) * float(np.median(known)) / top
        parts.append(element("line", class_="median", x1=left, x2=width - 6, y1=y, y2=y))
    return svg(width, height, label, parts)


def curve(values: Sequence[float | None], low: str, high: str, label: str, unit: str) -> Markup:
    """Points of one series from left (`low`) to right (`high`), joined by a line; None leaves a gap."""
    known = [value for value in values if value is not None]
    top = max(known, default=1.0) or 1.0
    width, height, left = 640.0, 170.0, 58.0
    step = (width - left - 20) / max(len(values) - 1, 1)
    places = [
        (left + 8 + number * step, height - 24 - (height - 34) * value / top)
        for number, value in enumerate(values)
        if value is not None
    ]
    parts = _scale(top, left, width, height - 24, 10.0, unit)
    parts.append(element("polyline", class_="curve", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places)))
    parts += [element("circle", class_="dot", cx=x, cy=y, r=3.2) for x, y in places]
    parts.append(element("text", low, class_="tick", x=left, y=height - 7))
    parts.append(element("text", high, class_="tick", x=width - 8, y=height - 7, text_anchor="end"))
    return svg(width, height, label, parts)


def matrix(values: np.ndarray, labels: Sequence[str], label: str) -> Markup:
    """Shares [V, V] in 0..1, NaN for none, as shades of blue; the numbers themselves where there is room."""
    count = len(values)
    side = 470.0 if count > IN_CELLS else max(170.0, 30.0 * count)
    step, left = side / count, 34.0
    shown = np.nan_to_num(values).clip(0, 1)
    shades = _shades(shown, np.isfinite(values))
    is_dark = luminance(shades[..., :3]) < BLACK_OR_WHITE
    parts = [picture(shades, left, left, side, side)]
    parts.append(element("rect", class_="frame", x=left, y=left, width=side, height=side))
    skip = max(1, -(-count // 30))
    for number in range(0, count, skip):
        middle = left + (number + 0.5) * step
        parts.append(element("text", labels[number], class_="tick", x=middle, y=left - 6, text_anchor="middle"))
        parts.append(element("text", labels[number], class_="tick", x=left - 6, y=middle + 3, text_anchor="end"))
    for row, col in np.ndindex(values.shape) if count <= IN_CELLS else ():
        if row != col and np.isfinite(values[row, col]):
            shade = "on-dark" if is_dark[row, col] else "on-light"
            place = {"x": left + (col + 0.5) * step, "y": left + (row + 0.5) * step + 3, "text_anchor": "middle"}
            parts.append(element("text", f"{100 * shown[row, col]:.0f}", class_=f"tick {shade}", **place))
    return svg(left + side + 4, left + side + 4, label, parts, "square")


def plan(
    cameras: np.ndarray,
    ahead: np.ndarray,
    kinds: Sequence[str],
    names: Sequence[str],
    ground: tuple[np.ndarray, np.ndarray] | None,
    unit: str,
    label: str,
    *,
    offsets: np.ndarray | None = None,
) -> Markup:
    """The cameras from above: places [S, 2] and gazes [S, 2] (east, north), with the cloud under them.

    `ground` is xyz [P, 3] (east, north, height) and rgb [P, 3] uint8. `kinds` are the classes of the marks. With
    `offsets` [S, 2], NaN for none, lines lead from each camera to where it was measured to be.
    """
    frame = _Frame(cameras, ground)
    parts = [] if ground is None else [frame.ground(*ground)]
    marks = frame.places(cameras)
    size = float(np.clip(150 / np.sqrt(max(len(cameras), 1)) / 5, 4, 9))
    for number, ((x, y), gaze, kind) in enumerate(zip(marks, ahead * [1, -1], kinds, strict=True)):
        said = element("title", Markup("{}: {}").format(number + 1, names[number]))
        length = float(np.linalg.norm(gaze))
        if length > 0.2:
            along = gaze / length
            side = np.array([-along[1], along[0]])
            corners = [(x, y), *((x, y) + size * 2.4 * along + s * size * side for s in (1, -1))]
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
            parts.append(element("polygon", said, class_=f"gaze {kind}", points=points))
        parts.append(element("circle", said, class_=f"camera {kind}", cx=x, cy=y, r=0.55 * size))
        if offsets is not None and np.isfinite(offsets[number]).all():
            x2, y2 = frame.places(cameras[number] + offsets[number])
            parts.append(element("line", class_="offset", x1=x, y1=y, x2=x2, y2=y2))
            parts.append(element("circle", class_="target", cx=x2, cy=y2, r=0.7 * size))
        if len(cameras) <= LABELLED:
            parts.append(element("text", str(number + 1), class_="number", x=x + 0.8 * size, y=y - 0.8 * size))
    parts.append(frame.ruler(unit))
    return svg(*PLAN, label, parts)


def heat(xyz: np.ndarray, values: np.ndarray, most: float, unit: str, label: str) -> Markup:
    """Values [P] of places [P, 3] (east, north, height) from above: the mean of each cell, as shades of blue."""
    frame = _Frame(xyz[:, :2], None)
    grid = frame.grid(150)
    at = grid.cells(xyz[:, 0], xyz[:, 1])
    total, count = (
        np.bincount(at[at >= 0], weight, grid.rows * grid.cols).reshape(grid.rows, grid.cols)
        for weight in (values[at >= 0].astype(float), None)
    )
    shades = _shades((total / np.maximum(count, 1) / most).clip(0, 1), count > 0)
    parts = [frame.image(shades, grid), frame.ruler(unit)]
    return svg(*PLAN, label, parts)


def picture(rgba: np.ndarray, x: float, y: float, width: float, height: float) -> Markup:
    """Pixels [H, W, 4] uint8 at a place of a drawing, without smoothing."""
    stored = io.BytesIO()
    Image.fromarray(rgba, "RGBA").save(stored, "PNG", optimize=True)
    data = "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode()
    place = {"x": x, "y": y, "width": width, "height": height, "preserveAspectRatio": "none"}
    return element("image", class_="pixels", href=data, **place)


class _Frame:
    """From east and north to the pixels of a plan: the cameras and the middle nine tenths of the ground fill it."""

    def __init__(self, cameras: np.ndarray, ground: tuple[np.ndarray, np.ndarray] | None) -> None:
        shown = cameras
        if ground is not None and len(ground[0]):
            near = np.percentile(ground[0][:, :2], [4, 96], axis=0)
            shown = np.concatenate([cameras, near])
        low, high = (shown.min(axis=0), shown.max(axis=0)) if len(shown) else (np.zeros(2), np.ones(2))
        self.middle = (low + high) / 2
        span = np.maximum(high - low, 1e-9 + 1e-3 * float((high - low).max(initial=0)))
        self.scale = float(((np.array(PLAN) - 2 * MARGIN) / span).min())

    def places(self, at: np.ndarray) -> np.ndarray:
        """Pixels [..., 2] of places [..., 2]."""
        return (np.asarray(at) - self.middle) * self.scale * [1, -1] + np.array(PLAN) / 2

    def grid(self, cols: int) -> Grid:
        cell = PLAN[0] / self.scale / cols
        west, north = self.middle + np.array([-1, 1]) * np.array(PLAN) / 2 / self.scale
        return Grid(float(west), float(north), cell, max(1, round(cols * PLAN[1] / PLAN[0])), cols)

    def image(self, rgba: np.ndarray, grid: Grid) -> Markup:
        return picture(rgba, 0, 0, PLAN[0], grid.rows * grid.cell * self.scale)

    def ground(self, xyz: np.ndarray, rgb: np.ndarray) -> Markup:
        """The cloud from above, paler than the cameras on it."""
        grid = self.grid(400)
        top = highest(grid, *xyz.T)
        pixels = np.zeros((grid.rows, grid.cols, 4), np.uint8)
        pixels[..., :3] = np.where((top >= 0)[..., None], rgb[top] if len(rgb) else 0, 0)
        pixels[..., 3] = np.where(top >= 0, 150, 0)
        return self.image(pixels, grid)

    def ruler(self, unit: str) -> Markup:
        """A bar of a round length."""
        wanted = 0.22 * PLAN[0] / self.scale
        power = 10.0 ** np.floor(np.log10(wanted))
        length = power * max(factor for factor in (1, 2, 5) if factor == 1 or factor * power <= wanted)
        x, y = 14.0, PLAN[1] - 12
        line = element("path", class_="ruler", d=f"M{x:g} {y - 5:g}v5h{length * self.scale:.1f}v-5")
        return line + element("text", f"{length:g} {unit}", class_="tick", x=x + 5, y=y - 5)


def _scale(top: float, left: float, right: float, bottom: float, above: float, unit: str) -> list[Markup]:
    """Lines and numbers of a vertical axis from 0 to `top`."""
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = bottom - (bottom - above) * share
        parts.append(element("line", class_="rule", x1=left, x2=right - 6, y1=y, y2=y))
        parts.append(
            element("text", f"{top * share:.2g} {unit}", class_="tick", x=left - 5, y=y + 3, text_anchor="end")
        )
    return parts


def _shades(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """RGBA uint8 of values in 0..1, transparent where not known."""
    at = values * (len(WARM) - 1)
    low = np.floor(at).astype(int).clip(0, len(WARM) - 2)
    rgb = WARM[low] + (at - low)[..., None] * (WARM[low + 1] - WARM[low])
    return np.concatenate([rgb, np.where(known, 255, 0)[..., None]], axis=-1).round().astype(np.uint8)


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Relative luminance [...] of sRGB bytes [..., 3], as WCAG 2 defines it."""
    share = rgb / 255
    light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return light @ [0.2126, 0.7152, 0.0722]


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float | np.floating) else value
