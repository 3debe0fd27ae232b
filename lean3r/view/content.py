"""What a page shows of one result, whether it comes from a folder or straight from a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
from PIL import Image

from lean3r.export.depth import picture_region
from lean3r.geometry.lens import LENSES, Optics
from lean3r.types import Lens, Reconstruction, Source

REGISTRATIONS = ("refined", "fallback", "given", "predicted", "uncertain")
NAMED = 3  # inputs in a title
BENT = 8  # cells along each side of the grid that shows how a lens bends a picture


@dataclass(frozen=True)
class Camera:
    """One view: its source, its pose cam_from_world [4, 4], rays [N, N, 2] (x / z, y / z) on a regular grid from corner
    to corner of the original picture (2 x 2 for a pinhole), its registration, the side of one of its pixels at depth 1,
    and its lens if that is known."""

    source: Source
    pose: np.ndarray
    rays: np.ndarray
    registration: str
    footprint: float
    lens: Lens | None = None

    @property
    def centre(self) -> np.ndarray:
        """Where it was, in world units [3]."""
        return -self.pose[:3, :3].T @ self.pose[:3, 3]


@dataclass(frozen=True)
class Points:
    """xyz [P, 3] in world units, rgb [P, 3] uint8, conf [P] float32, normals [P, 3] (0 where unknown), view [P] int32
    (-1 where unknown)."""

    xyz: np.ndarray
    rgb: np.ndarray
    conf: np.ndarray
    normals: np.ndarray
    view: np.ndarray

    def __len__(self) -> int:
        return len(self.xyz)

    def __getitem__(self, chosen: np.ndarray) -> Points:
        return Points(*(getattr(self, each.name)[chosen] for each in fields(self)))

    @classmethod
    def none(cls) -> Points:
        """No points."""
        nothing = np.zeros((0, 3), np.float32)
        return cls(nothing, nothing.astype(np.uint8), nothing[:, 0], nothing, nothing[:, 0].astype(np.int32))


@dataclass(frozen=True)
class Surface:
    """A mesh: xyz [V, 3] in world units, rgb [V, 3] uint8, faces [F, 3]."""

    xyz: np.ndarray
    rgb: np.ndarray
    faces: np.ndarray


class Album(Protocol):
    """The pictures of the views, read when they are asked for; None where there are none."""

    def photo(self, view: int, side: int) -> Image.Image | None:
        """The whole picture, its longer side about `side` pixels or less."""
        ...

    def depth(self, view: int) -> np.ndarray | None:
        """z-depth [H, W] of the whole picture, 0 where unknown."""
        ...

    def conf(self, view: int) -> np.ndarray | None:
        """Confidence [H, W] of the whole picture, 0 where unknown."""
        ...


@dataclass(frozen=True)
class Content:
    """A result to be shown. `facts` are (label, text) for people, `notes` say what is missing or uncertain, `up`
    [3] is recorded with it, if at all; `is_done`: nothing will be added."""

    title: str
    cameras: tuple[Camera, ...]
    points: Points
    album: Album
    scale: str = "relative"
    surface: Surface | None = None
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    up: np.ndarray | None = None
    is_done: bool = True


def of_scene(scene: Reconstruction, title: str | None = None) -> Content:
    """A scene as it is in memory, with the pictures that it holds; the usual title are the names of its inputs."""
    registration = scene.registration or ("predicted",) * len(scene.sources)
    cameras = tuple(
        make_camera(source, pose, k, state, lens)
        for source, pose, k, state, lens in zip(
            scene.sources, scene.cam_from_world, scene.intrinsics, registration,
            scene.lenses or (None,) * len(scene.sources), strict=True,
        )
    )  # fmt: skip
    cloud = scene.points
    points = Points(cloud.xyz, cloud.rgb, cloud.conf, cloud.normals, cloud.view)
    warnings = [warning_text(warning) for warning in scene.info.get("warnings", ())]
    facts = [("views", f"{len(cameras):,}"), ("points", f"{len(points):,}"), ("scale", scale_text(scene.scale))]
    facts += facts_of(scene.info)
    title = title or title_of(scene) or "reconstruction"
    return Content(
        title, cameras, points, SceneAlbum(scene), scene.scale, None, tuple(facts), tuple(warnings),
        recorded_up(scene.info),
    )  # fmt: skip


def title_of(scene: Reconstruction) -> str:
    """The names of the inputs of a scene, at most NAMED of them; empty if they are not recorded."""
    names = [input_name(str(each)) for each in scene.info.get("config", {}).get("inputs") or []]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")


def input_name(source: str) -> str:
    """The last two parts of a path, because many folders of pictures are called "images"."""
    return "/".join(PurePath(source).parts[-2:]).removeprefix("//") or "reconstruction"


def recorded_up(about: Mapping[str, Any]) -> np.ndarray | None:
    """The unit vector [3] up that a manifest, or `info` of a scene, records; None if there is none."""
    up, gps = about.get("up"), about.get("gps")
    values = up.get("direction") if isinstance(up, dict) else None
    if values is None and isinstance(gps, dict) and "y down" in str(gps.get("axes")):
        values = [0.0, -1.0, 0.0]
    if not isinstance(values, list | tuple) or len(values) != 3:
        return None
    if not all(isinstance(value, int | float) for value in values):
        return None
    vector = np.array(values, np.float64)
    length = float(np.linalg.norm(vector))
    return vector / length if np.isfinite(length) and length > 1e-9 else None


def facts_of(about: dict) -> list[tuple[str, str]]:
    """(label, text) of what a manifest, or `info` of a scene, says of the run."""
    facts = []
    for label, key in (("model", "model"), ("licence", "licence"), ("device", "device"), ("made by lean3r", "lean3r")):
        if isinstance(about.get(key), str):
            facts.append((label, about[key]))
    refinement = about.get("refinement")
    if isinstance(refinement, dict) and isinstance(refinement.get("status"), str):
        error = refinement.get("error_px")
        after = error.get("after") if isinstance(error, dict) else None
        more = f", reprojection error {after:.2f} px" if isinstance(after, int | float) else ""
        facts.append(("refinement", refinement["status"] + more))
    return facts


def warning_text(warning: object) -> str:
    """One warning of a manifest in words."""
    text = warning.get("text") if isinstance(warning, dict) else None
    return text if isinstance(text, str) else str(warning)


def scale_text(scale: str) -> str:
    """What a unit of length means."""
    return {"metric": "metres", "aligned": "that of the given cameras"}.get(scale, "relative: the unit is unknown")


def make_camera(source: Source, pose: np.ndarray, k: np.ndarray, registration: str, lens: Lens | None = None) -> Camera:
    """A camera from its intrinsics k [3, 3] in network pixels, or its lens in pixels of the original picture."""
    whole = np.array([source.width, source.height], dtype=np.float64)
    cells = 1 if lens is None or lens.model in ("PINHOLE", "SIMPLE_PINHOLE") else BENT
    # A picture of as many pixels as the grid has corners, whose pixel centres are those corners.
    step = whole / cells
    original = source.original_intrinsics(k)
    scaled = Source(source.name, source.width, source.height, (*step, *(-step / 2)))
    on_grid = np.array([[1 / step[0], 0, 0.5], [0, 1 / step[1], 0.5], [0, 0, 1]]) @ original
    rays = Optics([scaled], on_grid[None], () if lens is None else (lens,)).slopes(0, cells + 1, cells + 1)
    if not np.isfinite(rays).all():
        rays = Optics([scaled], on_grid[None]).slopes(0, cells + 1, cells + 1)
    fx, fy = k[0, 0], k[1, 1]
    footprint = float(1 / np.sqrt(abs(fx * fy)))
    return Camera(source, np.asarray(pose, np.float64), rays.copy(), registration, footprint, lens)


def lens_of(model: Any, params: Any) -> Lens | None:
    """A stored lens; None if there is none, or it cannot be one."""
    focals, more = LENSES.get(str(model), (0, 0))
    values = np.asarray(params, np.float64).ravel()[: focals + 2 + more]
    is_sound = focals and len(values) == focals + 2 + more and np.isfinite(values).all() and (values[:focals] > 0).all()
    return Lens(str(model), tuple(values.tolist())) if is_sound else None


def whole_map(values: np.ndarray, source: Source, side: int, resample: int = Image.Resampling.NEAREST) -> np.ndarray:
    """A map [H, W] or picture [H, W, 3] in network pixels as one of the whole original picture; 0 outside."""
    sx, sy, ox, oy = source.original_from_network
    share = min(1.0, side / max(source.width, source.height))
    size = max(1, round(source.width * share)), max(1, round(source.height * share))
    box = (-ox / sx, -oy / sy, (source.width - ox) / sx, (source.height - oy) / sy)
    picture = Image.fromarray(values)
    return np.asarray(picture.transform(size, Image.Transform.EXTENT, box, resample))


@dataclass(frozen=True)
class SceneAlbum:
    """The pictures, depth and confidence of a scene, at the size of the network's pictures."""

    scene: Reconstruction = field(repr=False)

    def _shown(self, values: np.ndarray, view: int, resample: int) -> np.ndarray:
        rows, cols = picture_region(self.scene.mask[view])
        side = max(rows.stop - rows.start, cols.stop - cols.start)
        return whole_map(values, self.scene.sources[view], side, resample)

    def photo(self, view: int, side: int) -> Image.Image | None:
        """See Album."""
        picture = Image.fromarray(self._shown(self.scene.images[view], view, Image.Resampling.BILINEAR))
        picture.thumbnail((side, side))
        return picture

    def depth(self, view: int) -> np.ndarray | None:
        """See Album."""
        values = self.scene.depth[view]
        return self._shown(np.nan_to_num(values), view, Image.Resampling.NEAREST) if values.any() else None

    def conf(self, view: int) -> np.ndarray | None:
        """See Album."""
        values = self.scene.conf[view]
        return self._shown(np.nan_to_num(values), view, Image.Resampling.NEAREST) if values.any() else None
