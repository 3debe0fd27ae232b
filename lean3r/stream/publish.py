"""A store as a result folder: trajectories, cameras, COLMAP model, cloud and manifest, written anew from time to time.

Nothing here holds more than a few frames at once, besides the cloud.
"""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.export.atomic import MANIFEST
from lean3r.export.cameras import json_bytes
from lean3r.export.manifest import CONVENTIONS, LAYOUT_VERSION, toml
from lean3r.export.ply import ply_bytes
from lean3r.export.trajectory import HEAD, KITTI, TIMES, TUM, lines
from lean3r.geometry.lens import LENSES, colmap_camera
from lean3r.geometry.up import estimate_up
from lean3r.inputs.trajectory import OF_VIEWS
from lean3r.scratch import atomic_file, temporary_folder
from lean3r.stream import sim3
from lean3r.stream.bend import bent
from lean3r.stream.cloud import Cloud
from lean3r.stream.engine import WITH_TEXT, Engine, flags_now
from lean3r.stream.store import (
    CHECKPOINT,
    FRAMES,
    KEYFRAMES,
    NAMES,
    STREAM,
    WINDOWS,
    Store,
    flags_of,
    lens_of,
    matrix_of,
    pose_of,
)
from lean3r.types import Lens

CAMERAS, POINTS, PREDICTIONS, CONFIG = (
    "cameras.json",
    "points.ply",
    "predictions.npz",
    "config.toml",
)
MODEL_POINTS = 50_000  # of the COLMAP model
NAMED = 100  # views that a warning names at most
UNCERTAIN, CERTAIN = "# uncertain from here: these poses may be far off\n", "# certain from here\n"


class Publisher:
    """Writes the result of a store. `info` is what the manifest says of the run; `is_counted`: the frames have
    no times of their own, but numbers; `cautions`: why the cameras of films may be far off."""

    def __init__(
        self,
        store: Store,
        info: Mapping[str, Any],
        config: Mapping[str, Any],
        is_counted: bool = False,
        cautions: Sequence[str] = (),
    ) -> None:
        self.store, self.info, self.config, self.is_counted = store, info, config, is_counted
        self._cautions = [{"code": "bars", "text": text, "views": []} for text in cautions]
        self._numbers: list[int] = []  # of the frames that are views
        self._near: set[int] = set()  # the numbers of the last views before uncertain frames

    def publish(
        self, engine: Engine, cloud: Cloud, figures: Mapping[str, Any], *, is_final: bool
    ) -> tuple[int, list[dict[str, Any]]]:
        """Write all files, each at once; predictions.npz, which copies all depth maps, only at the end. Returns how
        many frames are uncertain now, and what the manifest warns of."""
        (self.store.folder / PREDICTIONS).unlink(missing_ok=True)  # those of a shorter stream, if it has grown since
        self._placements, self._bends, self._rejoined = engine.placements, engine.bends, engine.rejoined
        uncertain = self._trajectories()
        more = {"stream": {**figures, "uncertain": uncertain}, "is_complete": is_final}
        views = self._cameras()
        self._colmap(cloud)
        with atomic_file(self.store.folder / POINTS) as part:
            normals, view = np.zeros_like(cloud.xyz), _views(cloud, self._numbers)
            part.write_bytes(ply_bytes(cloud.xyz, cloud.rgb, normals=normals, confidence=cloud.conf, view=view))
        if is_final and views:
            with atomic_file(self.store.folder / PREDICTIONS) as part:
                self._predictions(part)
        with atomic_file(self.store.folder / CONFIG) as part:
            part.write_bytes(toml(self.config).encode("utf-8", "replace"))  # of paths that are not UTF-8
        told = warnings_of(self.store.windows(), more["stream"], views, self._numbers, self._near)
        warnings = self._cautions + told
        self._manifest(cloud, views, {"warnings": warnings, **more})
        return uncertain, warnings

    def _frames(self) -> Iterator[tuple[np.void, np.ndarray]]:
        """Records, with the poses cam_from_world [4, 4] as of now."""
        for chunk in self.store.records():
            for record in chunk:
                window = int(record["window"])
                pose = bent(self._bends, window, int(record["index"]), pose_of(record))
                yield record, sim3.move_poses(self._placements[window], pose)

    def _keyframes(self) -> Iterator[tuple[np.void, np.ndarray]]:
        for record, pose in self._frames():
            if "keyframe" in flags_of(int(record["flags"])):
                yield record, pose

    def _named(self) -> Iterator[tuple[tuple[np.void, np.ndarray], str]]:
        """Keyframes, with the names of their pictures."""
        return zip(self._keyframes(), self.store.names(), strict=True)

    def _trajectories(self) -> int:
        """The trajectories, with a remark in TUM's wherever uncertain frames begin and end; how many of these there
        are."""
        folder, uncertain, last, was_certain = self.store.folder, 0, 0, True
        with (
            atomic_file(folder / TUM) as tum_part,
            atomic_file(folder / KITTI) as kitti_part,
            atomic_file(folder / TIMES) as times_part,
            tum_part.open("w", encoding="utf-8") as tum,
            kitti_part.open("w", encoding="utf-8") as kitti,
            times_part.open("w", encoding="utf-8") as times,
        ):
            tum.write(HEAD + f"# {OF_VIEWS}, from 0\n" * self.is_counted)
            for record, pose in self._frames():
                last = int(record["index"]) if "keyframe" in flags_of(int(record["flags"])) else last
                is_certain = self._registration(record) != "uncertain"
                if not is_certain:
                    uncertain += 1
                    self._near.add(last)
                if is_certain != was_certain:
                    tum.write(CERTAIN if is_certain else UNCERTAIN)
                    was_certain = is_certain
                for file, line in zip((tum, kitti, times), lines(float(record["timestamp_s"]), pose), strict=True):
                    file.write(line)
        return uncertain

    def _registration(self, record: np.void) -> str:
        flags = flags_now(flags_of(int(record["flags"])), int(record["window"]), self._rejoined)
        return "uncertain" if flags & {"uncertain", "lost"} else "refined" if "refined" in flags else "predicted"

    def _cameras(self) -> list[dict[str, Any]]:
        """cameras.json of the keyframes; what the manifest says of them."""
        views, self._numbers = [], []
        with atomic_file(self.store.folder / CAMERAS) as part, part.open("w", encoding="utf-8") as file:
            file.write('{\n "axes": "opencv",\n "scale": "relative",\n "views": [')
            for number, ((record, pose), name) in enumerate(self._named()):
                self._numbers.append(int(record["index"]))
                state = self._registration(record)
                view = {"name": name, "width": int(record["size"][0]), "height": int(record["size"][1])}
                views.append({**view, "registration": state})
                lens = lens_of(record)
                view |= {
                    "K": matrix_of(record["intrinsics"]).tolist(),
                    "cam_from_world": pose.tolist(),
                    "world_from_cam": np.linalg.inv(pose).tolist(),
                    "registration": state,
                    "uncertain": state == "uncertain",
                    "timestamp_s": float(record["timestamp_s"]),
                    **({} if lens is None else {"lens": {"model": lens.model, "params": lens.params}}),
                }
                file.write(("," if number else "") + "\n  " + json.dumps(view))
            file.write("\n ]\n}\n")
        return views

    def _colmap(self, cloud: Cloud) -> None:
        """sparse/0 with the keyframes whose cameras are trusted and a sample of the cloud, without tracks."""
        model, cameras = pycolmap.Reconstruction(), {}
        for (record, pose), name in self._named():
            if self._registration(record) == "uncertain":
                continue
            lens, (width, height) = _rounded(_lens(record)), map(int, record["size"])
            key = lens, width, height
            if key not in cameras:
                cameras[key] = len(cameras) + 1
                model.add_camera_with_trivial_rig(colmap_camera(lens, width, height, cameras[key]))
            image = pycolmap.Image(name=name, camera_id=cameras[key], image_id=int(record["index"]) + 1)
            model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose[:3]))
        folder = self.store.folder / "sparse" / "0"
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder("model") as scratch:
            model.write(scratch)
            (scratch / "points3D.bin").write_bytes(_points(cloud))
            for path in scratch.glob("*.bin"):
                with atomic_file(folder / path.name) as part:
                    shutil.copyfile(path, part)

    def _predictions(self, path: Path) -> None:
        """predictions.npz (docs/outputs.md), an array after the other, a keyframe at a time."""
        count, height, width = 0, 0, 0
        for record, _ in self._keyframes():
            shape = self.store.keyframe(int(record["index"]))["depth"].shape
            count, height, width = count + 1, max(height, shape[0]), max(width, shape[1])

        def padded(key: str, dtype: type, *, fill: Callable[[np.void, np.ndarray], Any]) -> Iterator[np.ndarray]:
            for record, _ in self._keyframes():
                stored = self.store.keyframe(int(record["index"]))
                whole = np.zeros((height, width), dtype)
                rows, cols = stored["depth"].shape
                whole[:rows, :cols] = fill(record, stored[key])
                yield whole

        scales = [sim3.parts(placement)[0] for placement in self._placements]

        def each(of: Callable[[np.void, np.ndarray], Any]) -> Iterator[np.ndarray]:
            for record, pose in self._keyframes():
                yield np.asarray(of(record, pose))

        def mapped(record: np.void) -> np.ndarray:
            return self.store.keyframe(int(record["index"]))["original_from_network"]

        def network(record: np.void) -> np.ndarray:
            sx, sy, ox, oy = mapped(record)
            return np.linalg.inv([[sx, 0, ox], [0, sy, oy], [0, 0, 1]]) @ matrix_of(record["intrinsics"])

        size = (count, height, width)
        with zipfile.ZipFile(path, "w") as archive:
            text = np.dtype(f"<U{max(map(len, self.store.names()))}")
            _array(archive, "names", (count,), text, map(np.array, self.store.names()))
            depth = padded("depth", np.float32, fill=lambda r, values: values * np.float32(scales[r["window"]]))
            _array(archive, "depth", size, np.dtype("<f4"), depth)
            _array(archive, "conf", size, np.dtype("<f4"), padded("conf", np.float32, fill=lambda _, values: values))
            _array(archive, "mask", size, np.dtype("?"), padded("depth", np.bool_, fill=lambda *_: True))
            _array(archive, "K", (count, 3, 3), np.dtype("<f8"), each(lambda r, _: network(r)))
            k = each(lambda r, _: matrix_of(r["intrinsics"]))
            _array(archive, "K_original", (count, 3, 3), np.dtype("<f8"), k)
            _array(archive, "cam_from_world", (count, 4, 4), np.dtype("<f8"), each(lambda _, pose: pose))
            inverse = each(lambda _, pose: np.linalg.inv(pose))
            _array(archive, "world_from_cam", (count, 4, 4), np.dtype("<f8"), inverse)
            _array(archive, "image_size", (count, 2), np.dtype("<i4"), each(lambda r, _: r["size"]))
            _array(archive, "original_from_network", (count, 4), np.dtype("<f8"), each(lambda r, _: mapped(r)))
            if any(lens_of(record) is not None for record, _ in self._keyframes()):
                models = each(lambda r, _: np.array(_lens(r).model, "<U15"))
                _array(archive, "lens_model", (count,), np.dtype("<U15"), models)
                _array(archive, "lens_params", (count, 12), np.dtype("<f8"), each(lambda r, _: _padded(_lens(r))))
            states = each(lambda r, _: np.array(self._registration(r), "<U9"))
            _array(archive, "registration", (count,), np.dtype("<U9"), states)
            _array(archive, "scale", (), np.dtype("<U8"), iter([np.array("relative")]))

    def _manifest(self, cloud: Cloud, views: list[dict[str, Any]], more: Mapping[str, Any]) -> None:
        folder = self.store.folder
        names = [TUM, KITTI, TIMES, CAMERAS, POINTS, PREDICTIONS, CONFIG, STREAM, FRAMES, WINDOWS, NAMES, CHECKPOINT]
        files = [name for name in names if (folder / name).exists()]
        files += [f"sparse/0/{path.name}" for path in (folder / "sparse" / "0").iterdir()]
        files += [f"{KEYFRAMES}/{path.name}" for path in (folder / KEYFRAMES).iterdir()]
        certain = [pose for record, pose in self._keyframes() if self._registration(record) != "uncertain"]
        about = {
            "layout_version": LAYOUT_VERSION,
            "lean3r": metadata.version("lean3r"),
            **self.info,
            **more,
            "scale": "relative",
            "conventions": CONVENTIONS,
            **({"up": estimate_up(np.stack(certain)).as_dict()} if certain else {}),
            "points": len(cloud),
            "views": views,
            "files": sorted([*files, MANIFEST]),
        }
        with atomic_file(folder / MANIFEST) as part:
            part.write_bytes(json_bytes(about))


def warnings_of(
    windows: Iterable[Mapping[str, Any]],
    stream: Mapping[str, Any],
    views: Sequence[Mapping[str, Any]],
    numbers: Sequence[int],
    near: Collection[int],
) -> list[dict[str, Any]]:
    """What the manifest warns of, by the reports of all windows and the figures of the stream, with the first NAMED
    `views` that each is about; `numbers` are those of their frames. If no view is uncertain but frames between them
    are, these are the views before them, whose numbers are `near`."""
    count, about, reasons = Counter[str](), defaultdict[str, dict[str, None]](dict), Counter[str]()
    first = dict.fromkeys(WITH_TEXT, "")  # texts, of the first window that has them
    for window in windows:
        count["windows"] += 1
        is_unrefined = window.get("refinement") == "kept" and "reason" in window and window["keyframes"] > 1
        if is_unrefined:
            reasons[window["reason"]] += 1
        for code, is_so in (
            ("not-refined", is_unrefined),
            ("zoom", window.get("zooms", False) and not is_unrefined),
            ("stretched", window.get("stretched")),
            ("fisheye", window.get("fisheye")),
            ("rolling-shutter", window.get("rolling-shutter")),
            ("moving-crop", window.get("moving-crop")),
            ("background-rests", window.get("background-rests")),
            ("views-disagree", window.get("disagrees")),
            ("not-joined", window.get("join", {}).get("bad")),
            *((code, window.get(code)) for code in WITH_TEXT),
        ):
            if is_so:
                if code in first:
                    first[code] = first[code] or str(is_so)
                count[code] += 1
                within = slice(bisect_left(numbers, window["first"]), bisect_right(numbers, window["last"]))
                if len(about[code]) < NAMED:
                    about[code] |= dict.fromkeys(view["name"] for view in views[within][:NAMED])
    doubted = [view["name"] for view in views if view["registration"] == "uncertain"]
    beside = [view["name"] for view, number in zip(views, numbers, strict=True) if number in near]
    about["uncertain-views"], count["uncertain-views"] = dict.fromkeys(doubted or beside), stream["uncertain"]
    count["identical-pictures"] = len(views) == 1 < stream["frames"]
    of = f"of {count['windows']} windows"
    texts = {
        "uncertain-views": f"{stream['uncertain']} of {stream['frames']} frames, {len(doubted)} of them keyframes, are "
        "uncertain: their cameras may be far off",
        "not-refined": f"{count['not-refined']} {of} are not refined: their cameras are the network's, and uncertain"
        + "".join(f" ({reason})" for reason, _ in reasons.most_common(1)),
        "zoom": f"the lens zooms in {count['zoom']} {of}: frames there have focal lengths of their own",
        "stretched": f"in {count['stretched']} {of} the pixels of the film are not square, though it does not say so: "
        "cameras have a focal length across and another one down",
        "fisheye": "the lens is a fisheye: cameras have COLMAP's FOV model. Programs that know pinholes only need "
        "undistorted pictures",
        "rolling-shutter": f"in {count['rolling-shutter']} {of} frames are read row by row while the camera turns: "
        "cameras are those of the middle of each, and depth is less sure where it turns fast",
        "moving-crop": f"in {count['moving-crop']} {of} the film seems to have been steadied by moving its crop: each "
        "camera has a principal point of its own",
        "background-rests": f"in {count['background-rests']} {of} most of the picture rests while a part of it moves, "
        "as a thing on a turntable or a film within a frame: cameras are relative to what moves",
        "views-disagree": f"in {count['views-disagree']} {of} the depths of views that see the same place contradict "
        "each other: their cameras may be far off",
        "not-joined": f"{count['not-joined']} {of} do not fit those before: what is in them may be elsewhere",
        **{code: f"in {count[code]} {of} {text}" for code, text in first.items()},
        "identical-pictures": f"one keyframe in {stream['frames']} frames, as what they show does not move: without "
        "parallax, depth is the network's guess from one picture",
    }
    return [
        {"code": code, "text": text, "views": [*about[code]][:NAMED]} for code, text in texts.items() if count[code]
    ]


def _views(cloud: Cloud, keyframes: list[int]) -> np.ndarray:
    """The view [P] int32 that saw each point, by the frames of the views; -1 where it is unknown."""
    frames = np.array(keyframes or [-1])
    order = np.argsort(frames)
    found = order[np.searchsorted(frames, cloud.frame, sorter=order).clip(max=len(frames) - 1)]
    return np.where((frames[found] == cloud.frame) & (cloud.frame >= 0), found, -1).astype(np.int32)


def _points(cloud: Cloud) -> bytes:
    """points3D.bin of a sample of the cloud, without tracks; pycolmap would add the points one by one."""
    sample = slice(None, None, max(1, -(-len(cloud) // MODEL_POINTS)))
    count = len(cloud.xyz[sample])
    points = np.zeros(count, [("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("tracks", "<u8")])
    points["id"], points["xyz"], points["rgb"] = np.arange(count) + 1, cloud.xyz[sample], cloud.rgb[sample]
    return struct.pack("<Q", count) + points.tobytes()


def _array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype, values: Iterator[np.ndarray]
) -> None:
    """One array of an .npz, value by value."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        header: dict[str, Any] = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        for value in values:
            file.write(np.ascontiguousarray(value, dtype).tobytes())


def _lens(record: np.void) -> Lens:
    """The whole camera of a record."""
    return lens_of(record) or Lens("PINHOLE", tuple(map(float, record["intrinsics"])))


def _rounded(lens: Lens) -> Lens:
    """To the digits that frames between keyframes of one camera share."""
    at = LENSES[lens.model][0] + 2
    return Lens(lens.model, tuple(round(value, 3 if i < at else 9) for i, value in enumerate(lens.params)))


def _padded(lens: Lens) -> np.ndarray:
    """Parameters [12], NaN behind the last one."""
    return np.array([*lens.params, *[np.nan] * (12 - len(lens.params))])
