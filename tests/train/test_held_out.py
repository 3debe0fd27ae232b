"""What weights are judged on: the same scenes always, of the synthetic world or of sets on disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from data.tiny import write

from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.eval.synthetic import validate
from lean3r.train.config import Stage
from lean3r.train.held_out import HeldOut, Sets
from lean3r.train.recipes.sources import Source
from lean3r.types import Views

STAGE = Stage(200, 24, 32, (2,), 2)


class Flat:
    """Sees every camera at the origin and a plane, and counts the scenes."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, views: Views) -> SimpleNamespace:
        self.shapes.append(tuple(views.images.shape))
        batch, count, _, height, width = views.images.shape
        eye = torch.eye(4).expand(batch, count, 4, 4)
        return SimpleNamespace(
            cam_from_world=eye, intrinsics=eye[..., :3, :3], depth=torch.ones(batch, count, height, width)
        )


def score(model: Flat, held_out: HeldOut, scale: int = 1, sets: Sets = ((2, 1, 40),)) -> dict[str, float]:
    """The figures of a model on held-out scenes."""
    world = SyntheticWorld(24, 32, 2, seed=1, tiles=16, tile_size=16)
    return validate(partial(held_out.batches, world, STAGE, scale), sets, model)


def test_held_out_scenes_may_be_fewer_and_of_a_set_on_disk(tmp_path: Path) -> None:
    few = Flat()
    figures = score(few, HeldOut(scenes=5), sets=((2, 10, 40), (4, 4, 40)))
    assert list(figures)[-1] == "auc30", "columns of the log keep their order"
    assert [shape[:2] for shape in few.shapes] == [(5, 2), (4, 4), (1, 4)] and figures["auc30"] == figures["auc30_4"]

    write("blendedmvs", tmp_path)
    real, again = Flat(), Flat()
    held_out = HeldOut((Source("blendedmvs", str(tmp_path)),), 2)
    one = score(real, held_out, 2)
    assert real.shapes == [(1, 2, 3, 48, 64)] * 2
    assert one == pytest.approx(score(again, held_out, 2), nan_ok=True), "always the same"
    assert one["abs_rel_2"] > 0
    write("dl3dv", tmp_path / "none")
    figures = score(Flat(), HeldOut((Source("dl3dv", str(tmp_path / "none")),)), sets=((2, 1, 1),))
    assert "abs_rel_2" not in figures and "auc30_2" in figures, "cameras alone where none of the views has known depth"
