"""Masks: which parts of the pictures count. Black (0) is left out, anything else counts, as in COLMAP.

The mask of IMG.jpg is IMG.jpg.png under the same relative path, or IMG.png where no other picture has that stem; frames
of a video go by the names of their views. It has the size of its picture, or the same shape, as stored: EXIF turns it
as it turns the picture. A mask that fits only the upright picture is taken as upright.
"""

from __future__ import annotations

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
    """The masks of a folder that belong to pictures: `files` by the name of the view."""

    folder: Path
    files: Mapping[str, Path]

    @classmethod
    def find(cls, folder: Path, names: Sequence[str]) -> Masks:
        """The masks of views; UsageError where there is no folder, InputError where it holds none of them, or one
        that could belong to two views."""
        check_folder(folder)
        if among := [name for name in names if name.removesuffix(SUFFIX) in set(names) - {name}]:
            raise InputError(f"masks lie among the pictures ({among[0]}); put them into a folder of their own.")
        stored = {printable(path.relative_to(folder).as_posix()): path for path in sorted(folder.rglob("*"))}
        stored = {name: path for name, path in stored.items() if name.lower().endswith(SUFFIX) and path.is_file()}
        by_stem: dict[str, list[str]] = {}
        for name in names:
            by_stem.setdefault(_stem(name), []).append(name)
        files = {}
        for name in names:
            found = _fitting(name, stored)
            if not found and (found := _fitting(_stem(name), stored)) and len(by_stem[_stem(name)]) > 1:
                both = " and of ".join(by_stem[_stem(name)][:2])
                raise InputError(f"{found[0]} could be the mask of {both}; name masks as {name}{SUFFIX}.")
            if len(found) > 1:
                raise InputError(f"{found[0]} and {found[1]} could both be the mask of {name}; keep one.")
            if found:
                files[name] = stored[found[0]]
        if not files:
            there = f"{len(stored)} {SUFFIX} files, {min(stored)} first" if stored else f"no {SUFFIX} file"
            raise InputError(f"no mask in {folder} fits a picture: expected {names[0]}{SUFFIX}, found {there}.")
        return cls(folder, files)

    def read(self, source: Source) -> np.ndarray | None:
        """What counts of a picture, [h, w] bool, upright, at the mask's own size; None without a mask. InputError where
        it cannot be read or does not have the picture's shape."""
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
        raise InputError(f"the mask {path} has {size} pixels, {source.name} has {expected}; they must agree in shape.")

    def resized(self, source: Source, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
        """[h, w] bool of size (w, h): which pixels count by half at least, of the part `box` (left, top, right, lower,
        pixels) of the upright picture; all without a mask."""
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
        """Which pixels of the network's pictures count, [S, H, W] bool; `mask` [S, H, W] is False on padding."""
        counts = mask.copy()
        for view, source in enumerate(sources):
            if source.name in self.files:
                rows, cols = (np.flatnonzero(mask[view].any(axis)) for axis in (1, 0))
                (top, lower), (left, right) = ((int(at[0]), int(at[-1]) + 1) for at in (rows, cols))
                sx, sy, ox, oy = source.original_from_network
                box = (sx * left + ox, sy * top + oy, sx * right + ox, sy * lower + oy)
                counts[view, top:lower, left:right] &= self.resized(source, box, (right - left, lower - top))
        return counts


def check_folder(folder: Path) -> None:
    """UsageError unless masks may be looked for there."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder of masks {folder}; expected one with pictures such as IMG.jpg{SUFFIX}.")


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return path.with_suffix("").as_posix() if path.stem else name


def _fitting(name: str, stored: Mapping[str, Path]) -> list[str]:
    """The stored masks called NAME.png, by the same relative path, else anywhere below the folder."""
    wanted = (name + SUFFIX).casefold()
    exact = [each for each in stored if each.casefold() == wanted]
    return exact or [each for each in stored if each.casefold().endswith(f"/{wanted}")]


def _has_shape(values: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a mask [h, w] has the shape of a picture of (width, height), but for a part of a pixel."""
    height, width = values.shape
    return abs(width - size[0] * height / size[1]) < 1 or abs(height - size[1] * width / size[0]) < 1


def _decode(path: Path) -> np.ndarray:
    """[h, w] bool, False where a picture file is black."""
    try:
        with own_pixel_limit(), Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"the mask {path} claims {image.width}x{image.height} pixels; that is too large.")
            if "A" in image.getbands() or "transparency" in image.info:
                if image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                    raise InputError(f"the mask {path} is transparent in parts; expected black and white.")
                image = image.convert("RGB")
            return np.asarray(image if image.mode in ("1", "L") or image.mode[0] == "I" else image.convert("L")) != 0
    except InputError:
        raise
    except Exception as error:  # decoders raise errors of every kind on damaged files
        raise InputError(f"the mask {path} cannot be read ({error}); expected a black and white PNG.") from error
