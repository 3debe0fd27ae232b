"""BlendedMVS, low resolution: rendered depth and blended pictures of reconstructed scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import image_size, read_pfm
from lean3r.data.sets.formats.mvsnet import MvsnetSet, NumberedFrame, read_camera, read_range
from lean3r.data.sets.scenes import Camera, folders
from lean3r.errors import InputError


class BlendedMVS(MvsnetSet):
    """Scenes of 20 to 1,000 views of 768 x 576 pixels, with rendered depth and scores of pairs of views."""

    name = "blendedmvs"
    title = "BlendedMVS"
    licence = "CC BY 4.0"
    source = "https://github.com/YoYo000/BlendedMVS (low-res set, BlendedMVS+ and ++ alike)"
    layout = "SCENE/blended_images/*.jpg, SCENE/cams/*_cam.txt with pair.txt, SCENE/rendered_depth_maps/*.pfm"
    parts = ("blended_images", "cams", "rendered_depth_maps")

    @classmethod
    def places(cls, root: Path) -> list[Path]:
        """Folders with at least one part of a scene."""
        return cls.with_any_part(folders(root))

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether any folder below has blended_images or rendered_depth_maps."""
        return any((f / part).is_dir() for f in folders(root)[:50] for part in (cls.parts[0], cls.parts[2]))

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for parts without all views, and for a missing pair.txt."""
        numbers = _numbers(place)
        wanted = set.union(*numbers)
        kinds = zip(cls.parts, numbers, strict=True)
        problems = [
            f"{place / part}: {len(wanted - own)} of {len(wanted)} views are missing"
            for part, own in kinds
            if wanted - own
        ]
        pairs = place / "cams" / "pair.txt"
        return problems + ([] if pairs.is_file() else [f"{pairs} is missing"])

    def frames(self, scene: str) -> Sequence[NumberedFrame]:
        """Views with picture, camera and depth, by number."""
        folder, frames = self.root / scene, []
        size = None
        for number in sorted(set.intersection(*_numbers(folder))):
            image = folder / "blended_images" / f"{number}.jpg"
            size = size or image_size(image)
            k, pose = read_camera(folder / "cams" / f"{number}_cam.txt")
            depth = folder / "rendered_depth_maps" / f"{number}.pfm"
            frames.append(NumberedFrame(image, Camera(k, pose, *size), depth, number=int(number)))
        if not frames:
            raise InputError(f"{folder} has no view with picture, camera and depth; expected {self.layout}")
        return frames

    def read_depth(self, frame: NumberedFrame) -> np.ndarray:
        """Rendered depth, 0 at holes of the mesh."""
        assert frame.depth is not None
        return read_pfm(frame.depth)

    def depth_range(self, scene: int, view: int, as_released: bool) -> tuple[float, float] | None:
        """The range in the camera file."""
        stem = self._frames_of(scene)[view].image.stem
        return read_range(self.root / self.ids[scene] / "cams" / f"{stem}_cam.txt", as_released)

    def pairs(self, scene: str) -> Path:
        """The pair.txt next to the scene's cameras."""
        return self.root / scene / "cams" / "pair.txt"


def _numbers(scene: Path) -> tuple[set[str], set[str], set[str]]:
    """Numbers of the views with a picture, with a camera, and with a depth map."""
    images = {p.stem for p in (scene / "blended_images").glob("*.jpg") if p.stem.isdigit()}
    cameras = {p.stem.removesuffix("_cam") for p in (scene / "cams").glob("[!.]*_cam.txt")}
    return images, cameras, {p.stem for p in (scene / "rendered_depth_maps").glob("[!.]*.pfm")}
