"""What users rely on by name: the package, the commands and their options, the rows of every table, the exit codes."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import subprocess
import sys

import pytest

import lean3r
from lean3r import errors
from lean3r.cli import COMMANDS
from lean3r.options import options_of
from lean3r.registry import Registry

HEAVY = {
    "torch",
    "numpy",
    "triton",
    "PIL",
    "av",
    "pycolmap",
    "trimesh",
    "OpenEXR",
    "matplotlib",
    "scipy",
    "safetensors",
    "rich",
}
PUBLIC = {
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
}
RECONSTRUCT = {
    "dense",
    "depth_size",
    "inputs",
    "out",
    "model",
    "weights",
    "plan",
    "loops",
    "device",
    "dtype",
    "resolution",
    "max_views",
    "memory",
    "memory_allow",
    "compile",
    "cuda_graphs",
    "parallel",
    "fps",
    "every",
    "frames",
    "cameras",
    "intrinsics",
    "known",
    "known_poses",
    "masks",
    "keep_sky",
    "reference_view",
    "refine",
    "refine_seconds",
    "lens",
    "share_lens",
    "images",
    "offline",
    "format",
    "mesh",
    "texture",
    "scale",
    "gps",
    "up",
    "positions",
    "crs",
    "ground_cell",
    "undistort",
    "image_factors",
    "colmap_points",
    "html_points",
    "conf_percentile",
    "max_points",
    "shared_camera",
    "overwrite",
    "view",
    "seed",
    "json",
    "verbose",
    "quiet",
}


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys\n{statement}\nprint('\\n'.join({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_public_names_are_frozen_and_resolve() -> None:
    assert set(lean3r.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(lean3r, name) is not None


def test_the_verbs_stay_functions_when_their_rooms_are_imported() -> None:
    importlib.import_module("lean3r.export.manifest")
    assert lean3r.export is importlib.import_module("lean3r.export").export


def test_import_loads_nothing_heavy() -> None:
    assert not modules_after("import lean3r") & HEAVY


def test_models_are_imported_where_tensors_have_no_memory() -> None:
    assert "lean3r" in modules_after("import torch\nwith torch.device('meta'):\n    import lean3r.models.vggt")


def modules_of_command(*arguments: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a command that succeeds."""
    return modules_after(
        "import contextlib, io\nfrom lean3r.cli.main import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()): assert main({list(arguments)}) == 0"
    )


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    # tyro draws its help without rich; numpy or torch here would cost the half second that help may take.
    assert not modules_of_command(*command.split(), "--help") & HEAVY


def test_models_answers_from_a_table() -> None:
    assert not modules_of_command("models") & (HEAVY - {"rich"})
    assert not modules_of_command("models", "vggt", "--json") & HEAVY
    assert not modules_after("import lean3r\nlean3r.list_models()") & HEAVY


def test_the_refining_process_imports_no_torch() -> None:
    """It is started for every reconstruction, and torch would double its time on a few pictures."""
    assert not modules_after("import lean3r.refine.worker") & {"torch", "scipy", "triton"}


def test_options_of_reconstruct_are_frozen() -> None:
    found: set[str] = set()
    for field in dataclasses.fields(COMMANDS.get("reconstruct")):
        group = getattr(field.default_factory, "group", None)
        found |= {field.name} if group is None else set(options_of(group))
    assert found == RECONSTRUCT


def test_every_row_of_every_table_resolves() -> None:
    tables = 0
    for module in pkgutil.walk_packages(lean3r.__path__, "lean3r."):
        if module.name == "lean3r.__main__" or ".kernel" in module.name:
            continue  # the first would run the program, the others need triton
        for value in list(vars(importlib.import_module(module.name)).values()):
            if isinstance(value, Registry):
                tables += 1
                rows = [value.get(row) for row in value]
                assert all(callable(row) or dataclasses.is_dataclass(row) for row in rows), value.kind
    assert tables >= 3


def test_exit_codes_are_frozen() -> None:
    codes = {name: kind.exit_code for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert codes == {
        "LeanError": 1,
        "RegressionError": 1,
        "UsageError": 2,
        "KernelError": 2,
        "InputError": 3,
        "MissingExtraError": 4,
        "OutOfMemoryError": 5,
        "WeightsError": 6,
    }
