"""All views at once say what each of them says alone."""

from __future__ import annotations

import numpy as np
import pytest

from lean3r.geometry.consistency import Scene, sample_depth
from lean3r.geometry.lens import Optics
from lean3r.types import Lens, Source

BENT = Lens("SIMPLE_RADIAL", (80.0, 40.0, 30.0, -0.1))
OTHER = Lens("PINHOLE", (70.0, 75.0, 41.0, 29.0))


@pytest.mark.parametrize("lenses", [(), (BENT, OTHER, BENT, BENT)])
def test_views_together_are_the_views_alone(lenses: tuple[Lens, ...]) -> None:
    rng = np.random.default_rng(0)
    sources = [Source(f"{i}.jpg", 80, 60, (1.0, 1.0, 0.0, 0.0)) for i in range(3)]
    sources.append(Source("wide.jpg", 160, 120, (2.0, 2.0, 0.0, 0.0)))
    matrices = np.stack([np.array([[f, 0, 40], [0, f, 30], [0, 0, 1.0]]) for f in (60, 70, 80, 90)])
    depth = rng.uniform(1, 1.1, (4, 60, 80)) * (rng.random((4, 60, 80)) > 0.01)
    scene = Scene(depth, np.tile(np.eye(4), (4, 1, 1)), Optics(sources, matrices, lenses))
    cam = rng.normal(loc=(0, 0, 1.5), size=(4, 200, 3))
    xy = scene.optics.project_all(cam)
    np.testing.assert_array_equal(xy, np.stack([scene.optics.project(v, cam[v]) for v in range(4)]))
    together = sample_depth(depth, xy)
    assert 0.1 < np.isfinite(together).mean() < 0.9
    np.testing.assert_array_equal(together, np.stack([sample_depth(depth[v], xy[v]) for v in range(4)]))
