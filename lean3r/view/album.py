"""The pictures of a result folder, found where the result says that they are, and read one at a time."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lean3r.errors import InputError
from lean3r.export import lenses, pictures
from lean3r.export.names import unique_names
from lean3r.geometry.lens import Optics, scale_lens
from lean3r.inputs.listing import Still, find_pictures
from lean3r.types import Lens, Source
from lean3r.view.arrays import open_arrays
from lean3r.view.content import Camera, lens_of, whole_map

CONFIG, IMAGES, KEYFRAMES, NAMES, MEMORY = "config.toml", "images", "keyframes", "names.txt", "memory.npz"
SMALL_SIDE = 720


@dataclass(frozen=True)
class Maps:
    """depth and conf [S, H, W], k [S, 3, 3] in their pixels, lenses of the original pictures if there are any."""

    depth: np.ndarray
    conf: np.ndarray
    k: np.ndarray
    lenses: tuple[Lens | None, ...]

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], views: int) -> Maps | None:
        """Those of predictions.npz; None if they are missing or of other views."""
        depth, conf, k = (arrays.get(key) for key in ("depth", "conf", "K"))
        if depth is None or conf is None or k is None or not views:
            return None
        if depth.ndim != 3 or depth.shape != conf.shape or len(depth) != views or k.shape != (views, 3, 3):
            return None
        if depth.dtype.kind != "f" or conf.dtype.kind != "f" or not depth.size or not np.isfinite(k).all():
            return None
        models, params = arrays.get("lens_model"), arrays.get("lens_params")
        of_views: tuple[Lens | None, ...] = (None,) * views
        if models is not None and params is not None and len(models) == len(params) == views:
            of_views = tuple(lens_of(model, row) for model, row in zip(models, params, strict=True))
        return cls(depth, conf, k.astype(np.float64), of_views)

    def project(self, view: int, camera: Camera, cam: np.ndarray) -> np.ndarray:
        """Pixels [P, 2] of the maps where points [P, 3] of a camera are seen."""
        lens = self.lenses[view]
        return Optics([camera.source], self.k[view][None], () if lens is None else (lens,)).project(0, cam)


class FolderAlbum:
    """The pictures by the number of their view: from images/ of the result, the folder of a stream's keyframes, where
    `stored` says that they are, or where the run read them."""

    def __init__(
        self,
        folder: Path,
        cameras: Sequence[Camera],
        maps: Maps | None,
        manifest: Mapping[str, Any],
        stored: Sequence[str | Path],
    ) -> None:
        self._folder, self._sources, self.maps = folder, [camera.source for camera in cameras], maps
        self._lenses = [camera.lens for camera in cameras]
        certain = [view for view, camera in enumerate(cameras) if camera.registration != "uncertain"]
        self._certain = certain or list(range(len(cameras)))  # as Reconstruction.of_certain
        self._manifest, self._stored = manifest, stored

    @property
    def without_photo(self) -> list[str]:
        """Names of the views whose pictures were not found."""
        if (self._folder / KEYFRAMES).is_dir() or self._small is not None:
            return []
        return [source.name for view, source in enumerate(self._sources) if view not in self._stills]

    @cached_property
    def _own(self) -> dict[int, Still]:
        """The picture files of images/ by view."""
        if self._stored:
            return {}
        undistorted = self._config.get("undistort") is True
        views = self._certain if undistorted else range(len(self._sources))
        names, images = [self._sources[view].name for view in views], self._folder / IMAGES
        stills: dict[int, Still] = {}
        written = lenses.written_names(names, undistorted=undistorted)
        for view, name, older in zip(views, written, unique_names(names), strict=True):
            # Undistorted pictures of older results are in folders.
            for path in (images / name, images / older)[: 2 if "/" in older else 1]:
                if view not in stills and is_file(path, images):
                    stills[view] = Still(path.name, partial(path.open, "rb"))
        return stills

    @cached_property
    def _stills(self) -> dict[int, Still]:
        """The picture files by view."""
        names = [source.name for source in self._sources]
        found = dict(self._own)
        for inputs, listed in self._batches(names) if len(found) < len(names) else ():
            try:
                items = find_pictures(inputs).items
            except (InputError, OSError, ValueError):
                continue
            by_name = {item.name: item for item in items if isinstance(item, Still)}
            for view, name in enumerate(names):
                if view in found or name not in listed:
                    continue
                if listed[name] in by_name:
                    found[view] = by_name[listed[name]]
                    continue
                # Where another folder has got one of the same name since, both are listed with their folders.
                like = [there for there in by_name if there.endswith(f"/{listed[name]}")]
                if len(like) == 1:
                    found[view] = by_name[like[0]]
        return found

    def _batches(self, names: Sequence[str]) -> list[tuple[list[str], dict[str, str]]]:
        """(inputs, name of a view -> name there) of every place where pictures may be."""
        added = self._manifest.get("added")
        batches = [
            (list(map(str, each["inputs"])), {str(k): str(v) for k, v in each["views"].items()})
            for each in (added if isinstance(added, list) else [])
            if isinstance(each, dict) and isinstance(each.get("inputs"), list) and isinstance(each.get("views"), dict)
        ]
        were_added = {name for _, views in batches for name in views}
        first, inputs = {name: name for name in names if name not in were_added}, self._config.get("inputs")
        if self._stored:
            stored = [str(path) for path in self._stored]
            return [(stored, views) for views in (first, {name: name for name in names}, *(v for _, v in batches))]
        if isinstance(inputs, list) and inputs:
            batches.insert(0, ([str(path) for path in inputs], first))
        return batches

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        """The settings of the run; none if they cannot be read."""
        try:
            return tomllib.loads((self._folder / CONFIG).read_text("utf-8", "replace"))
        except (OSError, ValueError):
            return {}

    def photo(self, view: int, side: int) -> Image.Image | None:
        """See content.Album."""
        from lean3r.inputs.decoding import own_pixel_limit
        from lean3r.inputs.notes import in_srgb
        from lean3r.inputs.upright import decode_whole

        if (keyframe := self._keyframe(view)) is not None:
            return self._whole(view, keyframe["image"], keyframe)
        if (still := self._stills.get(view)) is not None:
            source = self._sources[view]
            try:
                with own_pixel_limit(), still.open() as file:
                    picture = decode_whole(file, still.name, side)
                picture = in_srgb(picture, picture.info.get("icc_profile"))
            except (InputError, OSError, ValueError):
                return None
            if view in self._own and self._config.get("undistort") is True:
                picture = self._bent(view, picture, side)
            # Another picture of the same name would only mislead.
            return picture if abs(picture.width * source.height / (picture.height * source.width) - 1) < 0.03 else None
        if self._small is not None:
            return self._whole(view, self._small[view], None)
        return None

    def _bent(self, view: int, picture: Image.Image, side: int) -> Image.Image:
        """An undistorted picture as the lens of its view saw it, which its camera and depth map are of."""
        source, lens, stated = self._sources[view], self._lenses[view], self._config.get("image_factors")
        if lens is None:
            return picture
        whole = lenses.Camera(lens, source.width, source.height)
        factors = [
            factor for factor in (stated if isinstance(stated, list) else []) if isinstance(factor, int) and factor
        ]
        straight = lenses.undistort_camera(whole, math.lcm(*factors))
        if straight == whole:
            return picture
        share = min(1.0, side / max(source.width, source.height))
        width, height = (max(1, round(share * length)) for length in (source.width, source.height))
        small = scale_lens(lens, width / source.width, height / source.height)
        return pictures.undistort(picture, straight, lenses.Camera(small, width, height))

    def depth(self, view: int) -> np.ndarray | None:
        """See content.Album."""
        return self._map(view, "depth")

    def conf(self, view: int) -> np.ndarray | None:
        """See content.Album."""
        return self._map(view, "conf")

    def _map(self, view: int, key: str) -> np.ndarray | None:
        source = self._sources[view]
        if (keyframe := self._keyframe(view)) is not None:
            values, source = keyframe[key], _mapped(source, keyframe)
        elif self.maps is not None:
            values = np.asarray(getattr(self.maps, key)[view])
        else:
            return None
        return whole_map(np.nan_to_num(values).astype(np.float32), source, min(SMALL_SIDE, max(values.shape)))

    def _whole(self, view: int, image: np.ndarray, keyframe: Mapping[str, np.ndarray] | None) -> Image.Image:
        source = self._sources[view] if keyframe is None else _mapped(self._sources[view], keyframe)
        return Image.fromarray(whole_map(image, source, max(image.shape[:2]), Image.Resampling.BILINEAR))

    def _keyframe(self, view: int) -> Mapping[str, np.ndarray] | None:
        name = self._sources[view].name
        stem = Path(name).stem if self._stems is None else self._stems.get(name)
        path = self._folder / KEYFRAMES / f"{stem}.npz"
        if stem is None or not is_file(path, self._folder / KEYFRAMES):
            return None
        try:
            arrays = open_arrays(path)
        except InputError:
            return None
        image, depth, conf, mapped = (arrays.get(k) for k in ("image", "depth", "conf", "original_from_network"))
        if image is None or depth is None or conf is None or mapped is None or mapped.shape != (4,):
            return None
        return arrays if image.dtype == np.uint8 and image.shape == (*depth.shape, 3) == (*conf.shape, 3) else None

    @cached_property
    def _stems(self) -> dict[str, str] | None:
        """The stems of a stream's keyframes by the names of their pictures; None of an older stream, whose pictures
        have these names."""
        try:
            lines = (self._folder / NAMES).read_text("utf-8").splitlines(keepends=True)
            parts = [line.partition(" ") for line in lines if line.endswith("\n")]  # a stream may be writing the last
            names = unique_names(str(json.loads(name)) for *_, name in parts)
            return {name: Path(stem).name for name, (stem, *_) in zip(names, parts, strict=True)}
        except OSError:
            return None
        except ValueError:
            return {}

    @cached_property
    def _small(self) -> np.ndarray | None:
        """Small copies of all pictures, which `lean3r add` keeps; None if there are none."""
        if not (self._folder / MEMORY).is_file() or self.maps is None:
            return None
        try:
            arrays = open_arrays(self._folder / MEMORY)
        except InputError:
            return None
        names, images = arrays.get("names"), arrays.get("images")
        if names is None or images is None or names.tolist() != [source.name for source in self._sources]:
            return None
        return images if images.shape == (*self.maps.depth.shape, 3) and images.dtype == np.uint8 else None


def _mapped(source: Source, keyframe: Mapping[str, np.ndarray]) -> Source:
    sx, sy, ox, oy = keyframe["original_from_network"].tolist()
    return Source(source.name, source.width, source.height, (sx, sy, ox, oy))


def is_file(path: Path, folder: Path | None = None) -> bool:
    """Whether there is such a file, in a folder if one is named; names in results may contain anything."""
    try:
        return path.is_file() and (folder is None or path.resolve().is_relative_to(folder.resolve()))
    except (OSError, ValueError):
        return False
