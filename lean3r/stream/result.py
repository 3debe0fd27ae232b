"""What one window says about one keyframe, on its own and as arrays of a saved state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lean3r.geometry.lens import Optics, bends_lines
from lean3r.stream import sim3
from lean3r.stream.join import Join, Shared, join
from lean3r.stream.pictures import Keyframe
from lean3r.types import Lens, Reconstruction, Source

LEAST_SURE = 2  # certain cameras by which a window is joined, if it shares so many
_PLAIN = ("is_certain", "is_registered", "is_adjusted", "travelled", "moving_s")
_ARRAYS = ("pose", "intrinsics", "depth", "conf", "image")


@dataclass(eq=False)
class Result:
    """A keyframe in a window: its `pose` [4, 4] in the window's world, intrinsics [3, 3] of `image` [H, W, 3] uint8,
    depth and conf [H, W] float32 (0 where unknown), without padding; whether its camera is trusted, whether
    refinement, if there was any, registered it, and whether that adjusted the window's cameras to matches. `travelled`
    and `moving_s` say how far, and for how many seconds, the picture of the stream had moved. `lens` is the whole
    camera in pixels of the frame if it bends lines, of which `intrinsics` are then the pinhole part."""

    keyframe: Keyframe
    source: Source
    pose: np.ndarray
    intrinsics: np.ndarray
    depth: np.ndarray
    conf: np.ndarray
    image: np.ndarray
    is_certain: bool
    is_registered: bool
    is_adjusted: bool = False
    travelled: float = 0.0
    moving_s: float = 0.0
    lens: Lens | None = None

    @property
    def original_intrinsics(self) -> np.ndarray:
        """Intrinsics [3, 3] in pixels of the frame."""
        return self.source.original_intrinsics(self.intrinsics)

    @property
    def shown(self) -> Source:
        """The source under the name that its picture has in every output."""
        return replace(self.source, name=self.keyframe.shown)

    @property
    def camera(self) -> tuple[np.ndarray, Lens | None]:
        """Intrinsics [3, 3] and lens in pixels of the frame."""
        return self.original_intrinsics, self.lens

    @property
    def optics(self) -> Optics:
        """The camera of `image`, as that of view 0."""
        return optics_of(self.source, self.intrinsics, self.lens)

    @property
    def slopes(self) -> np.ndarray:
        """(x / z, y / z) [H, W, 2] of the rays through the pixels of `image`."""
        return self.optics.slopes(0, *self.depth.shape)

    @property
    def bytes(self) -> int:
        """Of its arrays."""
        return self.keyframe.pixels.nbytes + sum(getattr(self, name).nbytes for name in _ARRAYS)

    def take(self, other: Result, matrix: np.ndarray, is_certain: bool = True) -> None:
        """Take camera and depth from another window, whose world a similarity [4, 4] reaches from this one's."""
        back = np.linalg.inv(matrix)
        self.pose = sim3.move_poses(back, other.pose)
        self.intrinsics, self.lens = other.intrinsics, other.lens
        self.depth, self.conf = other.depth * np.float32(sim3.parts(back)[0]), other.conf
        self.is_certain, self.is_registered = is_certain, True
        self.is_adjusted = other.is_adjusted

    def state(self) -> dict[str, Any]:
        """As arrays and plain values."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return {
            "keyframe": self.keyframe.state(),
            **camera_state(self.source, self.lens),
            **plain,
            **arrays,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Result:
        """From `state`."""
        return cls(**{**state, "keyframe": Keyframe.restored(state["keyframe"]), **restored_camera(state)})


def optics_of(source: Source, intrinsics: np.ndarray, lens: Lens | None) -> Optics:
    """The camera of one network picture."""
    return Optics([source], intrinsics[None], () if lens is None else (lens,))


def camera_state(source: Source, lens: Lens | None) -> dict[str, Any]:
    """As plain values."""
    return {"source": asdict(source), "lens": None if lens is None else asdict(lens)}


def restored_camera(state: Mapping[str, Any]) -> dict[str, Any]:
    """Source and lens from their state."""
    source = {**state["source"], "original_from_network": tuple(state["source"]["original_from_network"])}
    lens = state["lens"]
    return {"source": Source(**source), "lens": lens and Lens(lens["model"], tuple(lens["params"]))}


def join_results(pairs: Sequence[tuple[Result, Result]]) -> Join:
    """The join of two windows by keyframes that both hold, with the rays that lie between both. Those count whose
    cameras both trust; by others it is a bad one. Without any depth in common it goes on from the last camera at the
    same scale."""
    sure = [pair for pair in pairs if all(result.is_certain for result in pair)]
    is_sure = len(sure) >= min(LEAST_SURE, len(pairs))
    used = sure if is_sure else pairs
    found = join(
        [Shared((a.pose, b.pose), (a.depth, b.depth), (a.conf, b.conf), (a.slopes + b.slopes) / 2) for a, b in used],
        all(result.is_adjusted for pair in used for result in pair),
    )
    if found is not None:
        doubt = None if is_sure else f"of {len(pairs)} shared cameras {len(sure)} are certain"
        return replace(found, why_bad=found.why_bad or doubt)
    old, new = pairs[-1]
    return Join.without_evidence(np.linalg.inv(old.pose) @ new.pose, len(pairs), "no shared depth")


def results_of(scene: Reconstruction, keyframes: Sequence[Keyframe]) -> list[Result]:
    """The results of a window, in the order of its keyframes."""
    certain = scene.is_certain
    report = scene.info.get("refinement", {"status": "off"})
    views = report.get("views") or [{}] * len(keyframes)
    is_adjusted = report["status"] not in ("off", "kept")
    results = []
    for view, keyframe in enumerate(keyframes):
        rows, cols = (np.flatnonzero(scene.mask[view].any(axis=axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(cols[0])
        inside = slice(top, int(rows[-1]) + 1), slice(left, int(cols[-1]) + 1)
        source, intrinsics = scene.sources[view], scene.intrinsics[view].copy()
        lens = scene.lenses[view] if scene.lenses else None
        sx, sy, ox, oy = source.original_from_network
        intrinsics[:2, 2] -= left, top
        results.append(
            Result(
                keyframe,
                replace(source, original_from_network=(sx, sy, ox + sx * left, oy + sy * top)),
                scene.cam_from_world[view].astype(np.float64),
                intrinsics.astype(np.float64),
                np.ascontiguousarray(scene.depth[view][inside]),
                np.ascontiguousarray(scene.conf[view][inside]),
                np.ascontiguousarray(scene.images[view][inside]),
                bool(certain[view]),
                views[view].get("part", 0) != -1,
                is_adjusted,
                lens=lens if lens is not None and bends_lines(lens) else None,
            )
        )
    return results
