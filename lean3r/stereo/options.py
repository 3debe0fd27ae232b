"""Options of the stereo stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lean3r.errors import UsageError
from lean3r.options import check_types, option

Dense = Literal["auto", "stereo", "network", "off"]
AUTO_MEGAPIXELS = 8  # of all views together: stereo takes as long for every pixel, and long videos would take minutes
FINER = 320  # side in pixels of measured depth where the network's pictures are smaller
FINER_MEGAPIXELS = 4  # of all views together, to which depth is larger unasked


@dataclass(frozen=True, kw_only=True)
class StereoOptions:
    """Where depth comes from: the network alone, or stereo between the pictures, around the network's depth; auto:
    stereo for up to AUTO_MEGAPIXELS, where refinement confirmed the cameras or the poses are known; off: no depth, only
    cameras and triangulated points.

    `depth_size` is the size of depth: the side in pixels of a square with the area of a picture, or "original" for the
    pictures' own size. A side gives no more pixels than the original has or, of small pictures, the network's. None:
    that of the network's pictures, which is the smallest; where stereo measures it, FINER if that is larger, or less of
    many pictures, so that all together have FINER_MEGAPIXELS.
    """

    dense: Dense = option(
        "auto",
        "Where depth comes from: stereo between the pictures, or the network alone; auto: stereo if the "
        "cameras were refined or their poses are known, for up to "
        f"{AUTO_MEGAPIXELS} million pixels (some 135 pictures of nano's size); off: no depth, only "
        "cameras and triangulated points.",
    )
    depth_size: int | Literal["original"] | None = option(
        None,
        "Size of depth, confidence and their pictures: the side of a square of equal area, or that of the originals "
        f"(default: the network's size; of measured depth {FINER} if larger, less of many or small pictures).",
        "PIXELS|original",
        parse=lambda text: int(text) if text.isdecimal() else text,
    )

    def __post_init__(self) -> None:
        check_types(self)
        if self.depth_size not in (None, "original") and self.depth_size < 1:
            raise UsageError(f"depth_size is {self.depth_size}; expected at least 1 pixel, or 'original'.")

    def may_measure(self, pixels: int, views: int) -> bool:
        """Whether stereo runs for so many views with so many pixels in all, at least if the cameras are good."""
        return views > 1 and (self.dense == "stereo" or (self.dense == "auto" and pixels <= 1e6 * AUTO_MEGAPIXELS))

    def may_enlarge(self, are_cameras_given: bool) -> bool:
        """Whether pictures may have to be read again for larger depth; of cameras only those that were given count."""
        measured = self.dense == "stereo" or (self.dense == "auto" and are_cameras_given)
        return self.depth_size is not None or measured

    @classmethod
    def of(cls, choice: Dense | StereoOptions) -> StereoOptions:
        """The options for "auto", "stereo", "network" or "off"; options are returned as they are."""
        return choice if isinstance(choice, StereoOptions) else cls(dense=choice)
