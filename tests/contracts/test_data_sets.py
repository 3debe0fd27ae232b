"""Every data set says what it is, and gives batches whose pictures, depth and cameras agree.

The latter is looked at where tests/data/tiny has a file of the row's name that writes a small copy.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import fields
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from data import tiny
from torch import Tensor

from lean3r.data import DATASETS
from lean3r.data.base import SceneBatch
from lean3r.data.sampling.mixture import BatchShape, Mixture, Part
from lean3r.data.sets.roots import sets
from lean3r.data.sets.scenes import SceneSet
from lean3r.errors import InputError
from lean3r.geometry.camera import project, unproject
from lean3r.geometry.pose import invert_pose, transform_points

SCENES, VIEWS, HEIGHT, WIDTH = 2, 3, 40, 56

Batch = Callable[..., SceneBatch]


def synthetic(seed: int = 3) -> Batch:
    """Without lens distortion, which intrinsics do not state."""
    kind = DATASETS.get("synthetic")
    return kind(HEIGHT, WIDTH, VIEWS, seed=seed, distortion=0.0, tiles=32, tile_size=32).batch


@cache
def copy_set(name: str, seed: int) -> Mixture:
    """A mixture of a tiny copy alone. Its folder is removed when the tests end."""
    root = tempfile.TemporaryDirectory(prefix=name)
    FOLDERS.append(root)
    tiny.write(name, Path(root.name))
    source = DATASETS.get(name)(Path(root.name), **tiny.WRITERS[name].options)
    return Mixture([Part(source)], seed=seed)


def on_disk(name: str, seed: int = 3) -> Batch:
    """Without augmentation, in another shape than the files have."""
    mixture = copy_set(name, seed)
    source = mixture.parts[0].source
    assert isinstance(source, SceneSet)
    views = min(VIEWS, source.scene(0).views)
    return lambda index, scenes: mixture.batch(index, BatchShape(scenes, views, HEIGHT, WIDTH))


FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
SMALL: dict[str, Callable[..., Batch]] = {
    "synthetic": synthetic,
    **{name: partial(on_disk, name) for name in tiny.WRITERS},
}
"""Row -> build(seed) -> batch(index, scenes): scenes of VIEWS pinhole views (fewer if the set has only pairs) of
HEIGHT x WIDTH pixels."""
KEPT = {name: row.depth for name, row in tiny.WRITERS.items()} | {"synthetic": "dense"}

# Points that must be seen by two views, which share of them may float, which must agree. Cut to another size, depth is
# that of the nearest pixel: on slanting ground it is off by what half a pixel makes.
BOUNDS = {"exact": (500, 0.01, 0.3), "dense": (500, 0.03, 0.3), "spread": (200, 0.03, 0.02), "sparse": (50, 0.25, 0.1)}

each_set = pytest.mark.parametrize("name", list(SMALL))


@pytest.mark.parametrize("name", list(sets()))
def test_rows_describe_their_set_and_report_what_is_missing(name: str, tmp_path: Path) -> None:
    kind = sets()[name]
    assert kind.name == name
    assert all(text.strip() for text in (kind.title, kind.licence, kind.source, kind.layout))
    for root in (tmp_path, tmp_path / "absent"):
        assert not kind.looks_like(root) and all(kind.problems(root)) and kind.problems(root)
        with pytest.raises(InputError, match=re.escape(str(root))):
            DATASETS.get(name)(root)


def is_posed(name: str) -> bool:
    """Whether the set has poses; the synthetic world has."""
    return name not in sets() or sets()[name].has_poses


@cache
def sample(name: str) -> SceneBatch:
    return SMALL[name]()(0, SCENES)


@each_set
def test_shapes_and_ranges(name: str) -> None:
    batch = sample(name)
    lead = (SCENES, min(VIEWS, batch.images.shape[1]))
    assert lead[1] > 1
    shapes = {
        "images": (*lead, 3, HEIGHT, WIDTH),
        "depth": (*lead, HEIGHT, WIDTH),
        "intrinsics": (*lead, 3, 3),
        "cam_from_world": (*lead, 4, 4),
    }
    for key, shape in shapes.items():
        value = getattr(batch, key)
        assert value.shape == shape and value.dtype == torch.float32 and bool(value.isfinite().all()), key
    assert float(batch.images.min()) >= 0 and float(batch.images.max()) <= 1
    known = (batch.depth > 0).flatten(2).float().mean(-1)
    least = {"dense": 0.1, "spread": 0.1, "sparse": 0.001, "none": -1}[KEPT[name]]
    assert bool((batch.depth >= 0).all()) and bool((known > least).all())
    assert len(batch.ids) in (0, SCENES) and batch.skipped == () and batch.unknown == 0
    assert bool((batch.images.flatten(2).std(-1) > 0.01).all()), "an empty picture"
    assert bool((batch.intrinsics[..., [0, 1], [0, 1]] > 0).all())
    assert torch.equal(batch.intrinsics[..., 2, :], torch.tensor([0.0, 0.0, 1.0]).expand(*lead, 3))
    assert batch.mask is None or batch.mask.shape == shapes["depth"]


@each_set
def test_poses_are_rigid_and_differ(name: str) -> None:
    pose = sample(name).cam_from_world.double()
    views = pose.shape[1]
    rotation = pose[..., :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand_as(rotation), rtol=0, atol=1e-5)
    assert bool((torch.linalg.det(rotation) > 0).all())
    assert torch.equal(pose[..., 3, :], torch.tensor([0.0, 0.0, 0.0, 1.0]).double().expand(SCENES, views, 4))
    if not is_posed(name):
        assert torch.equal(pose, torch.eye(4).double().expand_as(pose))
        return
    centers = invert_pose(pose)[..., :3, 3]
    assert bool((torch.cdist(centers, centers) + torch.eye(views) > 1e-4).all())


@each_set
def test_normals_are_unit_and_face_the_camera(name: str) -> None:
    batch = sample(name)
    if batch.normals is None:
        pytest.skip(f"{name} has no normals")
    known = batch.depth > 0
    normals = batch.normals.movedim(2, -1)
    assert batch.normals.shape == batch.images.shape
    assert bool(((normals.norm(dim=-1) - 1).abs()[known] < 1e-3).all()) and bool((normals[~known] == 0).all())
    facing = (normals * unproject(batch.depth, batch.intrinsics)).sum(-1)[known]
    assert float((facing < 1e-4).float().mean()) > 0.999


def seen_depth(depth: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest of the four depths around pixels [N, 2] (x, y) of a map [H, W]; 0 counts as farthest."""
    far = depth.where(depth > 0, torch.inf)
    corner = (pixels - 0.5).floor().long()
    around = []
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = (corner[:, 0] + dx).clamp(0, WIDTH - 1), (corner[:, 1] + dy).clamp(0, HEIGHT - 1)
            around.append(far[y, x])
    return torch.stack(around).amin(0), torch.stack(around).amax(0)


@each_set
def test_depth_reprojects_into_other_views(name: str) -> None:
    """A point that one view sees is never in front of what another view sees there, and often just on it."""
    if KEPT[name] == "none" or not is_posed(name):
        pytest.skip(f"{name} has no depth or no poses")
    batch = sample(name)
    depth, k, pose = batch.depth.double(), batch.intrinsics.double(), batch.cam_from_world.double()
    inside, floating, agreeing = 0, 0, 0
    for scene in range(SCENES):
        for one in range(depth.shape[1]):
            points = unproject(depth[scene, one], k[scene, one])[depth[scene, one] > 0]
            for other in range(depth.shape[1]):
                if one == other:
                    continue
                there = transform_points(pose[scene, other] @ invert_pose(pose[scene, one]), points)
                pixels = project(there, k[scene, other])
                size = torch.tensor([WIDTH, HEIGHT])
                visible = (there[:, 2] > 1e-3) & (pixels > 0).all(-1) & (pixels < size).all(-1)
                near, far = seen_depth(depth[scene, other], pixels[visible])
                z = there[visible, 2]
                inside += len(z)
                floating += int((z < 0.98 * near).sum())
                agreeing += int(((z > 0.98 * near) & (z < 1.02 * far)).sum())
    enough, floating_at_most, agreeing_at_least = BOUNDS["exact" if name == "synthetic" else KEPT[name]]
    assert inside > enough
    # Only what is thinner than a pixel of the other view may seem to float.
    assert floating < floating_at_most * inside, f"{floating} of {inside} points stand in front of what is seen there"
    assert agreeing > agreeing_at_least * inside, f"{agreeing} of {inside} points lie on what is seen there"


@each_set
def test_batches_depend_on_seed_and_index_alone(name: str) -> None:
    first, again, other_seed = SMALL[name](), SMALL[name](), SMALL[name](seed=4)
    same = again(0, SCENES)
    for field in fields(SceneBatch):
        ours, theirs = getattr(sample(name), field.name), getattr(same, field.name)
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs, field.name
    for another in (first(1, SCENES), other_seed(0, SCENES)):
        assert not torch.equal(another.images, same.images)
        assert not torch.equal(another.depth, same.depth) or KEPT[name] == "none"
