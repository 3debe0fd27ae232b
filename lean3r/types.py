"""The four types of the data flow: Views -> Tokens -> Prediction -> Reconstruction.

Conventions (docs/conventions.md): OpenCV camera axes (x right, y down, z forward); `cam_from_world` maps
world points into the camera; depth is z-depth; pixel coordinates put the centre of the top-left pixel at
(0.5, 0.5); intrinsics are in pixels of the image they are stored with.

Shape letters: B scenes, S views, H rows, W columns, T tokens a view, C channels, P points.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from lean3r.options import PointOptions
from lean3r.page_frame import Frame
from lean3r.registry import Registry
from lean3r.windows import Windows, window_order

if TYPE_CHECKING:
    from lean3r.group import Share

# How each type prints. The functions import the types, so they are imported on first use.
_SHOWN = Registry(
    "type",
    {
        "Source": "lean3r.showing:source",
        "Known": "lean3r.showing:known",
        "Views": "lean3r.showing:views",
        "Tokens": "lean3r.showing:tokens",
        "Prediction": "lean3r.showing:prediction",
        "PointCloud": "lean3r.showing:points",
        "SparsePoints": "lean3r.showing:sparse",
        "Reconstruction": "lean3r.showing:reconstruction",
        "a notebook's Reconstruction": "lean3r.export.notebook:page",
        "a page of its own for a Reconstruction": "lean3r.view.html:page",
    },
)

Scale = Literal["metric", "relative", "aligned"]
Registration = Literal["predicted", "refined", "fallback", "given", "uncertain"]


class _Shown:
    """A type whose `repr` is a few lines."""

    def __repr__(self) -> str:
        return _SHOWN.get(type(self).__name__)(self)


@dataclass(frozen=True, repr=False)
class Source(_Shown):
    """Where one view came from, and how its network image maps back to the original picture.

    `original_from_network` is (scale_x, scale_y, offset_x, offset_y): x_original = scale_x * x + offset_x,
    both sides in pixels with the top-left pixel centre at 0.5. `width` and `height` are those of the
    original picture, upright (with the EXIF `orientation`, 1 to 8, applied). `focal_px` is a prior from EXIF in
    original pixels, None if the file has none. `timestamp_s` is the time of a video frame in seconds from the first
    one; None for pictures. `up_in_camera` is the unit vector up in the camera's axes, if the camera measured it and its
    file says so (inputs/gravity.py). `bars` (left, top, right, lower) are the pixels that were cut off the edges of a
    video's frames, None without.
    """

    name: str
    width: int
    height: int
    original_from_network: tuple[float, float, float, float] = (1.0, 1.0, 0.0, 0.0)
    focal_px: float | None = None
    timestamp_s: float | None = None
    orientation: int = 1
    up_in_camera: tuple[float, float, float] | None = None
    bars: tuple[int, int, int, int] | None = None

    def original_intrinsics(self, intrinsics: np.ndarray) -> np.ndarray:
        """Convert an intrinsic matrix [3, 3] from network pixels to pixels of the original picture."""
        sx, sy, ox, oy = self.original_from_network
        return np.array([[sx, 0.0, ox], [0.0, sy, oy], [0.0, 0.0, 1.0]]) @ np.asarray(intrinsics, dtype=np.float64)


@dataclass(frozen=True, repr=False)
class Known(_Shown):
    """Prior knowledge of B scenes of S views; unknown parts are None.

    intrinsics [B, S, 3, 3] in network pixels; cam_from_world [B, S, 4, 4]; depth [B, S, H, W] z-depth, 0 where
    unknown, in the poses' unit of length; rays [B, S, H, W, 3] directions in the camera frame, which replace
    intrinsics if the camera is not a pinhole. The has_* tables [B, S] bool mark the views for which a part is valid
    (None: all). A model uses the parts that it accepts; its documentation names them.
    """

    intrinsics: Tensor | None = None
    cam_from_world: Tensor | None = None
    depth: Tensor | None = None
    rays: Tensor | None = None
    has_intrinsics: Tensor | None = None
    has_pose: Tensor | None = None
    has_depth: Tensor | None = None

    def to(self, device: torch.device | str) -> Known:
        """The same parts with tensors on `device`."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Known(**{name: None if part is None else part.to(device) for name, part in parts.items()})


@dataclass(frozen=True, repr=False)
class Views(_Shown):
    """Network input. images [B, S, 3, H, W] RGB in [0, 1]; mask [B, S, H, W] bool, True on picture pixels
    (None: no padding); sources has S entries if the views come from files (then B is 1); known holds known cameras
    or depth. With `share` they are the views of one process of a group, which all call the model, each with its own."""

    images: Tensor
    mask: Tensor | None = None
    sources: tuple[Source, ...] = ()
    known: Known | None = None
    share: Share | None = None

    def to(self, device: torch.device | str) -> Views:
        """The same views with tensors on `device`."""
        mask = None if self.mask is None else self.mask.to(device)
        known = None if self.known is None else self.known.to(device)
        return Views(self.images.to(device), mask, self.sources, known, self.share)


@dataclass(frozen=True)
class TokenLayout:
    """The order of the T = special + rows * cols tokens of each view: special tokens first, then patches.

    Patches are in row-major order or, if `window` is set, window by window: square windows of that side row
    by row, and row by row inside a window, without padding. valid [B, S, rows * cols], in the same order, is False
    on patches of padding only (None: all valid). With `share`, which blocks across views alone are told, the views are
    those of one process of a group, and tokens attend to the views of all.
    """

    views: int
    special: int
    rows: int
    cols: int
    valid: Tensor | None = None
    window: int | None = None
    share: Share | None = None

    @property
    def alone(self) -> TokenLayout:
        """The layout for what looks inside single views."""
        return self if self.share is None else replace(self, share=None)

    def sequence(self, tokens: int) -> int:
        """Length of the whole sequence of which a block across views has `tokens` here."""
        return tokens if self.share is None else tokens // self.views * self.share.total

    @property
    def patches(self) -> int:
        """Patch tokens in one view."""
        return self.rows * self.cols

    @property
    def tokens(self) -> int:
        """Tokens in one view, including special ones."""
        return self.special + self.patches

    @property
    def windows(self) -> Windows:
        """The windows of the layout's order, on the CPU; single patches if it is row-major."""
        return self.windows_of(self.window or 1)

    def windows_of(self, side: int, device: torch.device | str = "cpu") -> Windows:
        """Windows of any side, as indices into this layout's order; cached."""
        return Windows.of(self.rows, self.cols, self.window, side, torch.device(device))

    def order(self, device: torch.device | str = "cpu") -> Tensor | None:
        """[P] row-major index of each patch; None when the order is row-major."""
        if self.window is None:
            return None
        return window_order(self.rows, self.cols, self.window, torch.device(device))


@dataclass(frozen=True, repr=False)
class Tokens(_Shown):
    """Encoder result: `layers` maps the name of each layer that the heads read to values [B, S, T, C];
    `views` is the network input, which dense heads may read again."""

    layers: dict[str, Tensor]
    layout: TokenLayout
    views: Views


@dataclass(frozen=True, repr=False)
class Prediction(_Shown):
    """A backbone's prediction for B scenes of S views.

    cam_from_world [B, S, 4, 4]; intrinsics [B, S, 3, 3] in network pixels; depth [B, S, H, W] z-depth in
    world units (metres only if `is_metric`); conf [B, S, H, W], at least 1, larger is better, no unit.
    depth and conf are None if only cameras were requested.
    """

    cam_from_world: Tensor
    intrinsics: Tensor
    depth: Tensor | None
    conf: Tensor | None
    is_metric: bool = False


class Plan(Protocol):
    """A compression plan, for rooms that only report it; compress/plan.py has the only implementation."""

    @property
    def name(self) -> str:
        """The plan's own name, or "custom"."""
        ...

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        ...


@dataclass(frozen=True, repr=False)
class PointCloud(_Shown):
    """Fused points. xyz [P, 3] float32 in world units; rgb [P, 3] uint8; conf [P] float32.

    Each point comes from the pixel centre `xy` [P, 2] (network pixels) of view `view` [P] int32. normals [P, 3] float32
    are unit vectors in the world frame, towards the camera of that view; zero where unknown.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    conf: np.ndarray
    view: np.ndarray
    xy: np.ndarray
    normals: np.ndarray


@dataclass(frozen=True)
class Lens:
    """The camera of one view in pixels of its original picture: a COLMAP camera model by name, and its parameters."""

    model: str
    params: tuple[float, ...]


@dataclass(frozen=True, repr=False)
class SparsePoints(_Shown):
    """Triangulated points and their measurements in the pictures.

    xyz [P, 3] float64 in world units; rgb [P, 3] uint8; error_px [P] mean reprojection error in pixels of the
    original pictures. Measurement o: point `point` [O] int32 was observed in view `view` [O] int32 at `xy` [O, 2]
    float64, in pixels of the original picture.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    error_px: np.ndarray
    point: np.ndarray
    view: np.ndarray
    xy: np.ndarray


@dataclass(frozen=True, repr=False)
class Reconstruction(_Shown):
    """A finished scene, on the CPU, in plain arrays.

    images [S, H, W, 3] uint8, the network's pictures, or larger ones (StereoOptions.depth_size), whose pixels then are
    the network pixels of all other parts; mask [S, H, W] bool, False on padding; depth [S, H, W] float32 z-depth in
    world units, 0 where unknown; conf [S, H, W] float32; cam_from_world [S, 4, 4]
    float64; intrinsics [S, 3, 3] float64 in pixels of `images`. `scale` describes the world unit.
    `skipped` lists (name, reason). `info` carries model, settings, seconds by stage and peak memory for
    the manifest, as JSON-ready values. After refinement, or if lenses are known, `lenses` holds a camera for each view
    (empty: pinholes with `intrinsics`). After refinement `sparse` holds the triangulated points. `registration` gives
    the origin of each view's pose: the network ("predicted"), bundle adjustment that started there ("refined"),
    structure from motion alone ("fallback"), or the user ("given"); a pose that may be far off is "uncertain". Empty
    means that all are predicted. `point_options` are those with which `points` are fused, also when fused again.
    """

    sources: tuple[Source, ...]
    images: np.ndarray
    mask: np.ndarray
    depth: np.ndarray
    conf: np.ndarray
    cam_from_world: np.ndarray
    intrinsics: np.ndarray
    points: PointCloud
    scale: Scale = "relative"
    skipped: tuple[tuple[str, str], ...] = ()
    info: dict = field(default_factory=dict)
    lenses: tuple[Lens, ...] = ()
    sparse: SparsePoints | None = None
    registration: tuple[Registration, ...] = ()
    point_options: PointOptions = field(default_factory=PointOptions)

    def _repr_html_(self) -> str:
        return _SHOWN.get("a notebook's Reconstruction")(self)

    def show(self, height: int = 600) -> Frame:
        """A page of the scene in a frame of `height` pixels, which a notebook shows and keeps; `save` writes it."""
        return Frame(_SHOWN.get("a page of its own for a Reconstruction")(self), height)

    @property
    def names(self) -> tuple[str, ...]:
        """The file or frame name of each view."""
        return tuple(s.name for s in self.sources)

    @property
    def is_certain(self) -> np.ndarray:
        """The views that are not marked as uncertain, [S] bool; all views if every one is marked."""
        certain = np.array([r != "uncertain" for r in self.registration or ("predicted",) * len(self.sources)], bool)
        return certain | (not certain.any())

    @property
    def are_given(self) -> bool:
        """Whether the poses of all views are known ones."""
        return bool(self.registration) and set(self.registration) == {"given"}

    @property
    def certain_depth(self) -> np.ndarray:
        """Depth [S, H, W] as the other views may rely on it: 0 in views that are marked as uncertain."""
        return np.where(self.is_certain[:, None, None], self.depth, 0)

    def of_certain(self) -> Reconstruction:
        """The scene without the views that are marked as uncertain, and without their points."""
        certain = self.is_certain
        if certain.all():
            return self
        number = np.cumsum(certain) - 1
        seen = certain[self.points.view]
        points = PointCloud(**{f.name: getattr(self.points, f.name)[seen] for f in fields(self.points)})
        sparse = self.sparse
        if sparse is not None:
            kept = certain[sparse.view]
            view = number[sparse.view[kept]].astype(sparse.view.dtype)
            sparse = replace(sparse, point=sparse.point[kept], view=view, xy=sparse.xy[kept])
        per_view = ("images", "mask", "depth", "conf", "cam_from_world", "intrinsics")
        return replace(
            self,
            **{name: getattr(self, name)[certain] for name in per_view},
            **{
                name: tuple(value for value, kept in zip(getattr(self, name), certain, strict=False) if kept)
                for name in ("sources", "lenses", "registration")
            },
            points=replace(points, view=number[points.view].astype(points.view.dtype)),
            sparse=sparse,
        )

    @property
    def original_intrinsics(self) -> np.ndarray:
        """[S, 3, 3] intrinsics in pixels of the original pictures."""
        return np.stack([s.original_intrinsics(k) for s, k in zip(self.sources, self.intrinsics, strict=True)])


def with_warning(scene: Reconstruction, code: str, text: str, views: Iterable[int] = ()) -> Reconstruction:
    """The scene with one more warning, which is also logged: `info["warnings"]` lists {"code", "text", "views"}.

    `code` is for programs (docs/outputs.md lists them), `text` for people; `views` are the indices of the views
    concerned, stored by name; none means the whole scene. The summary prints warnings first.
    """
    logging.getLogger("lean3r").warning("%s", text)
    warning = {"code": code, "text": text, "views": [scene.names[view] for view in views]}
    return replace(scene, info={**scene.info, "warnings": [*scene.info.get("warnings", ()), warning]})
