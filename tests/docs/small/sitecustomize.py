"""Found at its start by every Python that runs a page: large networks have toy sizes, recipes one step
a stage, and the photographs of `lean3r demo` a sixteenth of their pixels.

So `--model vggt`, official checkpoints and `lean3r train` run word for word, in seconds. nano stays as it is.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

from contracts.tiny import tiny_config

import lean3r.cli.running
import lean3r.data.showroom
from lean3r.models import MODELS
from lean3r.models.checkpoint import IDENTITY, without_memory
from lean3r.train.recipes.distilled import Distillation

for name in MODELS:
    kind: Any = MODELS.get(name)
    if not name.startswith("nano"):
        kind.SIZES = {**kind.SIZES, name: tiny_config(name)}
        model = without_memory(kind)
        kind.resolution = 8 * model.patch
        key = kind.TELLTALE[0]
        kind.TELLTALE = (key, tuple((model.KEY_MAP or IDENTITY).write(model.state_dict())[key].shape))

phone_photos = lean3r.data.showroom.phone_photos
lean3r.data.showroom.phone_photos = lambda folder, *views, **options: phone_photos(
    folder, *views, **(options | {"height": 240, "width": 320})
)
lean3r.cli.running.SETS = ((2, 1, 1), (8, 1, 1))


def brief(config: Any) -> Any:
    """One step of small pictures in every stage."""
    stages = tuple(replace(s, steps=1, height=64, width=64, views=(2,), views_per_step=2) for s in config.stages)
    return replace(config, stages=stages, optim=replace(config.optim, warmup_steps=0))


def shortened(recipe: Any) -> Any:
    """The recipe function with brief phases, of nano's only the last."""

    def short(textures: str | None = None) -> Any:
        full = recipe(textures)
        if isinstance(full, Distillation):
            return replace(full, phases=tuple(replace(p, config=brief(p.config)) for p in full.phases))
        return replace(full, phases=(brief(full.phases[-1]),))

    return short


for module, name in (("nano", "nano"), ("looped", "nano_looped"), ("nano_students", "nano_gsa_fp8")):
    recipes: Any = importlib.import_module(f"lean3r.train.recipes.{module}")
    setattr(recipes, name, shortened(getattr(recipes, name)))
