"""Features and matches that a later job needs again, in a folder of its own.

Windows of a stream share a quarter of their keyframes. The features of the same picture are always the same, and so are
the matches of the same two; they are the larger part of a job's work.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine.job import PICTURES, Job

MOST = 128  # pictures; those that were used last
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)
KEYPOINTS, DESCRIPTORS = "keypoints", "descriptors"


class Kept:
    """What is kept of a job's pictures in `job.kept`; nothing if that is None. Pictures are known by their pixels and
    the settings of their features, `octave` among them."""

    def __init__(self, job: Job, folder: Path, octave: int) -> None:
        self.folder, self._stored = job.kept, {}
        settings = f"{octave} {job.features}".encode()
        self._names = {
            view.file: hashlib.blake2b((folder / PICTURES / view.file).read_bytes() + settings).hexdigest()[:32]
            for view in job.views
            if view.file is not None and job.kept is not None
        }

    def recall_features(self, database: Path) -> None:
        """Put the features that are kept into a database that has the job's images."""
        for file, name in self._names.items():
            path = self._path(name)
            with contextlib.suppress(*UNREADABLE), np.load(path) as arrays:  # mostly there is none
                self._stored[file] = dict(arrays)
                os.utime(path)
        if not self._stored:
            return
        with pycolmap.Database.open(database) as opened:
            for image in opened.read_all_images():
                if (arrays := self._stored.get(image.name)) is not None:
                    opened.write_keypoints(image.image_id, arrays[KEYPOINTS])
                    kind = pycolmap.FeatureExtractorType.SIFT
                    opened.write_descriptors(image.image_id, pycolmap.FeatureDescriptors(kind, arrays[DESCRIPTORS]))

    def recall_matches(self, database: Path, pairs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Put those of the matches of some pairs of files that are kept into a database with features; which ones."""
        recalled: set[tuple[str, str]] = set()
        if not self._stored:
            return recalled
        with pycolmap.Database.open(database) as opened:
            ids = {image.name: image.image_id for image in opened.read_all_images()}
            for pair in pairs:
                first, second = sorted(pair, key=ids.__getitem__)
                matches = self._stored.get(second, {}).get(self._names[first])
                if first in self._stored and matches is not None:
                    opened.write_matches(ids[first], ids[second], matches)
                    recalled.add(pair)
        return recalled

    def keep(self, database: Path) -> None:
        """Keep the features of the job's pictures, and the matches of new ones with those before them."""
        if self.folder is None:
            return
        with pycolmap.Database.open(database) as opened:
            file_of = {image.image_id: image.name for image in opened.read_all_images()}
            new = {
                image: {
                    KEYPOINTS: np.asarray(opened.read_keypoints(image)),
                    DESCRIPTORS: np.asarray(opened.read_descriptors(image).data),
                }
                for image, file in file_of.items()
                if file not in self._stored
            }
            for pair, matches in zip(*opened.read_all_matches(), strict=True):
                first, second = pycolmap.pair_id_to_image_pair(pair)
                if second in new:
                    new[second][self._names[file_of[first]]] = np.asarray(matches)
        with contextlib.suppress(OSError):  # a full disk: what is not kept is found again
            for image, arrays in new.items():
                path = self._path(self._names[file_of[image]])
                part = path.with_suffix(".part")
                with part.open("wb") as stream:
                    np.savez(stream, allow_pickle=False, **arrays)
                os.replace(part, path)
            by_age = sorted(self.folder.glob("*.npz"), key=lambda path: path.stat().st_mtime)
            for path in by_age[: max(0, len(by_age) - MOST)]:
                path.unlink()

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.npz"
