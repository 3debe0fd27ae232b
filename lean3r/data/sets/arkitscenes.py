"""ARKitScenes: rooms filmed with the colour and LiDAR cameras of a tablet, held in any orientation.

Principal points are relative to the corner of the picture, as in Apple's reference of ARCamera.intrinsics
(developer.apple.com/documentation/arkit/arcamera/intrinsics). The set's own tools, threedod/benchmark_scripts of
apple/ARKitScenes, have pixel centres at integers, a difference of half a pixel of 256.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lean3r.data.sets.formats.files import read_depth_png, read_image, read_matrix, read_text
from lean3r.data.sets.scenes import (
    Camera,
    FolderSet,
    Frame,
    RawView,
    check_camera,
    fit_intrinsics,
    folders,
    pinhole,
)
from lean3r.errors import InputError
from lean3r.geometry.rotation import so3_exp

MILLIMETRES = 1000.0
POSE_TOLERANCE_S = 0.005


@dataclass(frozen=True, eq=False, kw_only=True)
class TabletFrame(Frame):
    """A view with its intrinsics in the file `lens`, to be rotated by `quarters` quarter turns anticlockwise."""

    lens: Path
    quarters: int


class ArkitScenes(FolderSet[TabletFrame]):
    """One scene per video ("Training/41048190"), with pictures of 256 x 192 pixels and the tablet's depth.

    Frames have a pose within 5 ms: about ten per second. `upright` rotates all pictures of a video by the same quarter
    turns, so that they are as upright as possible.
    """

    name = "arkitscenes"
    title = "ARKitScenes"
    licence = "CC BY-NC-SA 4.0; see the set's page: the licence of the repository apple/ARKitScenes"
    source = "ARKitScenes: download_data.py of the repository apple/ARKitScenes, the sets raw or 3dod"
    layout = (
        "{Training,Validation}/<video>/ (raw) or {Training,Validation}/<video>/<video>_frames/ (3dod) with "
        "lowres_wide/, lowres_depth/, lowres_wide_intrinsics/ and lowres_wide.traj; perhaps below raw/ or 3dod/"
    )
    parts = ("lowres_wide", "lowres_depth", "lowres_wide_intrinsics", "lowres_wide.traj")
    is_metric = True
    is_ordered = True

    def __init__(self, root: str | Path, upright: bool = True, scenes: Sequence[str] | None = None) -> None:
        self.upright = upright
        super().__init__(root, scenes)

    @classmethod
    def places(cls, root: Path) -> list[Path]:
        """Videos of both splits, below the root, raw/ or 3dod/."""
        splits = [base / split for base in (root, root / "raw", root / "3dod") for split in ("Training", "Validation")]
        videos = [video for split in splits for video in folders(split)]
        inner = [video / f"{video.name}_frames" for video in videos]
        framed = [frames if frames.is_dir() else video for video, frames in zip(videos, inner, strict=True)]
        return cls.with_any_part(framed)

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences if fewer than two pictures have depth, and for times with a pose but not all three files."""
        pictures, depth = ({path.stem for path in (place / part).glob("[!.]*.png")} for part in cls.parts[:2])
        if len(pictures & depth) < 2:
            return [f"{place} has {len(pictures & depth)} pictures with depth; a scene needs two"]
        lenses = _lenses(place)
        try:
            times, _ = _trajectory(place / "lowres_wide.traj")
            lacking = (pictures ^ depth) | {name for name in pictures if _lens_of(name, lenses) is None}
            # Frames without a pose, most of a raw video, are not used whether or not they are complete.
            lost = sorted(name for name in lacking if np.abs(times - _time(name)).min() <= POSE_TOLERANCE_S)
        except InputError as error:
            return [str(error)]
        what = f"frames of {place} have a pose, but lack their picture, depth or intrinsics"
        return [f"{len(lost)} {what}, e.g. {lost[0]}"] if lost else []

    def frames(self, scene: str) -> Sequence[TabletFrame]:
        """The frames with picture, depth, intrinsics and a pose, in time order."""
        folder = self.root / scene
        times, poses = _trajectory(folder / "lowres_wide.traj")
        quarters = _quarters_up(poses) if self.upright else 0
        lenses = _lenses(folder)
        depths = {path.name: path for path in (folder / "lowres_depth").glob("[!.]*.png")}
        frames = []
        for picture in sorted((folder / "lowres_wide").glob("[!.]*.png"), key=lambda path: _time(path.stem)):
            time = _time(picture.stem)
            closest = int(np.abs(times - time).argmin())
            lens = _lens_of(picture.stem, lenses)
            if abs(times[closest] - time) <= POSE_TOLERANCE_S and lens is not None and picture.name in depths:
                # Each picture has its own file of intrinsics, which is read with the view.
                posed = Camera(np.eye(3), poses[closest], 0, 0)
                files = picture, posed, depths[picture.name]
                frames.append(TabletFrame(*files, time, lens=lens, quarters=quarters))
        if not frames:
            raise InputError(f"no picture in {folder} has depth, intrinsics and a pose; expected {self.layout}")
        return frames

    def camera(self, scene: int, view: int) -> Camera:
        """The camera of a view, rotated upright; InputError if its intrinsics cannot be read."""
        frame = self._frames_of(scene)[view]
        camera = _turn(_camera(frame.lens, frame.camera.cam_from_world), frame.quarters)
        return check_camera(camera, f"{self.ids[scene]}, {frame.image.name}")

    def view(self, scene: int, view: int) -> RawView:
        """Read one view, rotated upright."""
        frame, camera = self._frames_of(scene)[view], self.camera(scene, view)
        picture = read_image(frame.image)
        stored = picture, self.depth_of(frame, *picture.shape[:2])
        image, depth = (np.ascontiguousarray(np.rot90(each, frame.quarters)) for each in stored)
        height, width = image.shape[:2]
        return RawView(image, depth, fit_intrinsics(camera, width, height, frame.image), camera.cam_from_world)

    def read_depth(self, frame: TabletFrame) -> np.ndarray:
        """Depth in metres; files have millimetres."""
        assert frame.depth is not None
        return read_depth_png(frame.depth, MILLIMETRES)


def _time(stem: str) -> float:
    """Time in seconds from a name like 41048190_3414.917."""
    try:
        return float(stem.rsplit("_", 1)[1])
    except (IndexError, ValueError) as error:
        raise InputError(f"{stem} is not a file name of ARKitScenes; expected <video>_<seconds>") from error


def _lenses(folder: Path) -> dict[str, Path]:
    """{name: file of intrinsics} of a video."""
    return {path.stem: path for path in (folder / "lowres_wide_intrinsics").glob("[!.]*.pincam")}


def _lens_of(stem: str, lenses: dict[str, Path]) -> Path | None:
    """The file of intrinsics of a picture; the time in its name may differ by a millisecond."""
    video, time = stem.rpartition("_")[0], _time(stem)
    names = [stem, *(f"{video}_{time + off:.3f}" for off in (-0.001, 0.001))]
    return next((lenses[name] for name in names if name in lenses), None)


def _trajectory(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times [P] in seconds and cam_from_world [P, 4, 4] in metres, in OpenCV's axes, as in the file."""
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    try:
        rows = np.array([[float(word) for word in line] for line in lines]).reshape(-1, 7)
    except ValueError as error:
        raise InputError(f"{path} is not a trajectory: expected seven numbers per line ({error})") from error
    if not len(rows) or not np.isfinite(rows).all():
        raise InputError(f"{path} has no pose, or one that is not finite; expected seven finite numbers per line")
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = so3_exp(torch.from_numpy(rows[:, 1:4].copy())).numpy()
    poses[:, :3, 3] = rows[:, 4:]
    return rows[:, 0], poses


def _camera(lens: Path, pose: np.ndarray) -> Camera:
    # In ARKit the principal point is relative to the corner of the picture, as in our convention.
    width, height, *numbers = read_matrix(lens, 1, 6)[0]
    return Camera(pinhole(*numbers), pose, int(width), int(height))


def _quarters_up(poses: np.ndarray) -> int:
    """Number of anticlockwise quarter turns that bring the pictures of a video nearest to upright: the world's up is z,
    a camera's is -y."""
    up = poses[:, :3, 2].mean(0)  # the world's up in camera axes
    angle = np.arctan2(up[0], -up[1])  # of up, clockwise from the top of the picture
    return round(float(angle) / (np.pi / 2)) % 4


def _turn(camera: Camera, quarters: int) -> Camera:
    """The camera of np.rot90(picture, quarters)."""
    k, pose, width, height = camera.intrinsics.copy(), camera.cam_from_world.copy(), camera.width, camera.height
    # A point at (x, y) goes to (y, width - x): the camera's x axis becomes -y, and its y axis x.
    quarter = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for _ in range(quarters):
        k = pinhole(k[1, 1], k[0, 0], k[1, 2], width - k[0, 2])
        pose[:3] = quarter @ pose[:3]
        width, height = height, width
    return Camera(k, pose, width, height)
