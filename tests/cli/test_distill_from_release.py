"""Training starts from a file of Lite3R's release, and what it trains can be written as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import lean3r
from lean3r.cli.distill import finished_phases, publish, student_at
from lean3r.compress import prepare
from lean3r.errors import WeightsError
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import save_model, save_weights
from lean3r.models.lite3r import is_left_out, released_name
from lean3r.models.vggt import Vggt
from lean3r.models.weight_files import open_weights
from lean3r.pipeline.exchange import export_file
from lean3r.train import DISTILLATIONS

HEAD = "point_head.norm.weight"
TINY = replace(Vggt.SMALLEST, point_head=False, track_head=False)


def release(model: Backbone, path: Path, *, drop: str = "\0") -> Path:
    """A file as the release writes it, without names that contain `drop`."""
    tensors = {released_name(k): v for k, v in model.KEY_MAP.write(model.state_dict()).items() if drop not in k}
    torch.save({"model": tensors, "optim": None, "step": 113, "extra": {}}, path)
    return path


def test_training_starts_from_a_file_of_the_release_and_ends_in_one(tmp_path: Path) -> None:
    recipe = DISTILLATIONS.get("lite3r-vggt")(None)
    torch.manual_seed(0)
    first = release(prepare(Vggt(TINY), "lite3r-w4a16"), tmp_path / "stage1.pt")
    from_file = open_weights(first)
    with patch.dict(Vggt.SIZES, {"vggt": Vggt.SMALLEST}):  # the teacher has all heads
        teacher, dense = Vggt(Vggt.SMALLEST), tmp_path / "dense.safetensors"
        save_model(teacher, dense)
        student = student_at(recipe, 0, teacher, str(first), tmp_path)
        own = student.KEY_MAP.write(student.state_dict())
        assert all(torch.equal(own[name], value) for name, value in from_file.read(from_file.files))
        assert torch.equal(own[HEAD], teacher.KEY_MAP.write(teacher.state_dict())[HEAD])
        for phase in range(2):
            student = student_at(recipe, phase, teacher, str(first), tmp_path)
            expected = {name: value for name, value in own.items() if phase == 0 or not name.endswith(".smooth")}
            assert_equal_tensors(student.KEY_MAP.write(student.state_dict()), expected)
            folder = tmp_path / recipe.phases[phase].config.name
            folder.mkdir()
            save_weights(student.state_dict(), folder / "weights.safetensors", {})
        path = publish(recipe, tmp_path, str(dense), str(first))
        assert lean3r.load("vggt", weights=path).plan == recipe.plan
    full = path.with_name("lite3r-vggt-full.safetensors")
    last = release(prepare(Vggt(TINY), "lite3r"), tmp_path / "final.pt")
    for name, student_file, done in (
        ("lite3r-vggt", first, 1),
        ("lite3r-vggt-lean", first, 1),
        ("lite3r-da3", first, 0),  # its first stage has other activations
        ("lite3r-vggt", last, 0),  # has all behind it
        ("lite3r-vggt", full, 0),
        ("lite3r-vggt", dense, 0),
    ):
        assert finished_phases(DISTILLATIONS.get(name)(None), str(student_file)) == done
    again = student_at(recipe, 0, teacher, str(full), tmp_path)
    assert_equal_tensors(again.KEY_MAP.write(again.state_dict()), own)
    with patch.dict(Vggt.SIZES, {"vggt": TINY}):
        export_file("vggt", full, tmp_path / "last.pt", "lite3r")
    expected = {released_name(name): v for name, v in expected.items() if not is_left_out(name)}
    assert_equal_tensors(torch.load(tmp_path / "last.pt", weights_only=True)["model"], expected)
    half = release(prepare(Vggt(TINY), "lite3r"), tmp_path / "half.pt", drop="frame_blocks.1.")
    with pytest.raises(WeightsError, match=r"the weights do not fit the student: .*Missing key"):
        student_at(recipe, 0, teacher, str(half), tmp_path)


def assert_equal_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
