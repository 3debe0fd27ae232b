"""Keyframes of a stream, reconstructed together as the pictures of one run."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lean3r.errors import LeanError
from lean3r.geometry.lens import colmap_camera, pinhole_part
from lean3r.inputs.past import Past
from lean3r.models.base import Backbone
from lean3r.pipeline.known import with_cameras
from lean3r.pipeline.reconstruct import reconstruct
from lean3r.pipeline.refining import applies
from lean3r.processes import give_memory_back
from lean3r.refine.ahead import Ahead
from lean3r.refine.judge import links
from lean3r.refine.rivals import differing
from lean3r.refine.world import into_known
from lean3r.scratch import temporary_folder
from lean3r.stream import sim3
from lean3r.stream.engine import WITH_TEXT, Frame, Settings
from lean3r.stream.options import given_camera
from lean3r.stream.pictures import Keyframe, Recent
from lean3r.stream.result import LEAST_SURE, Result, results_of
from lean3r.types import Lens, Reconstruction, Source

logger = logging.getLogger("lean3r")

CALIBRATED = 2 / 3  # of a window's views whose cameras are trusted: then its intrinsics serve the next ones
SOUND = 1 / 2  # of the keyframes of a full window: fewer tell a focal length, and the way, less well than later ones do
CLEARLY = 0.01  # of the longer side: how far lines bend at a corner of a lens that serves the next windows, too
OF_WINDOWS = ("stretched", "fisheye", "rolling-shutter", "moving-crop", "background-rests")  # warnings that are kept
ISLAND = 5  # keyframes in a row that are trusted although those around them are not
Pose = Sequence[Sequence[float]]  # [4, 4]
Camera = tuple[tuple[float, ...], Lens | None]
NO_CLOUD = {"conf_percentile": 99.99, "max_points": 100}  # the stream has a cloud of its own


def check_camera(model: Backbone, settings: Settings, frame: Frame) -> None:
    """InputError if the known intrinsics cannot be those of a frame: each window would fail by them."""
    if settings.intrinsics is not None:
        resolution = settings.resolution or model.resolution
        views = Recent([Keyframe.of(frame)]).views(resolution=resolution, patch=model.patch)
        with_cameras(views, views.sources, given_camera(settings.intrinsics, settings.lens))


class Meeting(NamedTuple):
    """Keyframes of two windows in one world, and the number of points that hold both parts to each other."""

    results: list[Result]
    ties: float


class Solver:
    """Runs `lean3r.reconstruct` with a stream's settings. `cameras` of frames of each size (width, height) are
    those of the first sound window whose cameras are trusted, unless they are known: fx, fy, cx, cy, and the lens if it
    bends lines."""

    def __init__(self, model: Backbone, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.cameras: dict[tuple[int, int], Camera] = {}
        self._said: set[str] = set()  # warnings that were logged
        self._scratch, self._ahead = ExitStack(), Ahead()
        self._scratch.callback(self._ahead.end)
        weakref.finalize(self, self._scratch.close)

    def prepare(self, keyframes: Sequence[Keyframe]) -> None:
        """Begin with what refinement needs of keyframes that a later window will have, beside everything else."""
        if self.refines:
            sources = [Source(each.name, *each.size, timestamp_s=each.timestamp_s) for each in keyframes]
            self._ahead.begin(sources, Recent(keyframes, self._kept), self.settings.refine)

    def window(
        self,
        keyframes: Sequence[Keyframe],
        joined: Sequence[int] = (),
        past: Past | None = None,
        is_last: bool = False,
    ) -> tuple[list[Result], dict[str, Any]] | None:
        """The results of a window, in its own world, and its report; None if it cannot be reconstructed. Keyframes of
        these numbers are those by which it will be `joined` to the windows before.

        With a `past`, the window is reconstructed by itself and by going on from that, of which the one counts that
        trusts more cameras, without those of which the way that goes on says otherwise; the second way is not tried if
        all are trusted that no later window knows better. The last window of a film goes on first. Keyframes that this
        way lacks lie where another one has them, of the window by itself and points that are followed from frame to
        frame if possible; they stay in doubt.
        """
        self._ahead.end()
        ways = [None] if past is None else [past, None] if is_last else [None, past]
        pictures = self._pictures(keyframes, joined=joined)
        try:
            found: list[tuple[Reconstruction, bool]] = []
            while ways and not (found and self._is_enough(found[-1][0], joined, is_last)):
                pictures.past = ways.pop(0)
                pictures.follows = pictures.past is not None  # alone, how large a window is may hang on such points
                found.append(self._run(pictures))
            gone_on = next((scene for scene, _ in found if goes_on(scene)), None)
            doubts = [contradicted(scene, gone_on, joined) for scene, _ in found]
            sure = [trusted(scene, joined) - len(views) for (scene, _), views in zip(found, doubts, strict=True)]
            best = int(np.argmax(sure))
            (scene, is_calibrated), doubted = found.pop(best), doubts[best]
            others = found
            if is_calibrated and self.settings.intrinsics is None and zooms(scene):
                self.cameras.clear()  # those of the windows before are not true any more
                (scene, is_calibrated), others = self._run(self._pictures(keyframes, joined=joined)), []
                doubted = []
            results = results_of(scene, keyframes)
            for view in doubted:
                results[view].is_certain = False
            if others and not all(result.is_registered for result in results):
                pictures.past, pictures.follows = None, True
                others.insert(0, self._run(pictures))
        except LeanError as error:
            logger.warning("keyframes %d to %d: %s", keyframes[0].index, keyframes[-1].index, error)
            return None
        report = scene.info.get("refinement", {"status": "kept"})
        for other, _ in others:
            complete(results, results_of(other, keyframes))
        if "refinement" in scene.info and report["status"] == "kept" and len(results) > 1:
            for result in results:
                result.is_certain = False  # refinement was tried, and found nothing that confirms these cameras
        doubt_islands(results)
        is_trusted = report["status"] != "kept" and report["trusted"] >= CALIBRATED * len(keyframes)
        if (
            is_trusted
            and not is_calibrated
            and not (zooms(scene) or warns(scene, "moving-crop"))
            and len({keyframe.size for keyframe in keyframes}) == 1
            and len(keyframes) >= SOUND * self.settings.window
        ):
            self.cameras[keyframes[0].size] = common_camera([result for result in results if result.is_certain])
        return results, {
            "first": keyframes[0].index,
            "last": keyframes[-1].index,
            "keyframes": len(keyframes),
            "certain": sum(result.is_certain for result in results),
            "refinement": report["status"],
            **{key: report[key] for key in ("reason", "zooms") if key in report},
            **({"disagrees": True} if warns(scene, "views-disagree") else {}),
            **{code: True for code in OF_WINDOWS if warns(scene, code)},
            **self._told(scene, keyframes),
            **({"past": past_in(results, **report["past"])} if "past" in report else {}),
            "focal_px": round(float(np.median([r.original_intrinsics[0, 0] for r in results])), 3),
        }

    def _told(self, scene: Reconstruction, keyframes: Sequence[Keyframe]) -> dict[str, str]:
        """The texts of a window's warnings that are kept with them. Each is logged once: a stream may be long."""
        found = {w["code"]: w["text"] for w in scene.info.get("warnings", ()) if w["code"] in WITH_TEXT}
        for code in found.keys() - self._said:
            logger.warning("keyframes %d to %d: %s", keyframes[0].index, keyframes[-1].index, found[code])
        self._said |= found.keys()
        return found

    def _is_enough(self, scene: Reconstruction, joined: Sequence[int], is_last: bool) -> bool:
        """Whether all cameras of a window are trusted that no later one knows better."""
        count = len(scene.is_certain) - (0 if is_last else self.settings.overlap // 2)
        return trusted(scene, joined) > 0 and bool(scene.is_certain[:count].all())

    @property
    def refines(self) -> bool:
        """Whether windows are refined."""
        return applies(self.settings.refine, self.model, True)

    def knows_intrinsics(self, keyframes: Sequence[Keyframe]) -> bool:
        """Whether those of the keyframes are known, and the same."""
        return len({keyframe.size for keyframe in keyframes}) == 1 and self._camera(keyframes) is not None

    def _camera(self, keyframes: Sequence[Keyframe]) -> Camera | None:
        if self.settings.intrinsics is not None:
            return self.settings.intrinsics, self.settings.lens
        sizes = {keyframe.size for keyframe in keyframes}
        return self.cameras.get(next(iter(sizes))) if len(sizes) == 1 else None

    def together(self, old: Sequence[Keyframe], new: Sequence[Keyframe]) -> Meeting | None:
        """Old and new keyframes in one world; None unless matches confirm it, where they are refined."""
        keyframes = [*old, *new]
        try:
            scene, _ = self._run(self._pictures(keyframes, len(old)))
        except LeanError:
            return None
        if scene.info.get("refinement", {"status": "off"})["status"] == "kept":
            return None
        return Meeting(results_of(scene, keyframes), ties(scene, len(old)))

    @cached_property
    def _kept(self) -> Path:
        """Where refinement keeps the features of keyframes, which several windows show."""
        return self._scratch.enter_context(temporary_folder("stream"))

    def _pictures(self, keyframes: Sequence[Keyframe], meeting: int = 0, joined: Sequence[int] = ()) -> Recent:
        """Keyframes to reconstruct. So many first ones must be `meeting` the others in a match, or nothing is
        refined."""
        return Recent(keyframes, None if self.settings.refine.when == "off" else self._kept, meeting, joined)

    def _run(self, pictures: Recent) -> tuple[Reconstruction, bool]:
        """The reconstruction of keyframes, and whether their intrinsics were known before."""
        settings, camera = self.settings, self._camera(pictures.keyframes)
        pictures.calibrated = camera is not None and settings.intrinsics is None
        give_memory_back()  # that of the cloud and of a checkpoint would stay beneath that of the window
        with _quiet():  # each window would repeat its warnings: flags and reports say what is uncertain
            scene = reconstruct(
                self.model,
                pictures,
                cameras=None if camera is None else given_camera(*camera),
                resolution=settings.resolution,
                seed=settings.seed,
                refine=settings.refine,
                dense=settings.dense,
                points=replace(settings.points, **NO_CLOUD),
            )
        give_memory_back()
        if scene.info.get("refinement", {}).get("reason") == "interrupted":
            raise KeyboardInterrupt
        return scene, camera is not None


def common_camera(results: Sequence[Result]) -> Camera:
    """The camera of a window that its results share, or that in their middle; the lens only if it clearly bends lines.
    How a nearly straight one does, a window alone hardly tells: the next ones find it anew."""
    matrices = np.stack([result.original_intrinsics for result in results])
    matrix = np.median(matrices, axis=0)
    middle = results[int(np.abs(matrices - matrix).sum((1, 2)).argmin())]
    lens = None if middle.lens is None or bend(middle.lens, *middle.keyframe.size) < CLEARLY else middle.lens
    return tuple(map(float, matrix[[0, 1, 0, 1], [0, 1, 2, 2]])), lens


def bend(lens: Lens, width: int, height: int) -> float:
    """How far a corner of the picture is from where the pinhole part of the lens has it, as a share of the longer side.
    Infinite where the lens shows no corner."""
    slopes = np.asarray(colmap_camera(lens, width, height).cam_from_img(np.zeros((1, 2))), np.float64)
    away = float(np.linalg.norm((pinhole_part(lens) @ [*slopes.reshape(-1), 1.0])[:2])) / max(width, height)
    return away if np.isfinite(away) else np.inf


def ties(scene: Reconstruction, first: int) -> float:
    """The number of points that hold so many first views and the others to each other; infinite for cameras that are
    not refined, of which points say nothing."""
    if scene.sparse is None:
        return float("inf")
    seen = np.zeros((len(scene.sparse.xyz), len(scene.sources)), bool)
    seen[scene.sparse.point, scene.sparse.view] = True
    return links(seen[:, :first].sum(1), seen[:, first:].sum(1))


def past_in(
    results: Sequence[Result], past: Sequence[Pose | None], views: Sequence[Pose | None]
) -> list[np.ndarray | None]:
    """Where the cameras of the `past` are in the world of a window's results, whose cameras lay at `views` beside them;
    None for those that are doubted."""
    sure = [(np.array(view), result.pose) for view, result in zip(views, results, strict=True) if view is not None]
    fit = into_known(*(np.stack(poses) for poses in zip(*sure, strict=True))) if sure else None
    if fit is None:
        return [None] * len(past)
    return [None if pose is None else fit.apply_to_poses(torch.tensor([pose]).double())[0].numpy() for pose in past]


def trusted(scene: Reconstruction, joined: Sequence[int]) -> int:
    """The number of cameras that refinement found and trusts; none if they do not share a focal length, or if too few
    of those are trusted by which the window will be `joined`."""
    if zooms(scene) or (joined and scene.is_certain[list(joined)].sum() < min(LEAST_SURE, len(joined))):
        return 0
    return scene.info.get("refinement", {}).get("trusted", 0)


def goes_on(scene: Reconstruction) -> bool:
    """Whether a window is a model that goes on from the past."""
    return "past" in scene.info.get("refinement", {})


def contradicted(scene: Reconstruction, gone_on: Reconstruction | None, joined: Sequence[int]) -> list[int]:
    """The trusted cameras of a window by itself that going on from the past has elsewhere, or doubts although it
    registers them; none if that trusts less than half as many. The past ties a window to more frames: by itself, its
    scale may change on the way, and all its matches fit (40 cm off, in a walk of large steps)."""
    if gone_on is None or scene is gone_on or trusted(gone_on, joined) < max(1, trusted(scene, joined) / 2):
        return []
    is_registered = np.array([view["part"] != -1 for view in gone_on.info["refinement"]["views"]])
    elsewhere = differing(scene.cam_from_world, scene.is_certain, gone_on.cam_from_world, is_registered)
    doubted = np.flatnonzero(scene.is_certain & is_registered & ~gone_on.is_certain).tolist()
    return sorted({*doubted, *elsewhere})


def complete(results: Sequence[Result], others: Sequence[Result]) -> None:
    """Put keyframes that a window's results lack where another reconstruction of it has them; they stay uncertain."""
    both = [(o.pose, r.pose) for r, o in zip(results, others, strict=True) if r.is_certain and o.is_certain]
    matrix = sim3.fitted(*np.array(both).reshape(-1, 2, 4, 4).swapaxes(0, 1))
    if matrix is None:
        return
    for mine, other in zip(results, others, strict=True):
        if other.is_registered and not mine.is_registered:
            mine.take(other, np.linalg.inv(matrix), is_certain=False)


def zooms(scene: Reconstruction) -> bool:
    """Whether refinement found that the focal length changes from frame to frame, or is not the one that was given."""
    return scene.info.get("refinement", {}).get("zooms", False)


def warns(scene: Reconstruction, code: str) -> bool:
    """Whether a scene has a warning of this code."""
    return any(warning["code"] == code for warning in scene.info.get("warnings", ()))


def doubt_islands(results: Sequence[Result]) -> None:
    """Doubt keyframes that lie in a few among doubted ones: they seldom hold on to the others by more than chance."""
    certain = [result.is_certain for result in results]
    starts = [i for i, sure in enumerate(certain) if sure and not (i and certain[i - 1])]
    runs = [
        range(start, next((i for i in range(start, len(certain)) if not certain[i]), len(certain))) for start in starts
    ]
    longest = max(map(len, runs), default=0)
    for run in runs:
        if len(run) < min(ISLAND, longest):
            for i in run:
                results[i].is_certain = False


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, warnings are not logged."""

    def keep(record: logging.LogRecord) -> bool:
        return record.levelno != logging.WARNING

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
