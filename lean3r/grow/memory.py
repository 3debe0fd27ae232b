"""What a scene remembers of its pictures, so that they need not be read again: memory.npz of its folder.

Each picture as small as its depth map, a print by which the same picture is recognised, and how it looks as a whole.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lean3r.errors import InputError
from lean3r.inputs.listing import Still
from lean3r.inputs.notes import in_srgb
from lean3r.inputs.pictures import Pictures
from lean3r.inputs.upright import upright
from lean3r.pipeline.overlap import Matcher
from lean3r.refine.appearance import WORDS, signature, vocabulary
from lean3r.types import Source

logger = logging.getLogger("lean3r")

FILE = "memory.npz"
DESCRIPTOR = 128


@dataclass(frozen=True)
class Memory:
    """Of S views: names, images [S, H, W, 3] uint8 in network pixels, prints [S] text, words [W, 128] of the
    vocabulary, and vectors [S, W * 128] (refine.appearance); W is 0 if the first pictures had too few features."""

    names: tuple[str, ...]
    images: np.ndarray
    prints: tuple[str, ...]
    words: np.ndarray
    vectors: np.ndarray

    def likeness(self, vectors: np.ndarray) -> np.ndarray:
        """How much pictures with these vectors [N, W * 128] look like those of the scene, [N, S]."""
        return vectors @ self.vectors.T.astype(np.float32)

    def write(self, folder: Path) -> Path:
        """Write memory.npz into a folder."""
        path = folder / FILE
        np.savez(
            path,
            allow_pickle=False,
            names=np.array(self.names, np.str_),
            images=self.images,
            prints=np.array(self.prints, np.str_),
            words=self.words.astype(np.float32),
            vectors=self.vectors.astype(np.float16),
        )
        return path


def read_memory(folder: Path, names: Sequence[str], shape: tuple[int, ...]) -> Memory | None:
    """The memory of a scene with these views and maps [S, H, W]; None if there is none, or it does not fit."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in ("names", "images", "prints", "words", "vectors")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        logger.warning("%s cannot be read (%s); it is made again", path, error)
        return None
    words = arrays["words"]
    fits = (
        tuple(arrays["names"].tolist()) == tuple(names)
        and arrays["images"].shape == (*shape, 3)
        and arrays["images"].dtype == np.uint8
        and arrays["prints"].shape == (len(names),)
        and words.shape in ((WORDS, DESCRIPTOR), (0, DESCRIPTOR))
        and arrays["vectors"].shape == (len(names), words.size)
        and arrays["vectors"].dtype.kind == words.dtype.kind == "f"
    )
    if not fits:
        logger.warning("%s is of another scene; it is made again", path)
        return None
    return Memory(
        tuple(names),
        arrays["images"],
        tuple(map(str, arrays["prints"])),
        words.astype(np.float32),
        arrays["vectors"].astype(np.float32),
    )


def make_memory(sources: Sequence[Source], mask: np.ndarray, stills: Sequence[Still]) -> Memory:
    """The memory of views with these sources and masks [S, H, W], from their pictures; InputError if one is missing or
    has another size."""
    images = look_at(sources, mask, stills)
    descriptors = descriptors_of(images, mask)
    words = vocabulary(descriptors)
    words = np.zeros((0, DESCRIPTOR), np.float32) if words is None else words
    prints = tuple(print_of(still) for still in stills)
    return Memory(tuple(s.name for s in sources), images, prints, words, vectors_of(descriptors, words))


def look_at(sources: Sequence[Source], mask: np.ndarray, stills: Sequence[Still]) -> np.ndarray:
    """The pictures of views in network pixels [S, H, W, 3] uint8. See `make_memory`."""
    number = {source.name: view for view, source in enumerate(sources)}
    images = np.full((*mask.shape, 3), 128, np.uint8)
    side = max(mask.shape[1:])
    for name, image in Pictures.of_stills(stills, ()).read(list(number), 2 * side):
        view = number.pop(name)
        source = sources[view]
        if abs(image.width * source.height / (image.height * source.width) - 1) > 0.02:
            raise InputError(
                f"{name} is {image.width}x{image.height}, and the scene's has {source.width}x{source.height} pixels: "
                "it is another picture. Say with --stored where those of the scene are."
            )
        rows, cols = (np.flatnonzero(mask[view].any(axis=axis)) for axis in (1, 0))
        top, left, bottom, right = rows[0], cols[0], rows[-1] + 1, cols[-1] + 1
        sx, sy, ox, oy = source.original_from_network
        across, down = image.width / source.width, image.height / source.height
        box = [(sx * left + ox) * across, (sy * top + oy) * down, (sx * right + ox) * across, (sy * bottom + oy) * down]
        box = np.clip(box, 0, [image.width, image.height] * 2)
        small = image.convert("RGB").resize(
            (int(right - left), int(bottom - top)), Image.Resampling.BICUBIC, box=tuple(box)
        )
        images[view, top:bottom, left:right] = np.asarray(in_srgb(small, image.info.get("icc_profile")))
    if number:
        raise InputError(f"{min(number)} of the scene cannot be read any more.")
    return images


def print_of(still: Still) -> str:
    """A print of a picture file: equal for equal files, whatever their names, and for the upright copy of one that EXIF
    turns, which results keep in images/; empty if it cannot be read."""
    try:
        with still.open() as file:
            return hashlib.sha256(upright(file.read())).hexdigest()
    except (InputError, OSError):
        return ""


def descriptors_of(images: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Descriptors [K, 128] of pictures [S, H, W, 3] in their masks [S, H, W]."""
    matcher = Matcher(images, mask)
    return [matcher.features(view)[1].numpy() for view in range(len(images))]


def vectors_of(descriptors: Sequence[np.ndarray], words: np.ndarray) -> np.ndarray:
    """Vectors [S, W * 128] of pictures by their descriptors."""
    if not len(words):
        return np.zeros((len(descriptors), 0), np.float32)
    return np.stack([signature(each, words) for each in descriptors])
