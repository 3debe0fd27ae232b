"""A whole HTML page as notebooks show it."""

from __future__ import annotations

import html
from pathlib import Path

from lean3r.errors import UsageError

LEAST_HEIGHT = 100  # pixels of a frame


class Frame:
    """A whole HTML page that notebooks show in a frame of `height` pixels; it is part of the notebook, so that it also
    shows in pages that are exported from it. Scripts of the page run in the frame only, and see nothing outside."""

    def __init__(self, page: str, height: int = 600) -> None:
        if isinstance(height, bool) or not isinstance(height, int) or height < LEAST_HEIGHT:
            raise UsageError(f"height is {height!r}; expected a whole number of pixels, at least {LEAST_HEIGHT}.")
        self.page, self.height = page, height

    def _repr_html_(self) -> str:
        frame = f'style="width:100%;height:{self.height}px;border:0" sandbox="allow-scripts allow-downloads"'
        return f'<iframe title="Reconstruction" {frame} srcdoc="{html.escape(self.page)}"></iframe>'

    def __repr__(self) -> str:
        return f"Frame(a page of {len(self.page) / 1e6:.1f} MB; notebooks show it, save(path) writes it)"

    def save(self, path: str | Path) -> Path:
        """Write the page to an HTML file, which opens in any browser, and return its path."""
        path = Path(path)
        path.write_text(self.page, encoding="utf-8")
        return path
