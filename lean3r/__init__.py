"""lean3r: photos or a video in; cameras, depth and a point cloud out.

model = lean3r.load("nano")
scene = lean3r.reconstruct(model, "photos/")
lean3r.export(scene, "out/", ["colmap", "glb"])

Importing the package imports none of its rooms; a public name is imported on first use.
"""

from __future__ import annotations

import sys
import zlib as zlib  # before pycolmap is imported: see lean3r/colmap_library.py
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if "pycolmap" in sys.modules and sys.platform == "linux" and sys.maxsize > 2**32:
    from lean3r.inputs.zlib_repair import repair as _repair

    _repair()

if TYPE_CHECKING:
    from lean3r.compress import compress as compress
    from lean3r.errors import LeanError as LeanError
    from lean3r.export import export as export
    from lean3r.export.options import ExportOptions as ExportOptions
    from lean3r.group import Group as Group
    from lean3r.grow.run import add as add
    from lean3r.inputs.frames import FrameChoice as FrameChoice
    from lean3r.inputs.given import GivenCameras as GivenCameras
    from lean3r.inputs.pictures import Pictures as Pictures
    from lean3r.models import list_models as list_models
    from lean3r.options import PointOptions as PointOptions
    from lean3r.pipeline.load import load as load
    from lean3r.pipeline.options import CameraOptions as CameraOptions
    from lean3r.pipeline.reconstruct import reconstruct as reconstruct
    from lean3r.pipeline.save import load_into as load_into
    from lean3r.pipeline.save import save as save
    from lean3r.pipeline.together import take_share as take_share
    from lean3r.refine.options import RefineOptions as RefineOptions
    from lean3r.stereo.options import StereoOptions as StereoOptions
    from lean3r.stream.options import StreamOptions as StreamOptions
    from lean3r.stream.run import stream as stream
    from lean3r.types import PointCloud as PointCloud
    from lean3r.types import Prediction as Prediction
    from lean3r.types import Reconstruction as Reconstruction
    from lean3r.types import Source as Source
    from lean3r.types import Views as Views

__version__ = "0.1.0"

_PUBLIC = {
    "add": "lean3r.grow.run",
    "load": "lean3r.pipeline.load",
    "load_into": "lean3r.pipeline.save",
    "reconstruct": "lean3r.pipeline.reconstruct",
    "compress": "lean3r.compress",
    "save": "lean3r.pipeline.save",
    "export": "lean3r.export",
    "list_models": "lean3r.models",
    "CameraOptions": "lean3r.pipeline.options",
    "ExportOptions": "lean3r.export.options",
    "FrameChoice": "lean3r.inputs.frames",
    "Group": "lean3r.group",
    "GivenCameras": "lean3r.inputs.given",
    "LeanError": "lean3r.errors",
    "Pictures": "lean3r.inputs.pictures",
    "PointCloud": "lean3r.types",
    "PointOptions": "lean3r.options",
    "Prediction": "lean3r.types",
    "Reconstruction": "lean3r.types",
    "RefineOptions": "lean3r.refine.options",
    "Source": "lean3r.types",
    "StereoOptions": "lean3r.stereo.options",
    "StreamOptions": "lean3r.stream.options",
    "stream": "lean3r.stream.run",
    "take_share": "lean3r.pipeline.together",
    "Views": "lean3r.types",
}
__all__ = [
    "CameraOptions",
    "ExportOptions",
    "FrameChoice",
    "GivenCameras",
    "Group",
    "LeanError",
    "Pictures",
    "PointCloud",
    "PointOptions",
    "Prediction",
    "Reconstruction",
    "RefineOptions",
    "Source",
    "StereoOptions",
    "StreamOptions",
    "Views",
    "__version__",
    "add",
    "compress",
    "export",
    "list_models",
    "load",
    "load_into",
    "reconstruct",
    "save",
    "stream",
    "take_share",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lean3r' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `lean3r.export` and `lean3r.stream` functions: importing the rooms of these names would replace them."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
