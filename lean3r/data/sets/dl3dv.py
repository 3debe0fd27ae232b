"""DL3DV-10K: videos of thousands of places, with cameras from COLMAP; no depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from lean3r.data.sets.formats.files import image_size
from lean3r.data.sets.formats.lens import LensFrame, LensSet
from lean3r.data.sets.formats.transforms import read_transforms
from lean3r.data.sets.scenes import folders
from lean3r.errors import InputError

PICTURES = ("images_4", "images_8", "images_2", "images")
_INNER = (".", "nerfstudio", "colmap")


class Dl3dv(LensSet[LensFrame]):
    """One scene per video. Pictures (OPENCV lenses) are undistorted when read; the scale is COLMAP's, arbitrary.

    pictures: the folder of pictures to read; None is the first that exists of images_4 (960P), images_8 (480P),
    images_2 and images.
    """

    name = "dl3dv"
    title = "DL3DV-10K"
    licence = "DL3DV-10K terms of use and CC BY-NC 4.0 (the repository DL3DV-10K/Dataset)"
    source = "DL3DV on the Hugging Face hub: DL3DV-ALL-960P or DL3DV-ALL-480P, or the benchmark's nerfstudio folders"
    layout = (
        "<hash>/transforms.json and <hash>/images_4/ (or images_8/), perhaps below 1K/ to 11K/; "
        "in the benchmark and the sample within <hash>/nerfstudio/ or <hash>/colmap/"
    )
    has_depth = False
    is_ordered = True

    def __init__(self, root: str | Path, pictures: str | None = None, scenes: Sequence[str] | None = None) -> None:
        self.pictures = pictures
        super().__init__(root, scenes)

    @classmethod
    def places(cls, root: Path) -> Iterator[Path]:
        """Folders with cameras or pictures: in the root, or one level below it (1K to 11K, or inner folders)."""
        for folder in folders(root):
            own = [folder / inner for inner in _INNER if _has_part(folder / inner)]
            if own:
                yield own[0]
                continue
            for video in folders(folder):
                yield from [video / inner for inner in _INNER if _has_part(video / inner)][:1]

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """A sentence for missing cameras, and for a missing folder of pictures."""
        absent = [] if (place / "transforms.json").is_file() else [f"{place / 'transforms.json'} is missing"]
        pictures = any((place / name).is_dir() for name in PICTURES)
        return absent + ([] if pictures else [f"{place} has no folder of pictures ({', '.join(PICTURES)})"])

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Unreadable cameras, or cameras whose pictures are missing."""
        try:
            wanted = {PurePosixPath(row.path).name for row in read_transforms(place / "transforms.json")}
        except InputError as error:
            return [str(error)]
        pictures = _pictures(place, None)
        there = wanted & {path.name for path in pictures.iterdir()}
        if len(there) < 2:
            return [f"{pictures} has {len(there)} of {len(wanted)} posed pictures; a scene needs two"]
        absent = sorted(wanted - there)
        count = f"{len(absent)} of {len(wanted)} pictures"
        return [f"{count} of {pictures} are missing, e.g. {absent[0]}"] if absent else []

    def frames(self, scene: str) -> Sequence[LensFrame]:
        """The posed pictures whose files exist, by name."""
        folder = self.root / scene
        pictures = _pictures(folder, self.pictures)
        rows = sorted(read_transforms(folder / "transforms.json"), key=lambda row: row.path)
        files = [(row, pictures / PurePosixPath(row.path).name) for row in rows]
        there = [(row, file) for row, file in files if file.is_file()]
        if not there:
            raise InputError(f"no picture of {folder / 'transforms.json'} is in {pictures}; expected {self.layout}")
        size = image_size(there[0][1])  # transforms.json has the size of images/
        return [row.frame(file, size) for row, file in there]


def _has_part(folder: Path) -> bool:
    return (folder / "transforms.json").is_file() or any((folder / name).is_dir() for name in PICTURES[:3])


def _pictures(folder: Path, wanted: str | None) -> Path:
    names = PICTURES if wanted is None else (wanted,)
    pictures = next((folder / name for name in names if (folder / name).is_dir()), None)
    if pictures is None:
        raise InputError(f"{folder} has no folder {' or '.join(names)}; expected {Dl3dv.layout}")
    return pictures
