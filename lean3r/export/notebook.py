"""The HTML that a notebook shows for a scene: the preview picture and the main figures."""

from __future__ import annotations

import base64
import html
import io

from PIL import Image

from lean3r import showing
from lean3r.export import preview
from lean3r.types import Reconstruction

_LEFT = 'style="text-align:left"'
SIZE = 960, 420  # pixels: some 100 kB


def page(scene: Reconstruction) -> str:
    """A piece of HTML without links; texts of the user are escaped."""
    picture = Image.fromarray(preview.draw(scene.of_certain())).resize(SIZE, Image.Resampling.LANCZOS)
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=85)
    data = base64.b64encode(stored.getvalue()).decode()
    cells = [(label, html.escape(text)) for label, text in showing.figures(scene).items() if text]
    rows = "".join(f"<tr {_LEFT}><th {_LEFT}>{label}</th><td {_LEFT}>{text}</td></tr>" for label, text in cells)
    alt = "Cloud and cameras, seen from two sides"
    return f'<img alt="{alt}" style="max-width:100%" src="data:image/jpeg;base64,{data}"><table>{rows}</table>'
