"""Options of a run: known cameras, the network, and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lean3r.errors import UsageError
from lean3r.options import check_seed, check_types, option

if TYPE_CHECKING:
    from lean3r.inputs.given import GivenCameras
    from lean3r.models.base import Backbone

Part = Literal["both", "intrinsics", "poses"]
KnownPoses = Literal["fixed", "start"]
Measure = Literal["exact", "dtype", "plan", "resolution", "views"]
Intrinsics = str | Path | Sequence[float]
REFERENCES = ("auto", "first", "middle")


@dataclass(frozen=True, kw_only=True)
class CameraOptions:
    """Known cameras.

    `cameras` is a file (inputs/cameras.py) or the cameras themselves; `known` selects their intrinsics, their poses or
    both. `intrinsics` applies to all pictures and takes precedence over `cameras`: (fx, fy, cx, cy) in pixels of the
    originals, or a JSON file. The result contains the known values, in the world of the known poses. Refinement holds
    them fixed; with `known_poses` "start" it starts from the known poses and adjusts them.
    """

    cameras: str | Path | GivenCameras | None = option(
        None,
        "Known cameras: cameras.json, transforms.json, a COLMAP model or a TUM trajectory; matched by name or time.",
        "PATH",
        parse=Path,
    )
    known: Part = option("both", "What to use of --cameras; both: whatever it holds.")
    intrinsics: Intrinsics | None = option(
        None,
        "Known intrinsics of all pictures, in their pixels: four numbers, or a JSON file (fx, fy, cx, cy, k1, ...).",
        "FX,FY,CX,CY|FILE",
        parse=str,
    )
    known_poses: KnownPoses = option(
        "fixed", "Hold the known poses fixed, or let refinement start from them and adjust them (start)."
    )

    def __post_init__(self) -> None:
        check_types(self)
        if self.known != "both" and self.cameras is None:
            raise UsageError(f"--known {self.known} selects parts of --cameras, which is missing; give both.")
        if self.known_poses != "fixed" and (self.cameras is None or self.known == "intrinsics"):
            raise UsageError(
                f"--known-poses {self.known_poses} needs poses; give --cameras, without --known intrinsics."
            )

    @property
    def are_given(self) -> bool:
        """Whether any cameras or intrinsics are given."""
        return self.cameras is not None or self.intrinsics is not None


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How the network runs.

    `resolution` is the side in pixels of a square with the area of its pictures (None: the model's own).
    `reference_view` is the index of the view that it starts from, "first", "middle", or "auto" for the model's own
    choice. `seed` seeds all random numbers.
    """

    resolution: int | None = option(
        None,
        "Size of the network's pictures: the side of a square of equal area (default: the model's own).",
        "PIXELS",
    )
    reference_view: int | str = option(
        "auto",
        "The view that the network starts from (VGGT and Depth Anything 3); INDEX counts from 0.",
        "auto|first|middle|INDEX",
        parse=lambda text: int(text) if text.isdecimal() else text,
    )
    seed: int = option(0, "Random seed.", "N")

    def __post_init__(self) -> None:
        check_types(self)
        if isinstance(self.reference_view, str) and self.reference_view not in REFERENCES:
            raise UsageError(f"reference_view is '{self.reference_view}'; expected an index, {', '.join(REFERENCES)}.")
        check_seed(self.seed)

    def check(self, model: Backbone) -> None:
        """Raise UsageError if a model cannot run with these options."""
        if self.resolution is not None and self.resolution < model.patch:
            least = f"at least {model.patch}, one patch of {model.name}"
            raise UsageError(f"resolution is {self.resolution}; expected {least}.")
        if self.reference_view != "auto" and model.REFERENCE is None:
            raise UsageError(model.no_reference)

    def reference(self, views: int) -> int | None:
        """The index of the reference view among `views` views; None for the model's own choice."""
        if isinstance(self.reference_view, int):
            return self.reference_view
        return {"auto": None, "first": 0, "middle": views // 2}[self.reference_view]


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """How much memory a run may take, and which changes are allowed to stay within it."""

    memory: str | None = option(
        None,
        "Stay within this much memory (8GB, 6GiB; of the GPU, if one is used), by the mildest change that suffices.",
        "SIZE",
    )
    memory_allow: Measure = option(
        "views",
        "The strongest change that --memory may make: chunks (exact), half precision, 8-bit weights, size, views.",
    )

    def __post_init__(self) -> None:
        check_types(self)
        if self.memory is None and self.memory_allow != "views":
            raise UsageError(f"--memory-allow {self.memory_allow} limits the changes for --memory, which is missing.")
