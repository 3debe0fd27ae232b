"""The HTML that a notebook shows for a scene: the preview picture and the main figures."""

from __future__ import annotations

import base64
import html

from PIL import Image

from lean3r import showing
from lean3r.export import preview
from lean3r.types import Reconstruction

_LEFT = 'style="text-align:left"'


def page(scene: Reconstruction) -> str:
    """A piece of HTML without links; texts of the user are escaped."""
    data = base64.b64encode(preview.jpeg(Image.fromarray(preview.draw(scene.of_certain())))).decode()
    cells = [(label, html.escape(text)) for label, text in showing.figures(scene).items() if text]
    rows = "".join(f"<tr {_LEFT}><th {_LEFT}>{label}</th><td {_LEFT}>{text}</td></tr>" for label, text in cells)
    alt = "Cloud and cameras, seen from two sides"
    return f'<img alt="{alt}" style="max-width:100%" src="data:image/jpeg;base64,{data}"><table>{rows}</table>'
