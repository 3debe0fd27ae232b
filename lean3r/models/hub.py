"""Models in a repository of the Hugging Face Hub: a file of weights that lean3r.load reads, and a card."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lean3r.errors import UsageError
from lean3r.models.checkpoint import save_model
from lean3r.models.sources import SCHEME, find_weights
from lean3r.models.weight_files import open_weights

if TYPE_CHECKING:
    from lean3r.models.base import Backbone

WEIGHTS, CARD = "model.safetensors", "README.md"
LOADER = "lean3r.pipeline.load"  # which builds compressed models, too; a room above this one
_CARD = """---
library_name: lean3r
pipeline_tag: image-to-3d
---

# {title}

A model for lean3r: photos or a video in; cameras, depth and a point cloud out.

    import lean3r

    model = lean3r.load("{name}", "hf:OWNER/NAME")  # or {kind}.from_pretrained("OWNER/NAME")
    scene = lean3r.reconstruct(model, "photos/")

- Backbone: {name}, {million:.1f} M parameters
- Compression plan: {plan}
- Licence of the weights that it was made from: {licence}
"""


def on_hub(model: Backbone) -> Any:
    """A model with the methods of huggingface_hub's mixin, which is imported now: it takes a fifth of a second."""
    from huggingface_hub import ModelHubMixin

    class OnHub(ModelHubMixin, library_name="lean3r"):
        """Writes what the mixin uploads."""

        def _save_pretrained(self, save_directory: Path) -> None:
            save_model(model, save_directory / WEIGHTS)
            about = {"name": model.name, "kind": type(model).__name__, "licence": model.licence}
            million, plan = model.parameter_count / 1e6, model.plan or "none"
            title = about["name"] if model.plan is None else f"{about['name']}, compressed"
            text = _CARD.format(title=title, million=million, plan=plan, **about)
            (save_directory / CARD).write_text(text, encoding="utf-8")

    return OnHub()


def load_pretrained(kind: type[Backbone], source: str | Path, **options: Any) -> Any:
    """The model in a folder, or in a repository OWNER/NAME[@REVISION]. `options` are those of lean3r.load but name and
    weights. UsageError if it is not of this kind, and the errors of lean3r.load."""
    place = str(source)
    if not Path(place).exists() and not place.startswith(SCHEME):
        place = SCHEME + place
    path = find_weights(place, offline=options.get("offline", False))
    name = open_weights(path).metadata.get("model", getattr(kind, "name", "nano"))
    model = importlib.import_module(LOADER).load(name, place, **options)
    if not isinstance(model, kind):
        raise UsageError(f"{source} holds a {type(model).__name__}; expected a {kind.__name__}.")
    return model
