"""What a user may choose about the files that are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lean3r.errors import UsageError

if TYPE_CHECKING:
    from lean3r.inputs.originals import Originals


@dataclass(frozen=True)
class ExportOptions:
    """Choices for the exporters; each exporter reads only those that concern it.

    - `shared_camera`: one camera for all views in COLMAP's and nerfstudio's files (pictures of one size only).
    - `originals`: the pictures to write into images/ beside the COLMAP model or transforms.json (None: none are).
    - `undistort`: pinhole cameras there, and pictures as these would have taken them.
    - `image_factors`: with `undistort`, also these pictures at 1/2, 1/4, ... of the size, in `images_2/`, `images_4/`
    - `colmap_points`: at most so many points of the depth maps go to COLMAP (its tools are slow with millions), beside
      the triangulated ones of a refinement.
    - `mesh_voxel`: size of the mesh's cells in world units (None: what the depth maps resolve).
    """

    shared_camera: bool = False
    originals: Originals | None = None
    undistort: bool = False
    image_factors: tuple[int, ...] = (2, 4, 8)
    colmap_points: int = 50_000
    mesh_voxel: float | None = None

    def __post_init__(self) -> None:
        if min(self.image_factors, default=2) < 2 or len(set(self.image_factors)) < len(self.image_factors):
            raise UsageError(f"image_factors are {self.image_factors}; expected different whole numbers from 2 on.")
        if self.colmap_points < 0:
            raise UsageError(f"colmap_points is {self.colmap_points}; expected 0 or more.")
        if self.mesh_voxel is not None and not self.mesh_voxel > 0:
            raise UsageError(f"mesh_voxel is {self.mesh_voxel}; expected more than 0.")
