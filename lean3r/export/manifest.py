"""manifest.json and config.toml: the origin, settings and conventions of a result folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from lean3r.export.atomic import MANIFEST
from lean3r.export.cameras import json_bytes
from lean3r.processes import peak_memory_mb
from lean3r.types import Reconstruction

LAYOUT_VERSION = 1
CONVENTIONS = {
    "axes": "OpenCV camera: x right, y down, z forward",
    "pose": "cam_from_world maps world points into the camera; world_from_cam is its inverse",
    "pixel": "centre of the top-left pixel at (0.5, 0.5)",
    "depth": "z-depth in world units, 0 where unknown",
    "glb": "y up: world points multiplied by up.upright_from_world, then by diag(1, -1, -1)",
}


class Written(list[Path]):
    """The files of an exporter, and figures about them for the manifest, JSON-ready."""

    def __init__(self, files: Iterable[Path], figures: Mapping[str, object]) -> None:
        super().__init__(files)
        self.figures = dict(figures)


def write(
    reconstruction: Reconstruction,
    directory: Path,
    files: Sequence[Path],
    seconds: Mapping[str, float],
    took: float,
    figures: Mapping[str, Mapping[str, object]] | None = None,
) -> list[Path]:
    """Write config.toml (from `info["config"]`, if present) and manifest.json.

    `seconds` is the time of each exporter, some of which ran side by side, and `took` that of all together; `figures`
    are those of the exporters that have any, by format. `info` of the reconstruction is merged into the top level,
    except "config", which goes to config.toml.
    """
    written = []
    info = dict(reconstruction.info)
    config = info.pop("config", None)
    if "refinement" in info:  # its entries about single views are in "views"
        info["refinement"] = {key: value for key, value in info["refinement"].items() if key != "views"}
    if config:
        written.append(directory / "config.toml")
        written[0].write_bytes(toml(config).encode("utf-8", "replace"))
    manifest = directory / MANIFEST
    listed = [*files, *written, manifest]
    stages = dict(info.pop("seconds", {}))
    if "peak_memory_mb" in info:  # the files are written now, which may have taken more than the run before
        info["peak_memory_mb"] = max(info["peak_memory_mb"], peak_memory_mb())
    manifest.write_bytes(
        json_bytes(
            {
                "layout_version": LAYOUT_VERSION,
                "lean3r": metadata.version("lean3r"),
                "warnings": [],
                **info,
                **(figures or {}),
                "seconds": {**stages, "export": round(took, 4)},
                "seconds_by_format": dict(seconds),
                "scale": reconstruction.scale,
                "conventions": CONVENTIONS,
                "network_size": {"height": reconstruction.images.shape[1], "width": reconstruction.images.shape[2]},
                "points": len(reconstruction.points.xyz),
                "views": _views(reconstruction),
                "skipped": [{"name": name, "reason": reason} for name, reason in reconstruction.skipped],
                "files": sorted(path.relative_to(directory).as_posix() for path in listed),
            }
        )
    )
    return [*written, manifest]


def write_short(directory: Path) -> None:
    """Write a manifest.json that only lists the files of a folder, so that `--overwrite` recognises it as a result."""
    files = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    about = {
        "layout_version": LAYOUT_VERSION,
        "lean3r": metadata.version("lean3r"),
        "files": sorted([*files, MANIFEST]),
    }
    (directory / MANIFEST).write_bytes(json_bytes(about))


def _views(reconstruction: Reconstruction) -> list[dict[str, object]]:
    """Each view's name, size, origin of its pose, and record of the refinement."""
    count = len(reconstruction.sources)
    registration = reconstruction.registration or ("predicted",) * count
    records = reconstruction.info.get("refinement", {}).get("views") or [{}] * count
    return [
        {"name": s.name, "width": s.width, "height": s.height, "registration": r, **record}
        for s, r, record in zip(reconstruction.sources, registration, records, strict=True)
    ]


def toml(settings: Mapping[str, object]) -> str:
    """Settings as TOML: numbers, strings, booleans, lists and (nested) tables; None, which TOML lacks, is left out."""
    return "\n".join(_lines(settings, ())) + "\n"


def _lines(table: Mapping[str, object], path: tuple[str, ...]) -> list[str]:
    lines = [f"{_text(k)} = {_value(v)}" for k, v in table.items() if v is not None and not isinstance(v, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            inner = (*path, _text(key))
            lines += ["", f"[{'.'.join(inner)}]", *_lines(value, inner)]
    return lines


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple | set):
        return f"[{', '.join(_value(v) for v in value if v is not None)}]"
    return _text(str(value), quoted=True)


def _text(text: str, *, quoted: bool = False) -> str:
    """A bare key if TOML allows it, otherwise a basic string, with the escapes of JSON and one for DEL."""
    if not quoted and text.isascii() and text.replace("-", "").replace("_", "").isalnum():
        return text
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
