"""What of a result can be known at all: pixels without depth, the cloud, and warnings where nothing supports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lean3r.geometry.consistency import Scene
from lean3r.geometry.content import emptiness, repeats, sky
from lean3r.geometry.evidence import weigh
from lean3r.geometry.fusion import fuse
from lean3r.geometry.lens import Optics
from lean3r.parallel import by_threads
from lean3r.pipeline.overlap import look
from lean3r.types import PointCloud, Reconstruction, with_warning

DISAGREE = "where views overlap, their depths differ by {:.0%} (median): cameras or depth are wrong"
APART = (
    0.2  # disagreement (log depth) of views that is no roughness any more; the embedded model alone has 0.08 to 0.17
)
MOSTLY = 0.95  # of a picture: sky and nothing else


@dataclass(frozen=True)
class Seen:
    """What S pictures show: the pixels that count, [S, H, W] bool; of each view what speaks against it as a code
    (None: nothing), its share of sky [S], and the first view of the same picture, [S]."""

    counts: np.ndarray
    codes: tuple[str | None, ...]
    sky: np.ndarray
    first: np.ndarray


def look_at(images: np.ndarray, counts: np.ndarray, keep_sky: bool) -> Seen:
    """Judge pictures [S, H, W, 3] uint8 by their pixels that count, [S, H, W] bool; those of views in which nothing can
    be seen, and of the sky unless it is kept, count no more."""
    counts, share = counts.copy(), np.zeros(len(images))

    def judge(view: int) -> str | None:
        code = emptiness(images[view], counts[view]) if counts[view].any() else None
        above = sky(images[view], counts[view]) if code is None else np.zeros_like(counts[view])
        share[view] = above.sum() / max(counts[view].sum(), 1)
        code = "sky-only" if share[view] > MOSTLY else code
        if code is not None:
            counts[view] = False
        elif not keep_sky:
            counts[view] &= ~above
        return code

    return Seen(counts, tuple(by_threads(judge, range(len(images)))), share, repeats(images))


def no_points() -> PointCloud:
    """A cloud of none."""
    none = np.zeros((0, 3), np.float32)
    return PointCloud(none, none.astype(np.uint8), none[:, 0], none[:, 0].astype(np.int32), none[:, :2])


def judge_scene(scene: Reconstruction, seen: Seen) -> Reconstruction:
    """The scene with its cloud, and a warning for everything that nothing supports.

    Where refinement did not make the cloud, confidence counts evidence and the cloud is made here. Views that show
    nothing that another shows, beside some that do, give no points.
    """
    if scene.info.get("refinement", {"status": "kept"})["status"] == "kept":
        of = Scene(scene.depth, scene.cam_from_world, Optics.of(scene))
        conf, disagreement = weigh(scene.conf, scene.mask, of)
        known = None if np.isnan(disagreement) else round(disagreement, 4)
        scene = _fuse(replace(scene, conf=conf, info={**scene.info, "depth_disagreement": known}))
        if disagreement > APART:
            scene = with_warning(scene, "views-disagree", DISAGREE.format(np.expm1(disagreement)))
    info = {**scene.info, "sky": [round(float(share), 4) for share in seen.sky]}
    return _warn_unsupported(_with_content(replace(scene, info=info), seen), seen)


def _fuse(scene: Reconstruction) -> Reconstruction:
    points = fuse(
        scene.images, scene.depth, scene.conf, scene.mask, scene.cam_from_world, scene.intrinsics,
        conf_percentile=scene.point_options.conf_percentile, max_points=scene.point_options.max_points,
        optics=Optics.of(scene),
    )  # fmt: skip
    return replace(scene, points=points)


CONTENT = {
    "no-content": "nothing can be seen in {}: black, of one colour, or without any structure; no depth and no points",
    "noise": "there is nothing but noise in {}; no depth and no points",
    "sky-only": "there is nothing but sky in {}; no depth and no points",
}


def _with_content(scene: Reconstruction, seen: Seen) -> Reconstruction:
    """With warnings about pictures in which nothing can be seen, and about pictures that were given twice."""
    for code, text in CONTENT.items():
        if views := [view for view, of_view in enumerate(seen.codes) if of_view == code]:
            scene = with_warning(scene, code, text.format(_views(views, scene)), views)
    again = [v for v, first in enumerate(seen.first) if first != v and seen.codes[v] is None]
    full = sum(code is None for code in seen.codes)
    if again and len(again) == full - 1:
        text = "all pictures are the same: without parallax, depth is the network's guess from one picture"
        scene = with_warning(scene, "identical-pictures", text)
    elif again and all(scene.sources[view].timestamp_s is None for view in again):
        text = f"{_views(again, scene)} repeat other pictures and add nothing"
        scene = with_warning(scene, "repeated-pictures", text, again)
    return scene


def _warn_unsupported(scene: Reconstruction, seen: Seen) -> Reconstruction:
    """With warnings about views without overlap, and about scenes without motion; views alone beside others without
    points. Views that refinement registered are proven."""
    unique = np.array([c is None and f == v for v, (c, f) in enumerate(zip(seen.codes, seen.first, strict=True))])
    registered = np.array([r != "predicted" for r in scene.registration] or [False] * len(unique))
    if unique.sum() < 2 or registered[unique].all():
        return scene
    found = look(scene, seen.counts, unique)
    connected = found.overlaps | registered
    lonely = np.flatnonzero(unique & ~connected).tolist()
    if lonely and not connected.any():
        text = "no two pictures were found to overlap: cameras and depth are guesses that nothing supports"
        return with_warning(scene, "no-overlap", text)
    if lonely:
        text = f"{_views(lonely, scene)} were not found to overlap with any other; they give no points"
        conf = scene.conf.copy()
        conf[lonely] = 0
        scene = with_warning(_fuse(replace(scene, conf=conf)), "no-overlap", text, lonely)
    if found.turns_only and not registered.any():
        text = (
            "the camera seems to rotate in place, which gives no parallax: positions and depth are unsupported guesses"
        )
        scene = with_warning(scene, "no-parallax", text)
    return scene


def _views(views: Sequence[int], scene: Reconstruction) -> str:
    total = len(scene.sources)
    return f"all {total} pictures" if len(views) == total > 1 else f"{len(views)} of {total} pictures"
