"""Cameras that nothing refines are adjusted to the network's own matches."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from operator import itemgetter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.errors import OutOfMemoryError
from lean3r.geometry.adjustment import Guess, Pairs, adjust, explained
from lean3r.geometry.pose import invert_pose
from lean3r.inputs.pictures import Pictures
from lean3r.inputs.views import assemble, network_size
from lean3r.models.base import Backbone
from lean3r.pipeline.enlarging import carried
from lean3r.pipeline.network_scene import scene_of
from lean3r.pipeline.predict import predict, running
from lean3r.refine.options import INTERRUPTED
from lean3r.types import Reconstruction, Views

FINER = 1.27  # times the side of nano's pictures: AUC@30 of the photo scenes 44; 40 to 43 with 1.14 to 1.6, 39 without
FINER_VIEWS = 16  # of more the second start takes as long as everything else
ENOUGH = 0.9  # share of the matches that is explained: photo scenes 0.46 to 0.86, where a second start can gain


def confirmed(scene: Reconstruction) -> bool:
    """Whether refinement found better cameras, or was stopped: then no more time is to be spent on them."""
    report = scene.info.get("refinement", {"status": "kept", "reason": ""})
    return report["status"] != "kept" or report["reason"] == INTERRUPTED


def adjust_scene(
    scene: Reconstruction, model: Backbone, views: Views, pictures: Pictures | None = None
) -> Reconstruction:
    """The scene with cameras that agree with the matches of its network; the same if it tells none.

    With the `pictures` of the views, what the network says of finer ones is a second start where the first does not
    explain ENOUGH, and what explains more in the end stays. The first camera stays, and each view's depth follows by
    one factor. `info["adjusted"]` says which share of the matches the cameras explain, before and after.
    """
    with running(model) as device:
        pairs = model.matched(views.to(device))
    if pairs is None:
        return scene
    with torch.inference_mode():
        start, has = _guess(scene, pairs)
        pairs = replace(pairs, weight=pairs.weight * has[:, None])
        found = adjust(start, pairs)
        before, after = (explained(guess, pairs) for guess in (start, found))
        finer = None if pictures is None or after > ENOUGH else _in_finer_pictures(scene, model, pictures)
        if finer is not None:
            other, has = _guess(finer, pairs)
            second = adjust(replace(other, log_depth=torch.where(has, other.log_depth, start.log_depth)), pairs)
            after, found = max((after, found), (explained(second, pairs), second), key=itemgetter(0))
        if not after > before:
            return scene
        first = invert_pose(found.cam_from_world[:1]) @ start.cam_from_world[:1]
        intrinsics = scene.intrinsics.copy()
        intrinsics[:, [0, 1], [0, 1]] *= (found.log_focal - start.log_focal).exp().numpy()[:, None]
        factor = (found.log_depth - start.log_depth).median(1).values.exp().numpy().astype(np.float32)
        return replace(
            scene,
            cam_from_world=(found.cam_from_world @ first).numpy(),
            intrinsics=intrinsics,
            depth=scene.depth * factor[:, None, None],
            info={**scene.info, "adjusted": {"before": round(before, 4), "after": round(after, 4)}},
        )


def _in_finer_pictures(scene: Reconstruction, model: Backbone, pictures: Pictures) -> Reconstruction | None:
    """What the network says of the scene's pictures at FINER times the side, in the pixels of the scene; None if they
    are many, not at hand any more, or too large."""
    if len(scene.names) > FINER_VIEWS or not pictures.are_at_hand:
        return None
    size_of = partial(network_size, resolution=round(FINER * model.resolution), patch=model.patch)
    again = [*pictures.whole(scene.names, size_of)]
    if len(again) < len(scene.names):
        return None
    views = assemble(again, model.patch)
    with contextlib.suppress(OutOfMemoryError):
        return carried(scene_of(predict(model, views), views), scene.sources, scene.mask)
    return None


def _guess(scene: Reconstruction, pairs: Pairs) -> tuple[Guess, Tensor]:
    """The cameras and depth of a scene, at the patches of pairs, and which of them have depth [S, N]."""
    log_depth, has = (x[:, :: pairs.step] for x in _of_patches(torch.from_numpy(scene.depth), pairs.size))
    side = torch.from_numpy(scene.mask.sum((1, 2)) ** 0.5)
    focal = torch.from_numpy(scene.intrinsics[:, 0, 0])
    return Guess(torch.from_numpy(scene.cam_from_world), (focal / side).log(), log_depth), has


def _of_patches(depth: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean log depth [S, N] of patches in `size` rows and columns, from maps [S, H, W] that are 0 where unknown; and
    which patches have any [S, N]."""
    known = (depth > 0).double()
    values = torch.where(depth > 0, depth.double().clamp_min(1e-30).log(), 0.0)
    share, total = (F.adaptive_avg_pool2d(x, size).flatten(1) for x in (known, values))
    has = share > 0.5
    return torch.where(has, total / share.clamp_min(1e-9), 0.0), has
