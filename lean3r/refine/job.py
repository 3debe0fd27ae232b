"""Input and answer of the refining process: plain data in a folder.

Pixels are those of the shrunken pictures that the process sees (`View.scale` times those of the originals).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from lean3r.geometry.lens import LENSES

PICTURES, MASKS = "pictures", "masks"
OUT_OF_TIME = 75  # exit code of a process that has used up its time


@dataclass(frozen=True)
class Group:
    """Views that share a camera: COLMAP's model and parameters to start from; `trusted`: the focal length is
    stated (EXIF); `fixed`: the parameters are known and held fixed; `focal_fixed`: all but the distortion are known and
    held fixed (in all groups, or none); `assumed`: that the views share a camera is an assumption; `lens_assumed`: that
    it distorts is one."""

    width: int
    height: int
    model: str
    params: tuple[float, ...]
    trusted: bool = False
    fixed: bool = False
    focal_fixed: bool = False
    assumed: bool = False
    lens_assumed: bool = False


@dataclass(frozen=True)
class View:
    """One picture: index of its group, shrunken by `scale`, as `file` under PICTURES (None if it cannot be read), and
    its time in a video."""

    group: int
    scale: float
    file: str | None
    timestamp_s: float | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """S views: the network's cameras cam_from_world [S, 4, 4] and pinholes [S, 4] (fx, fy, cx, cy), the poses to
    start from, start [S, 4, 4]; which of them are `held` [S] bool fixed (none, or at least two in different places);
    the pairs [P, 2] of views that probably overlap (None: all); the runs of consecutive views of a video; a folder
    in which features are `kept` between jobs (None: nowhere); how many first views must be `meeting` others in a
    match, or no model is made (0: any); the views by which the model is `joined` to what was found before; and how many
    first views are of the `past`: their poses in `start` were found before, and no model is made but the one that goes
    on from these; whether it `follows` points from frame to frame of a video where few features match; whether the
    video `ends` with a job that has a past; and whether known intrinsics were `calibrated` with other pictures of the
    same camera, so that nothing is said against them."""

    views: tuple[View, ...]
    groups: tuple[Group, ...]
    cam_from_world: np.ndarray
    pinholes: np.ndarray
    start: np.ndarray
    held: np.ndarray
    pairs: np.ndarray | None
    features: int
    threads: int
    sequences: tuple[tuple[int, ...], ...] = ()
    kept: Path | None = None
    meeting: int = 0
    joined: tuple[int, ...] = ()
    past: int = 0
    follows: bool = False
    ends: bool = False
    calibrated: bool = False

    @property
    def knows_focals(self) -> bool:
        """Whether all focal lengths are known and held fixed."""
        return all(group.fixed or group.focal_fixed for group in self.groups)

    def each_alone(self, focals_px: np.ndarray | None = None) -> Job | None:
        """The same with one camera per view, starting at these focal lengths [S], or at EXIF's or the network's (also
        where they are nan), except for known ones; None if no camera is shared, or one is surely shared."""
        sizes = Counter(view.group for view in self.views)
        shared = [number for number, count in sizes.items() if count > 1]
        if not shared or not all(self.groups[number].assumed for number in shared):
            return None
        groups, trusted = [], focals_px is not None
        of_views = [self.groups[view.group] for view in self.views]
        is_stated, stated = [group.trusted for group in of_views], [group.params[0] for group in of_views]
        start = np.where(is_stated, stated, self.pinholes[:, :2].mean(axis=1))
        if focals_px is not None:
            start = np.where(np.isfinite(focals_px), focals_px, start)
        for group, focal in zip(of_views, start.tolist(), strict=True):
            if not group.fixed:
                focals, _ = LENSES[group.model]
                group = replace(group, params=(*[focal] * focals, *group.params[focals:]), trusted=trusted)
            groups.append(group)
        views = tuple(replace(view, group=number) for number, view in enumerate(self.views))
        return replace(self, views=views, groups=tuple(groups))

    def behind_past(self) -> Job:
        """The views that are not of the past, numbered from 0."""
        first = self.past
        return replace(
            self,
            views=self.views[first:],
            cam_from_world=self.cam_from_world[first:],
            pinholes=self.pinholes[first:],
            start=self.start[first:],
            held=self.held[first:],
            pairs=None,
            sequences=tuple(tuple(view - first for view in run if view >= first) for run in self.sequences),
            joined=tuple(view - first for view in self.joined),
            past=0,
        )

    def write(self, folder: Path) -> None:
        """Into job.json and job.npz."""
        plain = {
            "views": [asdict(view) for view in self.views],
            "groups": [asdict(group) for group in self.groups],
            "features": self.features,
            "threads": self.threads,
            "sequences": self.sequences,
            "kept": None if self.kept is None else str(self.kept),
            "meeting": self.meeting,
            "joined": self.joined,
            "past": self.past,
            "follows": self.follows,
            "ends": self.ends,
            "calibrated": self.calibrated,
        }
        (folder / "job.json").write_text(json.dumps(plain))
        arrays = {"cam_from_world": self.cam_from_world, "pinholes": self.pinholes, "start": self.start}
        arrays["held"] = self.held
        if self.pairs is not None:
            arrays["pairs"] = self.pairs
        np.savez(folder / "job.npz", allow_pickle=False, **arrays)

    @classmethod
    def read(cls, folder: Path) -> Job:
        """As written."""
        plain = json.loads((folder / "job.json").read_text())
        with np.load(folder / "job.npz") as stored:
            arrays = dict(stored)
        return cls(
            tuple(View(**view) for view in plain["views"]),
            tuple(Group(**{**group, "params": tuple(group["params"])}) for group in plain["groups"]),
            arrays["cam_from_world"],
            arrays["pinholes"],
            arrays["start"],
            arrays["held"],
            arrays.get("pairs"),
            plain["features"],
            plain["threads"],
            tuple(tuple(run) for run in plain["sequences"]),
            None if plain["kept"] is None else Path(plain["kept"]),
            plain["meeting"],
            tuple(plain["joined"]),
            plain["past"],
            plain["follows"],
            plain["ends"],
            plain["calibrated"],
        )


@dataclass(frozen=True, eq=False)
class Answer:
    """A model of the registered views, in its own world frame, and the fit of cameras to the verified matches.

    cam_from_world [S, 4, 4], has [S] bool; models and params of the cameras, camera the index of each view's; xyz
    [P, 3] points with
    error_px [P] and the measurements point, view [O] and xy [O, 2]. `report` holds plain values: "start" (whether it
    began from the given poses), "matches", "before" and "after" (accept.Fit as dictionaries), "parts" and "doubts" (of
    judge.Verdict), "misplaced" (views whose known poses contradict the matches), "notes" (code and text of each),
    "again" (a point and a view that shows it, too, though no match says so: again.py), and "zooms" where the lens of a
    video does.
    """

    cam_from_world: np.ndarray
    has: np.ndarray
    models: tuple[str, ...]
    params: tuple[tuple[float, ...], ...]
    camera: tuple[int, ...]
    xyz: np.ndarray
    error_px: np.ndarray
    point: np.ndarray
    view: np.ndarray
    xy: np.ndarray
    report: dict

    @property
    def trusted(self) -> np.ndarray:
        """Whether the model's pose of each view [S] is trusted."""
        return np.array([reason is None for reason in self.report["doubts"]], bool)

    def with_doubts(self, views: Collection[int], reason: str) -> Answer:
        """The same with more views that are not trusted."""
        doubts = [reason if view in views else doubt for view, doubt in enumerate(self.report["doubts"])]
        return replace(self, report={**self.report, "doubts": doubts})

    def behind(self, past: int) -> Answer:
        """The answer for the views behind so many first ones, and all points."""
        of_views = ("view_matches", "view_inliers", "view_error_px")
        fits = {
            key: {**self.report[key], **{name: self.report[key][name][past:] for name in of_views}}
            for key in ("before", "after")
        }
        more = {key: self.report[key][past:] for key in ("parts", "doubts")}
        seen = self.view >= past
        return replace(
            self,
            cam_from_world=self.cam_from_world[past:],
            has=self.has[past:],
            camera=self.camera[past:],
            point=self.point[seen],
            view=self.view[seen] - past,
            xy=self.xy[seen],
            report={**self.report, **fits, **more},
        )

    def with_note(self, code: str, note: str) -> Answer:
        """The same with one more note for the user, which becomes a warning of this code."""
        return replace(self, report={**self.report, "notes": [*self.report["notes"], (code, note)]})

    def with_zoom(self) -> Answer:
        """The same, of a video during which the lens zooms."""
        return replace(self, report={**self.report, "zooms": True})

    def of_trusted(self) -> Answer:
        """The answer without measurements of untrusted views, and without points seen by fewer than two other views."""
        kept = self.trusted[self.view]
        kept &= np.bincount(self.point[kept], minlength=len(self.xyz))[self.point] > 1
        used, point = np.unique(self.point[kept], return_inverse=True)
        return replace(
            self,
            xyz=self.xyz[used],
            error_px=self.error_px[used],
            point=point.astype(np.int32),
            view=self.view[kept],
            xy=self.xy[kept],
        )

    def write(self, folder: Path) -> None:
        """Write answer.npz atomically: it may be read at any time."""
        names = ("cam_from_world", "has", "xyz", "error_px", "point", "view", "xy")
        plain = json.dumps({n: getattr(self, n) for n in ("models", "params", "camera", "report")})
        np.savez(folder / "answer.part.npz", plain=np.array(plain), **{name: getattr(self, name) for name in names})
        os.replace(folder / "answer.part.npz", folder / "answer.npz")

    @classmethod
    def read(cls, folder: Path) -> Answer | None:
        """Read the answer; None if there is none yet."""
        if not (folder / "answer.npz").is_file():
            return None
        with np.load(folder / "answer.npz") as stored:
            arrays = dict(stored)
        plain = json.loads(str(arrays.pop("plain")))
        params = tuple(tuple(values) for values in plain["params"])
        return cls(
            **arrays,
            models=tuple(plain["models"]),
            params=params,
            camera=tuple(plain["camera"]),
            report=plain["report"],
        )
