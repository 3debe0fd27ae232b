"""A result folder as content of a page: of any version, whole or half deleted, of photos or of a stream that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lean3r.errors import InputError
from lean3r.export.atomic import MANIFEST
from lean3r.export.manifest import LAYOUT_VERSION
from lean3r.export.ply_reader import Ply, read_ply
from lean3r.json_text import parse_json
from lean3r.types import Source
from lean3r.view.album import FolderAlbum, Maps, is_file
from lean3r.view.arrays import open_arrays
from lean3r.view.content import (
    REGISTRATIONS,
    Camera,
    Content,
    Points,
    Surface,
    facts_of,
    lens_of,
    make_camera,
    recorded_up,
    scale_text,
    warning_text,
)
from lean3r.view.others import TRANSFORMS, cameras_in, points_in

CAMERAS, PREDICTIONS, POINTS, MESH, STREAM = "cameras.json", "predictions.npz", "points.ply", "mesh.ply", "stream.json"
WATCHED = (MANIFEST, CAMERAS, POINTS)
SHOWN = 3  # missing files that a note names
ON_PIXEL, SAME_DEPTH = 0.05, 2e-3  # of a pixel, of the depth: how exactly a point is where its pixel says


def read_content(folder: str | Path, stored: Sequence[str | Path] = ()) -> Content:
    """What can be shown of a result. `stored` says where its pictures are now, if they moved.

    InputError if there is no such folder, or nothing in it can be shown; whatever else is missing is in the notes.
    """
    shown, folder = str(folder), Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"no such folder: {shown}; expected a result of lean3r.")
    notes: list[str] = []
    manifest = _manifest(folder, notes)
    arrays = _arrays(folder, notes)
    cameras = _cameras(folder, arrays, manifest, notes)
    points = _points(folder, len(cameras), notes)
    if not len(cameras) and not len(points):
        raise InputError(
            f"{shown} has neither cameras nor points that can be read ({CAMERAS}, {PREDICTIONS}, {POINTS}, a COLMAP "
            f"model, {TRANSFORMS}); expected a result of lean3r."
        )
    album = FolderAlbum(folder, cameras, Maps.of(arrays, len(cameras)), manifest, stored)
    if len(points) and album.maps is not None and (points.view < 0).all():
        points = Points(points.xyz, points.rgb, points.conf, points.normals, views_of(points.xyz, cameras, album.maps))
    if gone := album.without_photo:
        what = f"{len(gone):,} of {len(cameras):,} pictures" if len(gone) < len(cameras) else "The pictures"
        where = " in " + ", ".join(map(str, stored)) if stored else ""
        advice = "Their files must have these names" if stored else "Say with --stored where they are now"
        notes.append(f"{what} were not found{where} ({_few(gone)}). {advice}.")
    is_stream = (folder / STREAM).is_file()
    is_done = not is_stream or manifest.get("is_complete") is True
    if not is_done:
        notes.append(f"This stream is not complete: {len(cameras):,} keyframes so far.")
    scale = _text(manifest.get("scale"), "relative")
    facts = [("views", f"{len(cameras):,}"), ("points", f"{len(points):,}"), ("scale", scale_text(scale))]
    return Content(
        title=folder.resolve().name,
        cameras=cameras,
        points=points,
        album=album,
        scale=scale,
        surface=surface_in(folder, notes),
        facts=tuple(facts + facts_of(dict(manifest))),
        notes=tuple(notes),
        up=recorded_up(manifest),
        is_done=is_done,
    )


def state_of(folder: Path) -> tuple[float, ...]:
    """Something that changes when the result in a folder does."""
    return tuple(path.stat().st_mtime for name in WATCHED if (path := folder / name).is_file())


def _manifest(folder: Path, notes: list[str]) -> Mapping[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        notes.append(f"{MANIFEST} is missing: what made this result is not known.")
        return {}
    try:
        manifest = parse_json(path.read_bytes())
        if not isinstance(manifest, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        notes.append(f"{MANIFEST} cannot be read ({error}).")
        return {}
    version = manifest.get("layout_version")
    if version != LAYOUT_VERSION:
        made = _text(manifest.get("lean3r"), "?")
        notes.append(f"This result has the layout {version} (lean3r {made}); what is known of it is shown.")
    warnings = manifest.get("warnings")
    notes += [warning_text(warning) for warning in (warnings if isinstance(warnings, list) else [])]
    listed = manifest.get("files")
    names = [name for name in (listed if isinstance(listed, list) else []) if isinstance(name, str)]
    gone = sorted(name for name in names if not is_file(folder / name))
    if gone:
        notes.append(f"Missing files: {_few(gone)}.")
    return manifest


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def _arrays(folder: Path, notes: list[str]) -> Mapping[str, np.ndarray]:
    if not (folder / PREDICTIONS).is_file():
        return {}
    try:
        return open_arrays(folder / PREDICTIONS)
    except InputError as error:
        notes.append(f"Depth and confidence are left out: {error}")
        return {}


def _cameras(
    folder: Path, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any], notes: list[str]
) -> tuple[Camera, ...]:
    """From cameras.json, with what predictions.npz knows of the network's pictures; else from files for others."""
    try:
        path = folder / CAMERAS
        rows = _from_json(path) if path.is_file() else _from_arrays(arrays) or cameras_in(folder, manifest)
        if not rows and manifest.get("files"):
            notes.append(f"Cameras are in neither {CAMERAS} nor {PREDICTIONS}: add cameras to --format.")
        mapped = arrays.get("original_from_network")
        cameras = []
        for view, row in enumerate(rows):
            if min(row["width"], row["height"], row["k"][0, 0], row["k"][1, 1]) <= 0:
                raise ValueError(f"{row['name']} has no size or no focal length")
            sx, sy, ox, oy = mapped[view].tolist() if mapped is not None and len(mapped) == len(rows) else (1, 1, 0, 0)
            source = Source(row["name"], row["width"], row["height"], (sx, sy, ox, oy), timestamp_s=row["time"])
            network = np.array([[1 / sx, 0, -ox / sx], [0, 1 / sy, -oy / sy], [0, 0, 1]]) @ row["k"]
            cameras.append(make_camera(source, row["pose"], network, row["registration"], row["lens"]))
        return tuple(cameras)
    except (InputError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        notes.append(f"The cameras cannot be read ({error}).")
        return ()


def _from_json(path: Path) -> list[dict[str, Any]]:
    rows = []
    for view in parse_json(path.read_bytes())["views"]:
        lens = view.get("lens")
        registration = str(view.get("registration", "uncertain" if view.get("uncertain") else "predicted"))
        time_s = view.get("timestamp_s")
        rows.append(
            {
                "name": str(view["name"]),
                "width": int(view["width"]),
                "height": int(view["height"]),
                "k": _matrix(view["K"], 3),
                "pose": _matrix(view["cam_from_world"], 4),
                "registration": registration if registration in REGISTRATIONS else "predicted",
                "lens": lens_of(lens["model"], lens["params"]) if isinstance(lens, dict) else None,
                "time": float(time_s) if isinstance(time_s, int | float) else None,
            }
        )
    return rows


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    if not {"names", "K_original", "cam_from_world", "image_size"} <= set(arrays):
        return []
    count = len(arrays["names"])
    states, models = arrays.get("registration", np.array(["predicted"] * count)), arrays.get("lens_model")
    return [
        {
            "name": str(arrays["names"][view]),
            "width": int(arrays["image_size"][view][0]),
            "height": int(arrays["image_size"][view][1]),
            "k": _matrix(arrays["K_original"][view], 3),
            "pose": _matrix(arrays["cam_from_world"][view], 4),
            "registration": str(states[view]) if str(states[view]) in REGISTRATIONS else "predicted",
            "lens": lens_of(models[view], arrays["lens_params"][view]) if models is not None else None,
            "time": None,
        }
        for view in range(count)
    ]


def _matrix(values: Any, side: int) -> np.ndarray:
    matrix = np.asarray(values, np.float64)
    if matrix.shape != (side, side) or not np.isfinite(matrix).all():
        raise ValueError(f"a matrix of {side} x {side} finite numbers was expected")
    return matrix


def _points(folder: Path, views: int, notes: list[str]) -> Points:
    try:
        if not (folder / POINTS).is_file():
            found = points_in(folder)
            instead = "there is no cloud" if found is None else "the points are those of the COLMAP model"
            notes.append(f"{POINTS} is missing: {instead}.")
            return found or Points.none()
        ply = read_ply(folder / POINTS)
    except InputError as error:
        notes.append(f"There is no cloud: {error}")
        return Points.none()
    if ply.missing:
        notes.append(f"{POINTS} is cut off: {ply.missing:,} points are missing.")
    xyz = _columns(ply, ("x", "y", "z"), np.float32, 0)
    confidence = ply.columns("confidence")
    conf = np.ones(len(xyz), np.float32) if confidence is None else confidence[:, 0].astype(np.float32)
    rgb = _columns(ply, ("red", "green", "blue"), np.uint8, 128)
    normals = np.nan_to_num(_columns(ply, ("nx", "ny", "nz"), np.float32, 0))
    stated = _columns(ply, ("view",), np.float64, -1)[:, 0]  # streams say it; other clouds are ordered by view
    view = np.where((stated >= 0) & (stated < views), stated, -1).astype(np.int32)
    return Points(xyz, rgb, conf, normals, view)


def _columns(ply: Ply, names: tuple[str, ...], kind: type, otherwise: int) -> np.ndarray:
    found = ply.columns(*names)
    return np.full((len(ply.vertices), len(names)), otherwise, kind) if found is None else found.astype(kind)


def surface_in(folder: Path, notes: list[str]) -> Surface | None:
    """The mesh of a result, if there is one; a note says why it cannot be read."""
    if not (folder / MESH).is_file():
        return None
    try:
        ply = read_ply(folder / MESH)
    except InputError as error:
        notes.append(f"There is no mesh: {error}")
        return None
    xyz = _columns(ply, ("x", "y", "z"), np.float32, 0)
    is_sound = np.asarray(np.isfinite(xyz).all(axis=1))
    faces = ply.faces[is_sound[ply.faces].all(axis=1)]
    return Surface(np.nan_to_num(xyz), _columns(ply, ("red", "green", "blue"), np.uint8, 160), faces)


def views_of(xyz: np.ndarray, cameras: Sequence[Camera], maps: Maps) -> np.ndarray:
    """The view [P] whose depth map each point comes from, -1 where it is not clear.

    A cloud is ordered by view, and its points lie at the centres of their pixels: what follows the points of one view
    is tried on the next.
    """
    view_of, at = np.full(len(xyz), -1, np.int32), 0
    height, width = maps.depth.shape[1:]
    for view, camera in enumerate(cameras):
        block = xyz[at : at + height * width].astype(np.float64)
        if not len(block):
            break
        cam = block @ camera.pose[:3, :3].T + camera.pose[:3, 3]
        place = maps.project(view, camera, cam)
        cell = np.floor(place)
        with np.errstate(invalid="ignore"):
            inside = np.asarray(((cell >= 0) & (cell < [width, height])).all(axis=1))
            inside &= (np.abs(place - cell - 0.5) < ON_PIXEL).all(axis=1)
        cols, rows = np.where(inside[:, None], cell, 0).astype(np.int64).T
        known = np.asarray(maps.depth[view])[rows, cols]
        fits = inside & (np.abs(known - cam[:, 2]) <= SAME_DEPTH * np.abs(cam[:, 2]))
        balance = np.cumsum(np.where(fits, 1, -1))
        if (count := int(balance.argmax()) + 1) and balance[count - 1] > 0:
            view_of[at : at + count] = np.where(fits[:count], view, -1)
            at += count
    return view_of if (view_of >= 0).mean() > 0.5 else np.full(len(xyz), -1, np.int32)


def _text(value: object, otherwise: str) -> str:
    return value if isinstance(value, str) else otherwise
