"""Masks: which parts of the pictures are used. Black (0) is left out, anything else is used, as in COLMAP.

The mask of IMG.jpg is IMG.jpg.png under the same relative path, or IMG.png if no other picture has that stem; masks of
video frames are named after the views. A mask has the aspect ratio of its picture as stored: the EXIF orientation is
applied to both. A mask that fits only the upright picture is taken as upright.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from lean3r.errors import InputError, UsageError
from lean3r.inputs.decoding import MAX_PIXELS, TURNS, own_pixel_limit
from lean3r.inputs.listing import printable
from lean3r.types import Source

SUFFIX = ".png"


@dataclass(frozen=True)
class Masks:
    """The masks in a folder, `files`, by the names of their views."""

    folder: Path
    files: Mapping[str, Path]

    @property
    def place(self) -> str:
        """The folder, as it is found from any other."""
        return os.path.abspath(self.folder.expanduser())

    @classmethod
    def find(cls, folder: Path, names: Sequence[str]) -> Masks:
        """Find the masks of views; UsageError if there is no such folder, InputError if it holds none of them, or one
        that could belong to two views."""
        check_folder(folder)
        if among := [name for name in names if name.removesuffix(SUFFIX) in set(names) - {name}]:
            raise InputError(f"masks lie among the pictures ({among[0]}); move them to a folder of their own.")
        stored = {printable(path.relative_to(folder).as_posix()): path for path in sorted(folder.rglob("*"))}
        stored = {name: path for name, path in stored.items() if name.lower().endswith(SUFFIX) and path.is_file()}
        by_stem: dict[str, list[str]] = {}
        for name in names:
            by_stem.setdefault(_stem(name), []).append(name)
        files = {}
        for name in names:
            masks = _fitting(name, stored)
            if not masks and (masks := _fitting(_stem(name), stored)) and len(by_stem[_stem(name)]) > 1:
                both = " and of ".join(by_stem[_stem(name)][:2])
                raise InputError(f"{masks[0]} could be the mask of {both}; name masks like {name}{SUFFIX}.")
            if len(masks) > 1:
                raise InputError(f"{masks[0]} and {masks[1]} could both be the mask of {name}; keep one.")
            if masks:
                files[name] = stored[masks[0]]
        if not files:
            there = f"{len(stored)} {SUFFIX} files, {min(stored)} first" if stored else f"no {SUFFIX} file"
            raise InputError(f"no mask in {folder} fits a picture: expected {names[0]}{SUFFIX}, found {there}.")
        return cls(folder, files)

    def read(self, source: Source) -> np.ndarray | None:
        """The used pixels of a picture, [h, w] bool, upright, at the mask's own size; None without a mask. InputError
        if it cannot be read or does not have the picture's aspect ratio."""
        path = self.files.get(source.name)
        if path is None:
            return None
        values = _decode(path)
        stored = (source.height, source.width) if source.orientation >= 5 else (source.width, source.height)
        if _has_shape(values, stored):
            turned = Image.fromarray(values)
            return np.array(turned.transpose(TURNS[source.orientation]) if source.orientation in TURNS else turned)
        if _has_shape(values, (source.width, source.height)):
            return values
        size, expected = f"{values.shape[1]}x{values.shape[0]}", f"{stored[0]}x{stored[1]}"
        raise InputError(f"the mask {path} has {size} pixels, {source.name} has {expected}; aspect ratios must agree.")

    def resample(self, source: Source, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
        """Resample the part `box` (left, top, right, lower, pixels) of the upright picture to `size` (w, h): [h, w]
        bool, True for pixels of which at least half is used; all True without a mask."""
        values = self.read(source)
        if values is None:
            return np.ones(size[::-1], dtype=bool)
        height, width = values.shape
        x, y = width / source.width, height / source.height
        left, top, right, lower = box
        inside = (max(left * x, 0), max(top * y, 0), min(right * x, width), min(lower * y, height))
        image = Image.fromarray(values.astype(np.uint8) * 255)
        return np.asarray(image.resize(size, Image.Resampling.BOX, box=inside)) >= 128

    def of_network(self, sources: Sequence[Source], mask: np.ndarray) -> np.ndarray:
        """The used pixels of the network's pictures, [S, H, W] bool; `mask` [S, H, W] is False on padding."""
        counts = mask.copy()
        for view, source in enumerate(sources):
            if source.name in self.files:
                rows, cols = (np.flatnonzero(mask[view].any(axis)) for axis in (1, 0))
                (top, lower), (left, right) = ((int(at[0]), int(at[-1]) + 1) for at in (rows, cols))
                sx, sy, ox, oy = source.original_from_network
                box = (sx * left + ox, sy * top + oy, sx * right + ox, sy * lower + oy)
                counts[view, top:lower, left:right] &= self.resample(source, box, (right - left, lower - top))
        return counts


def check_folder(folder: Path) -> None:
    """Raise UsageError unless the folder exists, InputError if it or a folder in it cannot be read."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder of masks {folder}; expected one with files like IMG.jpg{SUFFIX}.")

    def refuse(error: OSError) -> None:
        raise InputError(f"the folder of masks {error.filename} cannot be read ({error.strerror}).") from error

    for _ in os.walk(folder, onerror=refuse):  # rglob leaves out what it may not read
        pass


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return path.with_suffix("").as_posix() if path.stem else name


def _fitting(name: str, stored: Mapping[str, Path]) -> list[str]:
    """The stored masks called NAME.png, by the same relative path, else anywhere below the folder."""
    path = (name + SUFFIX).casefold()
    exact = [each for each in stored if each.casefold() == path]
    return exact or [each for each in stored if each.casefold().endswith(f"/{path}")]


def _has_shape(values: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a mask [h, w] has the aspect ratio of a picture of (width, height), to within a pixel."""
    height, width = values.shape
    return abs(width - size[0] * height / size[1]) < 1 or abs(height - size[1] * width / size[0]) < 1


def _decode(path: Path) -> np.ndarray:
    """[h, w] bool, False where the mask is black."""
    try:
        with own_pixel_limit(), Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"the mask {path} claims {image.width}x{image.height} pixels; the limit is "
                    f"{MAX_PIXELS / 1e6:.0f} megapixels."
                )
            if "A" in image.getbands() or "transparency" in image.info:
                if image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                    raise InputError(f"the mask {path} is partly transparent; expected black and white.")
                image = image.convert("RGB")
            return np.asarray(image if image.mode in ("1", "L") or image.mode[0] == "I" else image.convert("L")) != 0
    except InputError:
        raise
    except Exception as error:  # decoders raise errors of every kind on damaged files
        raise InputError(f"the mask {path} cannot be read ({error}); expected a black and white PNG.") from error
