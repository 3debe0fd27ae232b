"""How far a result can be trusted: which pixels give depth, the point cloud, and warnings about missing evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lean3r.geometry.consistency import Scene
from lean3r.geometry.content import emptiness, repeats, sky
from lean3r.geometry.evidence import weigh
from lean3r.parallel import by_threads
from lean3r.pipeline.overlap import find_overlap
from lean3r.types import PointCloud, Reconstruction, with_warning

DISAGREE = "where views overlap, their depths differ by {:.0%} (median): cameras or depth are wrong"
MAX_DISAGREEMENT = 0.2  # log depth; the embedded model alone has 0.08 to 0.17, larger values are more than roughness
SKY_ONLY = 0.95  # share of sky from which a picture shows nothing else


@dataclass(frozen=True)
class Content:
    """What S pictures show.

    usable [S, H, W] bool, the pixels that may give depth; codes: for each view the code of the warning that excludes
    it, or None; sky [S], the share of sky in each view; first [S], the index of the first view with the same picture.
    """

    usable: np.ndarray
    codes: tuple[str | None, ...]
    sky: np.ndarray
    first: np.ndarray


def judge_content(images: np.ndarray, usable: np.ndarray, keep_sky: bool) -> Content:
    """Judge what pictures [S, H, W, 3] uint8 show in their usable pixels, [S, H, W] bool.

    In the result, views that show nothing have no usable pixels, and neither has the sky unless `keep_sky` is set.
    """
    usable, share = usable.copy(), np.zeros(len(images))

    def judge(view: int) -> str | None:
        code = emptiness(images[view], usable[view]) if usable[view].any() else None
        is_sky = sky(images[view], usable[view]) if code is None else np.zeros_like(usable[view])
        share[view] = is_sky.sum() / max(usable[view].sum(), 1)
        code = "sky-only" if share[view] > SKY_ONLY else code
        if code is not None:
            usable[view] = False
        elif not keep_sky:
            usable[view] &= ~is_sky
        return code

    return Content(usable, tuple(by_threads(judge, range(len(images)))), share, repeats(images))


def no_points() -> PointCloud:
    """An empty point cloud."""
    none = np.zeros((0, 3), np.float32)
    return PointCloud(none, none.astype(np.uint8), none[:, 0], none[:, 0].astype(np.int32), none[:, :2], none)


def judge_scene(
    scene: Reconstruction, content: Content, shown: Reconstruction | None = None, is_chain: bool = False
) -> Reconstruction:
    """The scene with a warning for each part of the result that lacks evidence.

    `shown` is the same scene with the pictures that the network saw, if it was enlarged since: views are matched in
    them, so that its size changes no warning. In a chain each view is known to overlap with the one before.

    Without a successful refinement or stereo, confidence is weighted by the evidence of other views. If some views
    overlap, the confidence of those that overlap with no other is 0.
    """
    steps = [scene.info.get(step, {"status": "kept"}) for step in ("refinement", "stereo")]
    if all(step["status"] == "kept" for step in steps):
        conf, votes = weigh(scene.conf, scene.mask, Scene.of(scene))
        disagreement = votes.disagreement
        rounded = None if np.isnan(disagreement) else round(disagreement, 4)
        scene = replace(scene, conf=conf, info={**scene.info, "depth_disagreement": rounded})
        if disagreement > MAX_DISAGREEMENT:
            scene = with_warning(scene, "views-disagree", DISAGREE.format(np.expm1(disagreement)))
    info = {**scene.info, "sky": [round(float(share), 4) for share in content.sky]}
    scene = _warn_about_content(replace(scene, info=info), content)
    return scene if is_chain else _judge_overlap(scene, content, shown or scene)


CONTENT = {
    "no-content": "nothing can be seen in {}: black, of one colour, or without structure; no depth and no points",
    "noise": "{} show only noise; no depth and no points",
    "sky-only": "{} show only sky; no depth and no points",
}


def _warn_about_content(scene: Reconstruction, content: Content) -> Reconstruction:
    """Add warnings about pictures that show nothing, and about pictures that are given more than once."""
    for code, text in CONTENT.items():
        if views := [view for view, its_code in enumerate(content.codes) if its_code == code]:
            scene = with_warning(scene, code, text.format(_views(views, scene)), views)
    repeated = [v for v, first in enumerate(content.first) if first != v and content.codes[v] is None]
    valid = sum(code is None for code in content.codes)
    if repeated and len(repeated) == valid - 1:
        text = "all pictures are the same: without parallax, depth is the network's guess from one picture"
        scene = with_warning(scene, "identical-pictures", text)
    elif repeated and all(scene.sources[view].timestamp_s is None for view in repeated):
        text = f"{_views(repeated, scene)} repeat other pictures and add nothing"
        scene = with_warning(scene, "repeated-pictures", text, repeated)
    return scene


def _judge_overlap(scene: Reconstruction, content: Content, shown: Reconstruction) -> Reconstruction:
    """Add warnings about views without overlap and about scenes without parallax.

    If some views overlap, those that do not lose their confidence. Views that refinement registered need no check.
    """
    unique = np.array([c is None and f == v for v, (c, f) in enumerate(zip(content.codes, content.first, strict=True))])
    registered = np.array([r != "predicted" for r in scene.registration] or [False] * len(unique))
    if unique.sum() < 2 or registered[unique].all():
        return scene
    overlap = find_overlap(shown, content.usable, unique)
    connected = overlap.has_partner | registered
    isolated = np.flatnonzero(unique & ~connected).tolist()
    if isolated and not connected.any():
        text = "no overlap detected between any two pictures: cameras and depth are unsupported guesses"
        return with_warning(scene, "no-overlap", text)
    if isolated:
        text = f"no overlap with any other picture detected in {_views(isolated, scene)}; they give no points"
        conf = scene.conf.copy()
        conf[isolated] = 0
        scene = with_warning(replace(scene, conf=conf), "no-overlap", text, isolated)
    if overlap.rotates_only and not registered.any():
        text = (
            "the camera seems to rotate in place, which gives no parallax: positions and depth are unsupported guesses"
        )
        scene = with_warning(scene, "no-parallax", text)
    return scene


def _views(views: Sequence[int], scene: Reconstruction) -> str:
    total = len(scene.sources)
    return f"all {total} pictures" if len(views) == total > 1 else f"{len(views)} of {total} pictures"
