"""RealEstate10K: camera paths through houses, from videos; no depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import image_size, read_text
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, pinhole
from lean3r.errors import InputError

_TEXTS = ("", "cameras", "train", "test", "cameras/train", "cameras/test", "RealEstate10K/train", "RealEstate10K/test")
_SUFFIXES = (".jpg", ".png", ".jpeg")
_COLUMNS = 19
MICROSECONDS = 1e6


class RealEstate10K(FolderSet[Frame]):
    """Clips of tens to hundreds of frames, up to scale, without depth; frames that were not extracted are skipped.

    The intrinsics in the camera files are shares of the picture's width and height, relative to its corner.
    """

    name = "realestate10k"
    title = "RealEstate10K"
    licence = "CC BY 4.0 (the camera files; the videos are their owners')"
    source = "https://google.github.io/realestate10k (frames: from the videos, by their timestamps)"
    layout = "[cameras/][train|test/]CLIP.txt and [frames/][train|test/]CLIP/TIMESTAMP.jpg or .png"
    has_depth = False
    is_ordered = True

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether there are camera files: text with a URL in the first line and 19 numbers in the second."""
        return any(_is_clip(text) for text in _texts(root)[:20])

    @classmethod
    def find_scenes(cls, root: Path) -> list[str]:
        """Paths without suffix of the camera files with a folder of frames."""
        return [text.relative_to(root).with_suffix("").as_posix() for text in _texts(root) if _frame_folder(root, text)]

    @classmethod
    def problems(cls, root: Path) -> list[str]:
        """Sentences for clips whose frames are missing, all or some."""
        texts = _texts(root)
        absent = [text for text in texts if _frame_folder(root, text) is None]
        problems = [f"{len(absent)} of {len(texts)} clips have no frames, e.g. {absent[0].stem}"] if absent else []
        for text in texts:
            folder = _frame_folder(root, text)
            if folder is not None:
                try:
                    stamps = {row[0] for row in _rows(text)}
                except InputError as error:
                    problems.append(str(error))
                    continue
                missing = len(stamps - {p.stem for p in folder.iterdir()})
                problems += [f"{folder}: {missing} of {len(stamps)} frames are missing"] if missing else []
        return problems or ([] if texts else [f"{root} has no camera files"])

    def frames(self, scene: str) -> Sequence[Frame]:
        """The extracted frames, in time order; all have the size of the first."""
        text = self.root / f"{scene}.txt"
        folder = _frame_folder(self.root, text)
        if folder is None:
            raise InputError(f"{text} has no frames; expected {self.layout}")
        files = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in _SUFFIXES}
        frames, size = [], None
        for stamp, values in _rows(text):
            if stamp in files:
                size = size or image_size(files[stamp])
                width, height = size
                fx, fy, cx, cy = values[:4]
                pose = np.vstack([values[6:].reshape(3, 4), [0.0, 0.0, 0.0, 1.0]])
                k = pinhole(fx * width, fy * height, cx * width, cy * height)
                frames.append(Frame(files[stamp], Camera(k, pose, width, height), time_s=int(stamp) / MICROSECONDS))
        if not frames:
            raise InputError(f"{folder} has none of the frames of {text}; expected files named by timestamp")
        return frames


def _rows(text: Path) -> list[tuple[str, np.ndarray]]:
    """(timestamp, [18]) of each line: fx, fy, cx, cy, two zeros, and world-to-camera [3, 4] row by row."""
    rows = []
    for line in read_text(text).splitlines()[1:]:
        words = line.split()
        if words:
            try:
                values = np.array([float(x) for x in words[1:]])
            except ValueError as error:
                raise InputError(f"{text} is not a camera file of RealEstate10K ({error})") from error
            if len(values) != _COLUMNS - 1 or values[4:6].any():
                raise InputError(
                    f"{text} is not a camera file of RealEstate10K: expected 19 numbers per line and no distortion"
                )
            rows.append((words[0], values))
    return sorted(rows, key=lambda row: int(row[0]))


def _texts(root: Path) -> list[Path]:
    """Camera files; their names are 16 hexadecimal digits."""
    places = [root / sub for sub in _TEXTS]
    texts = [text for place in places if place.is_dir() for text in sorted(place.glob("*.txt"))]
    return [text for text in texts if len(text.stem) == 16 and set(text.stem) <= set("0123456789abcdef")]


def _is_clip(text: Path) -> bool:
    with open(text, encoding="utf-8", errors="replace") as file:
        first, second = file.readline(4096), file.readline(4096)
    return "://" in first and len(second.split()) == _COLUMNS


def _frame_folder(root: Path, text: Path) -> Path | None:
    """The folder of a clip's frames: next to its camera file, or at the same place in frames/; None without one."""
    sub = text.parent.relative_to(root)
    split = sub.relative_to("cameras") if sub.parts[:1] == ("cameras",) else sub
    places = [text.with_suffix(""), root / "frames" / split / text.stem, root / "frames" / text.stem]
    return next((p for p in places if p.is_dir() and any(p.iterdir())), None)
