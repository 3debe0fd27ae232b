"""The library in three lines, and what the pipeline promises around the network."""

from __future__ import annotations

import json
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import lean3r
from lean3r.cli import doctor
from lean3r.cli.main import main
from lean3r.errors import InputError, UsageError, WeightsError
from lean3r.options import PointOptions
from lean3r.pipeline.devices import resolve_device, resolve_dtype
from lean3r.pipeline.load import EMBEDDED, embedded_weights
from lean3r.types import Views

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(weights: Path):
    return lean3r.load("nano", weights)


def blobs(views: int, height: int, width: int) -> Views:
    """Pictures that show something; noise would give no depth."""
    coarse = torch.rand(views, 3, height // 4, width // 4)
    return Views(torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[None])


def test_three_lines(weights: Path, photos: Path, tmp_path: Path) -> None:
    model = lean3r.load("nano", weights)
    scene = lean3r.reconstruct(model, photos)
    lean3r.export(scene, tmp_path / "out", ["colmap", "npz"])
    assert (tmp_path / "out" / "sparse" / "0" / "cameras.bin").is_file()
    assert scene.names == ("img_1.jpg", "img_2.jpg", "img_3.jpg")
    count, height, width = scene.depth.shape
    assert (count, scene.images.shape) == (3, (3, height, width, 3))
    assert (scene.images.dtype, scene.depth.dtype, scene.conf.dtype) == (np.uint8, np.float32, np.float32)
    assert (scene.cam_from_world.dtype, scene.intrinsics.dtype) == (np.float64, np.float64)
    assert not scene.mask.all(), "landscape and portrait pictures need padding"
    assert (scene.depth[~scene.mask] == 0).all() and (scene.depth[scene.mask] > 0).all()
    assert (scene.conf[scene.mask] >= 0).all() and (scene.conf[~scene.mask] == 0).all()
    np.testing.assert_allclose(scene.cam_from_world[0, :3, 3], 0, atol=1e-5)
    np.testing.assert_allclose(scene.info["up"]["direction"], [0, -1, 0], atol=1e-6)
    assert set(scene.info["seconds"]) == {"reading", "network", "points", "refinement"}
    json.dumps(scene.info)


def test_the_same_input_gives_the_same_result_and_leaves_the_callers_random_numbers_alone(model, photos: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, second = (lean3r.reconstruct(model, [photos / "img_1.jpg", photos / "img_2.jpg"]) for _ in range(2))
    assert torch.equal(torch.rand(4), expected)
    np.testing.assert_array_equal(first.depth, second.depth)
    np.testing.assert_array_equal(first.points.xyz, second.points.xyz)


def test_one_view_of_tensors_is_enough(model) -> None:
    scene = lean3r.reconstruct(model, blobs(1, 80, 48), points=PointOptions(max_points=100))
    assert scene.depth.shape == (1, 80, 48) and scene.names == ("view_0000.png",)
    assert 0 < len(scene.points.xyz) <= 100
    assert (scene.sources[0].width, scene.sources[0].height) == (48, 80)


def test_low_precision_is_used_and_results_are_float32(weights: Path) -> None:
    model = lean3r.load("nano", weights, dtype="bfloat16")
    views = blobs(2, 64, 64)
    low = lean3r.reconstruct(model, views)
    high = lean3r.reconstruct(lean3r.load("nano", weights, dtype=torch.float32), views)
    assert low.info["config"]["dtype"] == "bfloat16" and low.depth.dtype == np.float32
    error = np.abs(np.log(low.depth / high.depth))
    # Rounding may turn single pixels to the other side of a depth edge.
    assert 0 < np.median(error) < 0.05 and (error > 0.2).mean() < 0.02


def test_views_must_be_one_scene(model) -> None:
    for shape in ((2, 3, 3, 64, 64), (1, 0, 3, 64, 64), (3, 64, 64)):
        with pytest.raises(InputError, match="expected one scene"):
            lean3r.reconstruct(model, Views(torch.zeros(shape)))


def test_names_of_devices_and_number_types() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_dtype(None) is resolve_dtype("auto") is None
    assert resolve_dtype("float16") is torch.float16
    with pytest.raises(UsageError, match="unknown device 'tpu'"):
        resolve_device("tpu")
    with pytest.raises(UsageError, match="unknown dtype 'float64'"):
        resolve_dtype(torch.float64)


def test_missing_embedded_weights_say_what_to_do() -> None:
    with pytest.raises(WeightsError, match=r"giant are not part of lean3r .* Give a file with --weights") as caught:
        embedded_weights("giant")
    assert "nano" not in str(caught.value), "of which there is a recipe, but not this one"


def test_every_weights_file_in_the_package_belongs_to_a_model_and_is_small() -> None:
    for path in EMBEDDED.glob("*.safetensors"):
        assert path.stem in (*lean3r.list_models(), "stereo") and path.stat().st_size <= 12_000_000


def test_gpl_parts_of_packages_are_named_where_a_redistributor_looks() -> None:
    files = dict.fromkeys(("av", "pillow-heif"), "")
    for name in files:
        paths = metadata.files(name) or []
        files[name] = " ".join(part for part in ("x264", "x265") if any(f"lib{part}" in str(path) for path in paths))
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for name, parts in files.items():
        row = next(line for line in notice.splitlines() if line.strip().startswith(name))
        assert all(part in row for part in parts.split()), (row, parts)
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert set(tomllib.load(file)["project"]["license-files"]) == {"LICENSE", "NOTICE"}
    assert "NOTICE" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_packages_that_come_under_another_name_have_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """As triton does in triton-windows, and pycolmap in pycolmap-cuda12."""
    real, names = metadata.version, {"triton-windows": "3.6.0"}

    def version(name: str) -> str:
        if name in ("triton", "av"):
            raise metadata.PackageNotFoundError(name)
        return names.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"triton": ["triton-windows"]})
    assert doctor.version_of("triton") == "3.6.0" and doctor.version_of("pillow") == real("pillow")
    import av

    assert doctor.version_of("av") == av.__version__


def test_models_and_doctor_report(capsys) -> None:
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(lean3r.list_models())
    assert all(row["licence"] and row["parameters"] <= 6_000_000 for row in rows if row["name"] == "nano")
    assert main(["models"]) == 0 and "Apache-2.0" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    findings = {finding["part"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert {"CPU", "memory", "GPU", "torch", "pycolmap", "triton", "kernels", "FP8", "weights"} <= set(findings)
    assert not any("torchao" in text for f in findings.values() for text in map(str, f.values()))
    assert all(name in findings["GPL parts"]["detail"] for name in ("x264", "x265", "NOTICE"))
    assert {"C++ compiler", "huggingface_hub"} <= set(findings)
    assert all(f["usable"] or (f["detail"] and f["fix"]) for f in findings.values())
    assert main(["doctor"]) == 0 and "usable" in capsys.readouterr().out
