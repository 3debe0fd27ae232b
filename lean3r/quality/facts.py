"""What a report is made of: one scene and what its run recorded, fresh or read from a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lean3r.errors import InputError, LeanError
from lean3r.export import preview
from lean3r.export.atomic import MANIFEST
from lean3r.export.ply_reader import read_ply
from lean3r.grow.result import CAMERAS, CONFIG, MODEL, PREDICTIONS, About, read_scene
from lean3r.json_text import parse_json
from lean3r.pipeline.trust import no_points
from lean3r.quality.plain import as_list, as_map, as_number, as_text
from lean3r.types import Reconstruction, Source

STREAM, POINTS, PREVIEW = "stream.json", "points.ply", "preview.jpg"
LARGEST_PREVIEW = 4_000_000  # bytes of a file that is shown as it is
MOST_POINTS = 200_000


@dataclass(frozen=True, eq=False)
class View:
    """One view: its name, its size in pixels (None: not known), the origin of its pose, and what else was recorded."""

    name: str
    size: tuple[int, int] | None
    registration: str
    record: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Facts:
    """A result. `about` is what its manifest says, `config` its settings; `scene` holds its arrays (None: they are
    gone), without depth if only the cameras could be read; `cloud` is places [P, 3] and colours [P, 3]; `preview` a
    JPEG; `missing` says in words what could not be read."""

    title: str
    about: Mapping[str, Any]
    config: Mapping[str, Any]
    views: Sequence[View]
    scene: Reconstruction | None
    cloud: tuple[np.ndarray, np.ndarray] | None
    preview: bytes | None
    skipped: Sequence[tuple[str, str]]
    points: int | None
    scale: str
    missing: Sequence[str] = ()


def facts_of(scene: Reconstruction) -> Facts:
    """Of a scene in memory."""
    about = {key: value for key, value in scene.info.items() if key != "config"}
    records = as_list(as_map(about.get("refinement")).get("views")) or [{}] * len(scene.sources)
    labels = scene.registration or ("predicted",) * len(scene.sources)
    views = [
        View(source.name, (source.width, source.height), label, as_map(record))
        for source, label, record in zip(scene.sources, labels, records, strict=False)
    ]
    sample = slice(None, None, 1 + len(scene.points.xyz) // MOST_POINTS)
    cloud = (scene.points.xyz[sample], scene.points.rgb[sample])
    config = as_map(scene.info.get("config"))
    return Facts(
        title=_title(config),
        about=about,
        config=config,
        views=views,
        scene=scene,
        cloud=cloud,
        preview=preview.jpeg(Image.fromarray(preview.draw(scene.of_certain()))),
        skipped=scene.skipped,
        points=len(scene.points.xyz),
        scale=scene.scale,
    )


def facts_of_folder(folder: str | Path) -> Facts:
    """Of a result folder, as far as it can still be read: what is missing is said. InputError if it is no result."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}; expected a result of lean3r.")
    missing: list[str] = []
    manifest = _table(folder / MANIFEST, missing)
    known = (MANIFEST, CAMERAS, PREDICTIONS, STREAM)
    if not manifest and not any((folder / name).is_file() for name in known):
        raise InputError(f"{folder} has none of {', '.join(known)}; expected a result of lean3r.")
    config = _toml(folder / CONFIG, missing)
    if gone := [name for name in as_list(manifest.get("files")) if not (folder / str(name)).is_file()]:
        some = ", ".join(map(str, gone[:5])) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
        missing.append(f"files of the result that are gone: {some}")
    scene = _arrays(folder, About({**manifest, "views": as_list(manifest.get("views"))}, config), missing)
    return Facts(
        title=_title(config) or folder.resolve().name,
        about=manifest,
        config=config,
        views=_views(manifest, scene),
        scene=scene,
        cloud=_cloud(folder / POINTS, missing),
        preview=_preview(folder / PREVIEW),
        skipped=[
            (as_text(as_map(each).get("name"), "?"), as_text(as_map(each).get("reason"), "no reason recorded"))
            for each in as_list(manifest.get("skipped"))
        ],
        points=None if (count := as_number(manifest.get("points"))) is None else int(count),
        scale=as_text(manifest.get("scale"), "not recorded"),
        missing=missing,
    )


def _title(config: Mapping[str, Any]) -> str:
    """The last two parts of the inputs' paths."""
    names = ["/".join(Path(text).parts[-2:]) for text in as_list(config.get("inputs")) if isinstance(text, str)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _table(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        missing.append(f"{path.name} is not there: settings, costs and warnings of the run are not known")
    except (OSError, ValueError) as error:
        missing.append(f"{path.name} cannot be read ({error})")
    else:
        if isinstance(value, dict):
            return value
        missing.append(f"{path.name} is not a table")
    return {}


def _toml(path: Path, missing: list[str]) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        missing.append(f"{path.name} is not there: the settings are not known")
    except (OSError, ValueError) as error:
        missing.append(f"{path.name} cannot be read ({error})")
    return {}


def _arrays(folder: Path, about: About, missing: list[str]) -> Reconstruction | None:
    """The scene with its arrays; else with its cameras alone, from cameras.json; else None."""
    if (folder / PREDICTIONS).is_file():
        try:
            return read_scene(folder, about)
        except LeanError as error:
            missing.append(str(error))
        if about.manifest.get("refinement") is not None and (folder / MODEL).exists():
            try:  # the triangulated points may be what is damaged
                kept = {key: value for key, value in about.manifest.items() if key != "refinement"}
                return read_scene(folder, About(kept, about.config))
            except LeanError:
                pass
    else:
        missing.append(f"{PREDICTIONS} is not there: depth and confidence are not known (format npz)")
    try:
        return _cameras_alone(parse_json((folder / CAMERAS).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        missing.append(f"{CAMERAS} cannot be read ({error or type(error).__name__}): the cameras are not known")
    return None


def _cameras_alone(stored: Any) -> Reconstruction:
    """A scene without depth from cameras.json; ValueError, KeyError or TypeError if that is damaged."""
    views = stored["views"]
    poses = np.array([view["cam_from_world"] for view in views], np.float64).reshape(-1, 4, 4)
    matrices = np.array([view["K"] for view in views], np.float64).reshape(-1, 3, 3)
    if not len(poses) or not np.isfinite(poses).all() or not np.isfinite(matrices).all():
        raise ValueError("it has no cameras, or some that are not finite")
    nothing = np.zeros((len(poses), 1, 1), np.float32)
    return Reconstruction(
        sources=tuple(Source(str(view["name"]), int(view["width"]), int(view["height"])) for view in views),
        images=np.full((len(poses), 1, 1, 3), 128, np.uint8),
        mask=np.ones_like(nothing, bool),
        depth=nothing,
        conf=nothing,
        cam_from_world=poses,
        intrinsics=matrices,
        points=no_points(),
        registration=tuple(view.get("registration", "predicted") for view in views),
    )


def _views(manifest: Mapping[str, Any], scene: Reconstruction | None) -> list[View]:
    """The views of the scene with their records, or those of the manifest if there is no scene."""
    listed = [as_map(each) for each in as_list(manifest.get("views"))]
    if scene is None:
        sizes = [(as_number(each.get("width")), as_number(each.get("height"))) for each in listed]
        return [
            View(
                as_text(each.get("name"), "?"),
                None if width is None or height is None else (int(width), int(height)),
                as_text(each.get("registration"), "not recorded"),
                each,
            )
            for each, (width, height) in zip(listed, sizes, strict=True)
        ]
    records = {as_text(each.get("name")): each for each in listed}
    labels = scene.registration or ("predicted",) * len(scene.sources)
    return [
        View(source.name, (source.width, source.height), str(label), records.get(source.name, {}))
        for source, label in zip(scene.sources, labels, strict=True)
    ]


def _cloud(path: Path, missing: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        ply = read_ply(path)
    except InputError as error:
        missing.append(str(error))
        return None
    xyz, rgb = ply.columns("x", "y", "z"), ply.columns("red", "green", "blue")
    if ply.missing or xyz is None or rgb is None:
        missing.append(f"{path.name} cannot be read (it is cut short, or lacks colours)")
        return None
    kept = np.flatnonzero(np.isfinite(xyz).all(axis=1))
    kept = kept[:: 1 + len(kept) // MOST_POINTS]
    return xyz[kept], rgb[kept]


def _preview(path: Path) -> bytes | None:
    """The stored preview, if it is a picture of a harmless size."""
    try:
        if path.stat().st_size > LARGEST_PREVIEW:
            return None
        with Image.open(path) as picture:
            if picture.format != "JPEG" or picture.width > 4096 or picture.height > 4096:
                return None
            return preview.jpeg(picture.convert("RGB"))
    except Exception:  # a damaged file raises anything; the report is complete without it
        return None
