"""BlendedMVS, low resolution: rendered depth and blended pictures of reconstructed scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import image_size, read_pfm
from lean3r.data.sets.formats.mvsnet import read_camera, read_pairs
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, folders
from lean3r.errors import InputError

_PARTS = ("blended_images", "cams", "rendered_depth_maps")


class BlendedMVS(FolderSet):
    """Scenes of 20 to 1,000 views of 768 x 576 pixels with rendered depth; scores of pairs come with them."""

    name = "blendedmvs"
    title = "BlendedMVS"
    licence = "CC BY 4.0"
    source = "https://github.com/YoYo000/BlendedMVS (low-res set, BlendedMVS+ and ++ alike)"
    layout = "SCENE/blended_images/*.jpg, SCENE/cams/*_cam.txt with pair.txt, SCENE/rendered_depth_maps/*.pfm"

    @staticmethod
    def looks_like(root: Path) -> bool:
        """Whether any folder below has blended_images or rendered_depth_maps."""
        return any((f / part).is_dir() for f in folders(root)[:50] for part in (_PARTS[0], _PARTS[2]))

    @staticmethod
    def find_scenes(root: Path) -> list[str]:
        """Folders with all three parts."""
        return [f.name for f in folders(root) if all((f / part).is_dir() for part in _PARTS)]

    @staticmethod
    def problems(root: Path) -> list[str]:
        """Parts of scenes that are missing, and views without picture, camera or depth."""
        found = []
        for scene in folders(root):
            missing = [part for part in _PARTS if not (scene / part).is_dir()]
            if len(missing) == len(_PARTS):
                continue
            found += [f"{scene / part} is missing" for part in missing]
            if not missing:
                found += _incomplete(scene)
        return found or ([] if BlendedMVS.find_scenes(root) else [f"{root} holds no folder with blended_images"])

    def frames(self, scene: str) -> Sequence[Frame]:
        """Views that have a picture, a camera and depth, by number."""
        folder, found = self.root / scene, []
        size = None
        for number in sorted(set.intersection(*_numbers(folder))):
            image = folder / "blended_images" / f"{number}.jpg"
            size = size or image_size(image)
            k, pose = read_camera(folder / "cams" / f"{number}_cam.txt")
            found.append(Frame(image, Camera(k, pose, *size), folder / "rendered_depth_maps" / f"{number}.pfm", number))
        if not found:
            raise InputError(f"{folder} has no view with picture, camera and depth; expected {self.layout}")
        return found

    def read_depth(self, frame: Frame) -> np.ndarray:
        """Rendered depth, 0 where the mesh has a hole."""
        assert frame.depth is not None
        return read_pfm(frame.depth)

    def covisibility(self, scene: int) -> np.ndarray | None:
        """[V, V] scores of cams/pair.txt, which counts views as their files are numbered."""
        pairs = self.root / self.ids[scene] / "cams" / "pair.txt"
        if not pairs.is_file():
            return None
        numbers = [int(frame.extra) for frame in self._cached(scene)]
        return read_pairs(pairs, max(numbers) + 1)[np.ix_(numbers, numbers)]


def _numbers(scene: Path) -> tuple[set[str], set[str], set[str]]:
    """Numbers of the views that have a picture, a camera, a depth map."""
    images = {p.stem for p in (scene / "blended_images").glob("*.jpg") if p.stem.isdigit()}
    cameras = {p.stem.removesuffix("_cam") for p in (scene / "cams").glob("*_cam.txt")}
    return images, cameras, {p.stem for p in (scene / "rendered_depth_maps").glob("*.pfm")}


def _incomplete(scene: Path) -> list[str]:
    numbers = _numbers(scene)
    wanted = set.union(*numbers)
    kinds = zip(_PARTS, numbers, strict=True)
    found = [
        f"{scene / part}: {len(wanted - own)} of {len(wanted)} views are missing" for part, own in kinds if wanted - own
    ]
    return found + ([] if (scene / "cams" / "pair.txt").is_file() else [f"{scene / 'cams' / 'pair.txt'} is missing"])
