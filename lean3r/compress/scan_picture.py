"""The picture of a sensitivity scan: one column a layer; the signal-to-noise ratio above, Lite3R's score below."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from PIL import Image, ImageDraw

from lean3r.compress.sensitivity import Sensitivity

PLOT, GAP, TEXT_HEIGHT = 240, 12, 16
LEFT = 44  # for the numbers of the axis
BACKGROUND, TEXT, GRID, CHOSEN = (255, 255, 255), (60, 60, 66), (226, 226, 230), (214, 40, 40)
COLOURS = {
    "embedding": (200, 120, 160),
    "encoder": (86, 126, 190),
    "frame": (92, 168, 128),
    "global": (44, 110, 80),
    "camera": (222, 152, 60),
    "head": (146, 112, 178),
    "mechanism": (120, 120, 124),
}
TOP_DB, STEP_DB = 50, 10
NAMED = 8


def draw(layers: Sequence[Sensitivity], left_out: Collection[str], floor_db: float, title: str) -> Image.Image:
    """Draw layers in the order of the network, coloured by role; those to leave out are red, the worst are named."""
    column = max(2, min(14, 1500 // max(1, len(layers))))
    width = max(560, LEFT + column * len(layers) + GAP)
    named = list(left_out)[:NAMED]
    height = GAP + 2 * TEXT_HEIGHT + 2 * (PLOT + 2 * TEXT_HEIGHT + GAP) + TEXT_HEIGHT * (len(named) + 1) + GAP
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), title, fill=TEXT)
    x = GAP
    for part in dict.fromkeys(row.part for row in layers):
        pen.rectangle((x, GAP + TEXT_HEIGHT + 2, x + 9, GAP + TEXT_HEIGHT + 11), fill=COLOURS[part])
        pen.text((x + 13, GAP + TEXT_HEIGHT), part, fill=TEXT)
        x += 26 + 7 * len(part)
    below = GAP + 2 * TEXT_HEIGHT
    losses = [None if row.snr_db is None else row.snr_db / TOP_DB for row in layers]
    marks = [(f"{db}", db / TOP_DB) for db in range(0, TOP_DB + 1, STEP_DB)]
    floor = floor_db / TOP_DB
    below = _plot(pen, layers, losses, marks, left_out, (below, width, column), "output over error, dB", floor)
    most = max((row.score for row in layers), default=1.0) or 1.0
    scores = [row.score / most for row in layers]
    marks = [(f"{most * level / 4:.2f}", level / 4) for level in range(5)]
    below = _plot(pen, layers, scores, marks, left_out, (below, width, column), "Lite3R's score of the weight", None)
    rows = {row.layer: row for row in layers}
    text = f"{len(left_out)} of {len(layers)} layers keep less than {floor_db:g} dB"
    pen.text((GAP, below), text + (": leave them out" if left_out else ""), fill=TEXT)
    for place, name in enumerate(named, start=1):
        pen.text((GAP, below + place * TEXT_HEIGHT), f"{rows[name].snr_db:6.1f} dB  {name}", fill=CHOSEN)
    return sheet


def _plot(
    pen: ImageDraw.ImageDraw,
    layers: Sequence[Sensitivity],
    levels: Sequence[float | None],
    marks: Sequence[tuple[str, float]],
    left_out: Collection[str],
    place: tuple[int, int, int],
    title: str,
    floor: float | None,
) -> int:
    """Draw bars of height 0 to 1, one a layer; return where the next plot begins."""
    top, width, column = place
    pen.text((GAP, top), title, fill=TEXT)
    top += 2 * TEXT_HEIGHT
    bottom = top + PLOT
    for text, level in marks:
        y = bottom - round(level * PLOT)
        pen.line((LEFT, y, width - GAP, y), fill=GRID)
        pen.text((GAP, y - 6), text, fill=TEXT)
    for index, (row, level) in enumerate(zip(layers, levels, strict=True)):
        if level is not None:
            x = LEFT + index * column
            colour = CHOSEN if row.layer in left_out else COLOURS[row.part]
            gap = 1 if column > 3 else 0
            pen.rectangle(
                (x, bottom - round(max(0.0, min(1.0, level)) * PLOT), x + column - 1 - gap, bottom), fill=colour
            )
    if floor is not None:
        y = bottom - round(max(0.0, min(1.0, floor)) * PLOT)
        pen.line((LEFT, y, width - GAP, y), fill=CHOSEN)
    return bottom + GAP
