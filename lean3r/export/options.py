"""What a user may choose about the files that are written."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lean3r.errors import UsageError
from lean3r.options import check_types, option

if TYPE_CHECKING:
    from lean3r.inputs.pictures import Pictures

Images = Literal["auto", "always", "never"]
PictureUse = Literal["no", "beside", "needed"]  # whether a format works with the pictures, or not without copies


def parse_factors(text: str) -> tuple[int, ...]:
    """Factors from "2,4,8" or "none"; UsageError for anything else."""
    try:
        return () if text == "none" else tuple(int(n) for n in text.split(","))
    except ValueError as error:
        raise UsageError(f"--image-factors is {text}; expected such as 2,4,8, or none.") from error


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Choices for the exporters; each exporter reads only those that concern it.

    - `shared_camera`: one camera for all views in COLMAP's and nerfstudio's files (pictures of one size only).
    - `images`: when a command hands the pictures on to be written into images/, beside the COLMAP model or
      transforms.json.
    - `undistort`: pinhole cameras there, and pictures as these would have taken them.
    - `image_factors`: with `undistort`, also these pictures at 1/2, 1/4, ... of the size, in `images_2/`, `images_4/`
    - `colmap_points`: at most so many points of the depth maps go to COLMAP (its tools are slow with millions), beside
      the triangulated ones of a refinement.
    - `mesh_voxel`: size of the mesh's cells in world units (None: what the depth maps resolve).
    - `pictures`: those that the scene was made from, to be written into images/ (None: none are).
    """

    shared_camera: bool = option(False, "COLMAP, nerfstudio: write one camera for all pictures (of one size).")
    images: Images = option(
        "auto",
        "Write the used pictures to images/; auto: if they come from videos or archives, or for nerfstudio.",
    )
    undistort: bool = option(False, "COLMAP, nerfstudio: write pinhole cameras, and undistorted pictures to images/.")
    image_factors: tuple[int, ...] = option(
        (2, 4, 8),
        "With --undistort: also write the pictures at 1/N of their size, to images_N/ (for gsplat and nerfstudio).",
        "N,N,...|none",
        parse=parse_factors,
    )
    colmap_points: int = option(
        50_000, "COLMAP: write at most N points from the depth maps, besides triangulated points.", "N"
    )
    mesh_voxel: float | None = None
    pictures: Pictures | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if min(self.image_factors, default=2) < 2 or len(set(self.image_factors)) < len(self.image_factors):
            raise UsageError(f"image_factors are {self.image_factors}; expected different whole numbers from 2 on.")
        if self.colmap_points < 0:
            raise UsageError(f"colmap_points is {self.colmap_points}; expected 0 or more.")
        if self.mesh_voxel is not None and not self.mesh_voxel > 0:
            raise UsageError(f"mesh_voxel is {self.mesh_voxel}; expected more than 0.")

    def check(self, uses: Collection[PictureUse]) -> None:
        """UsageError if the options contradict the formats, given what these want the pictures for."""
        if self.undistort and not self.copies_frames(uses):
            raise UsageError(
                "--undistort writes pictures beside colmap or nerfstudio: ask for one, without --images never."
            )

    def copies_frames(self, uses: Collection[PictureUse]) -> bool:
        """Whether frames of a video, which are no files yet, are written beside such formats."""
        return self.images != "never" and bool(set(uses) - {"no"})

    def with_pictures(self, pictures: Pictures, uses: Collection[PictureUse]) -> ExportOptions:
        """The same, with these pictures if they are to be written beside such formats."""
        wanted = self.undistort or "needed" in uses or not pictures.are_loose_files
        if self.copies_frames(uses) and (wanted or self.images == "always"):
            return replace(self, pictures=pictures)
        return self
