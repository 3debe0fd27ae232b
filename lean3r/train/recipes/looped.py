"""The recipe of nano-looped: nano's phases, with a number of loops that varies from step to step."""

from __future__ import annotations

from dataclasses import replace

from lean3r.train.recipes.nano import Recipe, nano

LEAST, MOST = 1, 5


def nano_looped(textures: str | None = None) -> Recipe:
    """nano's recipe for one shared pair of blocks: 1 to 5 loops per step, 3.7 on average, so a step costs slightly
    more than one of nano, which has three pairs."""
    base = nano(textures)
    phases = tuple(
        replace(
            phase,
            name=phase.name.replace("nano", "nano-looped"),
            stages=tuple(replace(stage, loss=stage.loss | {"least": LEAST, "most": MOST}) for stage in phase.stages),
        )
        for phase in base.phases
    )
    return replace(base, model="nano-looped", phases=phases, objective="nano-looped")
