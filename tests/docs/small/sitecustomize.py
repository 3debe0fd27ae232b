"""Found at its start by every Python that runs a page: large networks have toy sizes, recipes one step
a stage, and `lean3r demo` takes few and small photographs.

So `--model vggt`, official checkpoints and `lean3r train` run word for word, in seconds. nano stays as it is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import lean3r.cli.demo
from lean3r.registry import Registry

registered, photograph_and_show = Registry.get, lean3r.cli.demo.Demo.run
toys: set[str] = set()


def get(table: Registry, name: str) -> Any:
    """A row of a table; what is large of it is made small before it is used."""
    found = registered(table, name)
    if table.kind in ("recipe", "objective"):
        import lean3r.train.held_out

        lean3r.train.held_out.SETS = ((2, 1, 1),)
    if table.kind == "model" and not name.startswith("nano") and name not in toys:
        toys.add(name)
        shrink(name, found)
    return shortened(found) if table.kind.endswith("recipe") and name.startswith("nano") else found


def shrink(name: str, kind: Any) -> None:
    """Give a network its toy size."""
    from lean3r.models.checkpoint import without_memory

    kind.SIZES = {**kind.SIZES, name: kind.SMALLEST}
    model = without_memory(kind)
    kind.resolution = 8 * model.patch
    key = kind.TELLTALE[0]
    kind.TELLTALE = (key, tuple(model.KEY_MAP.write(model.state_dict())[key].shape))


def brief(config: Any) -> Any:
    """One step of small pictures in every stage."""
    stages = tuple(replace(s, steps=1, height=64, width=64, views=(2,), views_per_step=2) for s in config.stages)
    return replace(config, stages=stages, optim=replace(config.optim, warmup_steps=0))


def shortened(recipe: Any) -> Any:
    """The recipe function with brief phases, of nano's only the last, in one process unless a page asks for more."""

    def short(textures: str | None = None) -> Any:
        from lean3r.train.config import on_processes
        from lean3r.train.recipes.distilled import Distillation

        full = recipe(textures)
        if isinstance(full, Distillation):
            return replace(full, phases=tuple(replace(p, config=brief(p.config)) for p in full.phases))
        last = on_processes(brief(full.phases[-1]), full.processes, 1)
        return replace(full, phases=(last,), processes=1)

    return short


def photograph_little_and_show(self: lean3r.cli.demo.Demo) -> None:
    """`lean3r demo` with small photographs of coarse textures."""
    import lean3r.data.world.showroom

    lean3r.data.world.showroom.TILE_SIZE = 128
    lean3r.data.world.showroom.phone_photos = partial(lean3r.data.world.showroom.phone_photos, height=240, width=320)
    photograph_and_show(self)


Registry.get = get
lean3r.cli.demo.Demo.run = photograph_little_and_show
lean3r.cli.demo.VIEWS = 3
