"""Refinement from the command line: the summary, the manifest, an archive as input, what is exported."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from lean3r.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))
import scenes


def test_an_archive_is_refined_and_every_file_states_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    scenes.write(scenes.arc(4), tmp_path / "photos")
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos")
    arguments = ["--refine-seconds", "300", "--lens", "radial", "-f", "cameras,npz", "--resolution", "120", "--json"]
    assert main(["reconstruct", archive, "-o", str(tmp_path / "out"), *arguments]) == 0
    captured = capsys.readouterr()
    done = json.loads(captured.out)
    assert done["refinement"]["status"] in ("refined", "fallback"), captured.err
    assert "reprojection error" in captured.err and "refinement" in done["seconds"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    told = manifest["refinement"]
    assert told["registered"] == 4 and told["error_px"]["after"] < told["error_px"]["before"]
    assert told["inliers"]["after"] > told["inliers"]["before"] and 0 < told["seconds"] < told["limit_s"] == 300
    for view in manifest["views"]:
        assert view["registration"] == told["status"] and view["error_px"]["after"] < 0.5
    config = tomllib.loads((tmp_path / "out" / "config.toml").read_text())
    assert config["refine"] == {"when": "auto", "seconds": 300.0, "lens": "radial", "share_lens": "auto"}
    with np.load(tmp_path / "out" / "predictions.npz") as saved:
        assert np.isfinite(saved["cam_from_world"]).all() and (saved["depth"] >= 0).all()
        assert set(saved["lens_model"]) == {"RADIAL"} and saved["lens_params"].shape == (4, 5)


@pytest.mark.parametrize("arguments", [["--refine-seconds", "0"], ["--refine", "perhaps"], ["--lens", "fisheye"]])
def test_bad_options_end_with_usage(tmp_path: Path, arguments: list[str]) -> None:
    scenes.write(scenes.arc(1), tmp_path)
    assert main(["reconstruct", str(tmp_path), "-o", str(tmp_path / "out"), *arguments]) == 2
    assert not (tmp_path / "out").exists()
