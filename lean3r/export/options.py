"""Options for the files that are written."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lean3r.errors import UsageError
from lean3r.options import check_types, option

if TYPE_CHECKING:
    from lean3r.inputs.pictures import Pictures
    from lean3r.types import Source

Images = Literal["auto", "always", "never"]
PictureUse = Literal["no", "beside", "needed"]  # no use of pictures, use of files if they exist, use of copies only
HTML_POINTS = 250_000  # some 3 MB
READ_BY = {
    "shared_camera": ("colmap", "nerfstudio"),
    "colmap_points": ("colmap",),
    "crs": ("las", "laz", "geotiff"),
    "ground_cell": ("geotiff",),
    "html_points": ("html",),
}
"""Options that only these formats read."""

logger = logging.getLogger("lean3r")


def parse_factors(text: str) -> tuple[int, ...]:
    """Factors from "2,4,8" or "none"; UsageError for anything else."""
    try:
        return () if text == "none" else tuple(int(n) for n in text.split(","))
    except ValueError as error:
        raise UsageError(f"--image-factors is {text}; expected numbers like 2,4,8, or none.") from error


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of the exporters; each exporter reads only its own.

    - `shared_camera`: one camera for all views in the files for COLMAP and nerfstudio (pictures of one size only).
    - `images`: when a command writes the pictures to images/, beside the COLMAP model or transforms.json.
    - `undistort`: there, write pinhole cameras and undistorted pictures.
    - `image_factors`: with `undistort`, also write these pictures at 1/2, 1/4, ... of their size, to `images_2/`,
      `images_4/`, ...
    - `colmap_points`: the most points of the depth maps in the COLMAP model (its tools are slow with millions), besides
      the triangulated points of a refinement.
    - `crs`: coordinates of points.las, points.laz, elevation.tif and orthophoto.tif (lean3r.export.geo).
    - `ground_cell`: the side of a cell of the latter two (None: what the depth maps resolve).
    - `html_points`: the most points of the page view.html.
    - `texture`: mesh.glb has the pictures as its texture (lean3r.export.texture), instead of a colour for each vertex.
    - `texture_from`: the pictures that it is taken from (None: those that the network saw).
    - `mesh_voxel`: size of the mesh's cells in world units (None: the size that the depth maps resolve).
    - `pictures`: the pictures of the scene, to be written to images/ (None: write none).
    """

    shared_camera: bool = option(False, "COLMAP, nerfstudio: write one camera for all pictures (of one size).")
    images: Images = option(
        "auto",
        "Write the used pictures to images/; auto: if they come from videos, archives or several folders, if EXIF "
        "turns any of them, or for nerfstudio.",
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
    crs: str = option(
        "auto",
        "LAS, GeoTIFF: the coordinates; auto: UTM if there is GPS, else enu: level axes, z up.",
        "auto|enu|utm|EPSG:N",
    )
    ground_cell: float | None = option(
        None, "GeoTIFF: size of a cell, in metres or world units (default: 1.5 pixels of the depth maps).", "SIZE"
    )
    html_points: int = option(HTML_POINTS, "HTML: the page view.html holds at most N points.", "N")
    texture: bool = option(False, "Mesh: mesh.glb has the pictures as its texture, not a colour for each vertex.")
    texture_from: Pictures | None = None
    mesh_voxel: float | None = None
    pictures: Pictures | None = None

    def __post_init__(self) -> None:
        check_types(self)
        for name, use in (("texture_from", "whole"), ("pictures", "write")):
            if (given := getattr(self, name)) is not None and not hasattr(given, use):
                raise UsageError(f"{name} is {given!r}; expected the Pictures of the scene.")
        if min(self.image_factors, default=2) < 2 or len(set(self.image_factors)) < len(self.image_factors):
            raise UsageError(f"image_factors are {self.image_factors}; expected different whole numbers from 2 on.")
        if self.colmap_points < 0:
            raise UsageError(f"colmap_points is {self.colmap_points}; expected 0 or more.")
        if self.html_points < 0:
            raise UsageError(f"html_points is {self.html_points}; expected 0 or more.")
        if self.mesh_voxel is not None and not self.mesh_voxel > 0:
            raise UsageError(f"mesh_voxel is {self.mesh_voxel}; expected more than 0.")
        if self.ground_cell is not None and not 0 < self.ground_cell < 1e9:
            raise UsageError(f"ground_cell is {self.ground_cell}; expected more than 0.")
        if self.crs != "auto":
            from lean3r.export.geo import check_crs

            check_crs(self.crs)

    def check(self, uses: Collection[PictureUse]) -> None:
        """Raise UsageError if the options contradict the formats, which have these uses of pictures, and
        MissingExtraError if a texture needs packages that are not installed."""
        if self.texture:
            from lean3r.export.unwrap import libraries

            libraries()
        if (self.undistort or self.images == "always") and not self.copies_frames(uses):
            raise UsageError(
                f"{'--undistort' if self.undistort else '--images always'} writes pictures only with the formats "
                "colmap and nerfstudio. Choose one of them, without --images never (in Python undistort=True, "
                "images='always' and images='never')."
            )

    def check_pictures(self) -> None:
        """Raise UsageError if pictures are to be written and nothing says which."""
        asked = "undistort=True" if self.undistort else 'images="always"' if self.images == "always" else ""
        if asked and self.pictures is None:
            raise UsageError(
                f"{asked} writes pictures, and there are none: pictures is None. Pass those of the scene: "
                "ExportOptions(..., pictures=lean3r.Pictures('photos/'))."
            )

    def warn_of_unread(self, formats: Collection[str]) -> None:
        """Log a warning for each option that was chosen and that none of the formats reads, and for factors of pictures
        that are not written."""
        if self.image_factors != type(self).image_factors and not self.undistort:
            logger.warning(
                "--image-factors has no effect without --undistort, which writes pictures to reduce (in Python "
                "image_factors and undistort=True)"
            )
        for name, readers in READ_BY.items():
            if getattr(self, name) != getattr(type(self), name) and not set(readers) & set(formats):
                logger.warning(
                    "--%s (%s in Python) has no effect: only the format %s reads it",
                    name.replace("_", "-"),
                    name,
                    " or ".join(readers),
                )

    def check_place(self, is_located: bool) -> None:
        """Raise UsageError, before any work is done, if `crs` does not exist, or needs a scene with GPS, which this one
        is not to be."""
        from lean3r.export.geo import AUTO, LOCAL, NOT_LOCATED, UTM, registered

        if self.crs in (AUTO, LOCAL):
            return
        if not is_located:
            raise UsageError(NOT_LOCATED.format(self.crs))
        if self.crs != UTM:
            registered(self.crs)

    def check_map(self, places: Sequence[tuple[float, float]]) -> None:
        """Raise InputError, before the network runs, if `crs` is a map of elsewhere than the pictures' places, latitude
        and longitude in degrees."""
        from lean3r.export.geo import check_place

        check_place(self.crs, places)

    def copies_frames(self, uses: Collection[PictureUse]) -> bool:
        """Whether video frames, which are not files yet, are written for formats with these uses of pictures."""
        return self.images != "never" and bool(set(uses) - {"no"})

    def keeps_frames(self, uses: Collection[PictureUse]) -> bool:
        """Whether video frames are needed again after the run."""
        return self.texture or self.copies_frames(uses)

    def with_pictures(
        self, pictures: Pictures, uses: Collection[PictureUse], sources: Sequence[Source]
    ) -> ExportOptions:
        """The same options, with these pictures, whose views have such sources, if the texture or formats with these
        uses need them."""
        if self.texture:
            return replace(self._with_copies(pictures, uses, sources), texture_from=pictures)
        return self._with_copies(pictures, uses, sources)

    def _with_copies(
        self, pictures: Pictures, uses: Collection[PictureUse], sources: Sequence[Source]
    ) -> ExportOptions:
        # COLMAP and trainers ignore the orientation in EXIF: they would read other sizes than the cameras have.
        are_turned = any(source.orientation != 1 for source in sources)
        wanted = self.images == "always" or self.undistort or "needed" in uses or are_turned
        if self.copies_frames(uses) and (
            wanted or not pictures.are_loose_files or not _in_one_folder(pictures.places, [s.name for s in sources])
        ):
            return replace(self, pictures=pictures)
        return self


def _in_one_folder(places: Sequence[str], names: Sequence[str]) -> bool:
    """Whether there is a folder in which other programs find all pictures of some paths under their names: those from
    several folders have a folder in their names only where the same name occurs twice."""
    found = (each for place in places for each in [place, *glob.glob(place, recursive=True)] if os.path.exists(each))
    first = next(map(Path, found), None)
    homes = [first / "images", first, *first.parents] if first else []
    return any(all(os.path.isfile(home / name) for name in names) for home in homes)
