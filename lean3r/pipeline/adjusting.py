"""Cameras that nothing refines are adjusted to the network's own matches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.geometry.adjustment import Guess, adjust, explained
from lean3r.geometry.pose import invert_pose
from lean3r.models.base import Backbone
from lean3r.pipeline.predict import running
from lean3r.pipeline.refining import INTERRUPTED
from lean3r.types import Reconstruction, Views


def confirmed(scene: Reconstruction) -> bool:
    """Whether refinement found better cameras, or was stopped: then no more time is to be spent on them."""
    report = scene.info.get("refinement", {"status": "kept", "reason": ""})
    return report["status"] != "kept" or report["reason"] == INTERRUPTED


def adjust_scene(scene: Reconstruction, model: Backbone, views: Views) -> Reconstruction:
    """The scene with cameras that agree with the matches of its network; the same if it tells none.

    The first camera stays, and each view's depth follows by one factor. `info["adjusted"]` says which share of the
    matches the cameras explain, before and after.
    """
    with running(model) as device:
        pairs = model.matched(views.to(device))
    if pairs is None:
        return scene
    with torch.inference_mode():
        log_depth, has = (x[:, :: pairs.step] for x in _of_patches(torch.from_numpy(scene.depth), pairs.size))
        pairs = replace(pairs, weight=pairs.weight * has[:, None])
        side = torch.from_numpy(scene.mask.sum((1, 2)) ** 0.5)
        focal = torch.from_numpy(scene.intrinsics[:, 0, 0])
        start = Guess(torch.from_numpy(scene.cam_from_world), (focal / side).log(), log_depth)
        found = adjust(start, pairs)
        shares = [explained(guess, pairs) for guess in (start, found)]
        if not shares[1] > shares[0]:
            return scene
        first = invert_pose(found.cam_from_world[:1]) @ start.cam_from_world[:1]
        intrinsics = scene.intrinsics.copy()
        intrinsics[:, [0, 1], [0, 1]] *= (found.log_focal - start.log_focal).exp().numpy()[:, None]
        factor = (found.log_depth - log_depth).median(1).values.exp().numpy().astype(np.float32)
        return replace(
            scene,
            cam_from_world=(found.cam_from_world @ first).numpy(),
            intrinsics=intrinsics,
            depth=scene.depth * factor[:, None, None],
            info={**scene.info, "adjusted": {"before": round(shares[0], 4), "after": round(shares[1], 4)}},
        )


def _of_patches(depth: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean log depth [S, N] of patches in `size` rows and columns, from maps [S, H, W] that are 0 where unknown; and
    which patches have any [S, N]."""
    known = (depth > 0).double()
    values = torch.where(depth > 0, depth.double().clamp_min(1e-30).log(), 0.0)
    share, total = (F.adaptive_avg_pool2d(x, size).flatten(1) for x in (known, values))
    has = share > 0.5
    return torch.where(has, total / share.clamp_min(1e-9), 0.0), has
