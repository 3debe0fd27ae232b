"""Features and matches that a later job needs again, in a folder of its own.

Windows of a stream share a quarter of their keyframes, and one may be reconstructed in several ways. The features of
the same picture are always the same, and so are the matches of the same two; they are the larger part of a job's work.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine.job import PICTURES, Job

MOST = 256  # pictures; those that were used last
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)
KEYPOINTS, DESCRIPTORS = "keypoints", "descriptors"
FEATURES, MATCHES = ".npz", ".pairs"  # suffixes of the files of a picture


class Kept:
    """What is kept of a job's pictures in `job.kept`; nothing if that is None. Pictures are known by their pixels and
    the settings of their features, `octave` among them."""

    def __init__(self, job: Job, folder: Path, octave: int) -> None:
        self.folder = job.kept
        self._features: dict[str, dict[str, np.ndarray]] = {}  # of a file
        self._matches: dict[str, dict[str, np.ndarray]] = {}  # of a file, with those before it, by their names
        self._changed: set[str] = set()  # files with new matches
        settings = f"{octave} {job.features}".encode()
        self._names = {
            view.file: hashlib.blake2b((folder / PICTURES / view.file).read_bytes() + settings).hexdigest()[:32]
            for view in job.views
            if view.file is not None and job.kept is not None
        }

    def recall_features(self, database: Path) -> None:
        """Put the features that are kept into a database that has the job's images."""
        for file, name in self._names.items():
            for suffix, stored in ((FEATURES, self._features), (MATCHES, self._matches)):
                path = self._path(name, suffix)
                with contextlib.suppress(*UNREADABLE), np.load(path) as arrays:  # mostly there is none
                    stored[file] = dict(arrays)
                    os.utime(path)
        if not self._features:
            return
        with pycolmap.Database.open(database) as opened:
            for image in opened.read_all_images():
                if (arrays := self._features.get(image.name)) is not None:
                    opened.write_keypoints(image.image_id, arrays[KEYPOINTS])
                    kind = pycolmap.FeatureExtractorType.SIFT
                    opened.write_descriptors(image.image_id, pycolmap.FeatureDescriptors(kind, arrays[DESCRIPTORS]))

    def matches(self, first: str, second: str) -> np.ndarray | None:
        """Those [M, 2] of two files, of which the first one comes before the second, as they were found; None if they
        are not kept."""
        if first not in self._features or second not in self._features:
            return None
        return self._matches.get(second, {}).get(self._names[first])

    def add(self, first: str, second: str, matches: np.ndarray) -> None:
        """Have the matches of two files kept, also if they are none."""
        if self.folder is not None:
            self._matches.setdefault(second, {})[self._names[first]] = matches
            self._changed.add(second)

    def keep(self, database: Path) -> None:
        """Keep the features of the job's pictures, and the matches that were added."""
        if self.folder is None:
            return
        with pycolmap.Database.open(database) as opened:
            new = {
                image.name: {
                    KEYPOINTS: np.asarray(opened.read_keypoints(image.image_id)),
                    DESCRIPTORS: np.asarray(opened.read_descriptors(image.image_id).data),
                }
                for image in opened.read_all_images()
                if image.name not in self._features
            }
        with contextlib.suppress(OSError):  # a full disk: what is not kept is found again
            for file, arrays in new.items():
                self._write(file, FEATURES, arrays)
            for file in sorted(self._changed):
                self._write(file, MATCHES, self._matches[file])
            by_age = sorted(self.folder.glob(f"*{FEATURES}"), key=lambda path: path.stat().st_mtime)
            for path in by_age[: max(0, len(by_age) - MOST)]:
                path.unlink()
                path.with_suffix(MATCHES).unlink(missing_ok=True)

    def _write(self, file: str, suffix: str, arrays: dict[str, np.ndarray]) -> None:
        path = self._path(self._names[file], suffix)
        part = path.with_suffix(".part")
        with part.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        os.replace(part, path)

    def _path(self, name: str, suffix: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}{suffix}"
