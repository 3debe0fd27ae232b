"""The folder of a training run: whose it is, and one run at a time."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import nn

from lean3r.errors import UsageError, WeightsError
from lean3r.train import DISTILLATIONS
from lean3r.train.adapting import load_phase
from lean3r.train.checkpoints.state import lock_folder
from lean3r.train.recipes.sources import Data, Source
from lean3r.train.runs import keep_recipe, run_folder

RECIPE = {"processes": 1, "phases": [{"stages": [{"accumulate": 1}]}]}


@pytest.mark.parametrize("name", ["recipe.json", "phase-1", "nano.safetensors"])
@pytest.mark.parametrize("resume", [False, True])
def test_folders_that_are_not_runs_are_not_overwritten(tmp_path: Path, name: str, resume: bool) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / name).write_text('{"name": "soup"}')
    taken = pytest.raises(UsageError, match=f"contains {name}, which is not from a training run")
    with taken, run_folder(tmp_path, RECIPE, resume, ["phase-1", "nano.safetensors"]):
        pytest.fail("the block must not run")
    assert (tmp_path / name).read_text() == '{"name": "soup"}'
    (tmp_path / name).unlink()
    with run_folder(tmp_path, RECIPE, False, ["phase-1", "nano.safetensors"]):
        (tmp_path / "nano.safetensors").touch()
    with run_folder(tmp_path, RECIPE, True, ["phase-1", "nano.safetensors"]):
        assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_file_is_no_folder_of_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(UsageError, match="cannot be the folder of a run"),
        run_folder(tmp_path / name, RECIPE, False, []),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "file").read_text() == "mine"


def test_damaged_weights_of_a_phase_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(nn.Linear(4, 4).state_dict(), path)
    for size in (100, 20, 0):
        os.truncate(path, size)
        with pytest.raises(WeightsError, match=r"weights\.safetensors is damaged .* Delete it and resume"):
            load_phase(nn.Linear(4, 4), tmp_path)


def test_resuming_nothing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A mistyped folder would otherwise start hours of training from the beginning, without a word."""
    for resume, told in ((False, False), (True, False)):
        with run_folder(tmp_path / "run", RECIPE, resume, []):
            assert ("no run to resume" in caplog.text) == told
    with run_folder(tmp_path / "rum", RECIPE, True, []):
        assert f"'{tmp_path / 'rum'}' holds no run to resume; a new one starts" in caplog.text


def test_one_run_at_a_time_which_tidies_up(tmp_path: Path) -> None:
    (tmp_path / ".recipe.json.123.partial").touch()
    with run_folder(tmp_path, RECIPE, False, []):
        assert not list(tmp_path.glob("*.partial"))
        with pytest.raises(UsageError, match="another run writes to"), run_folder(tmp_path, RECIPE, True, []):
            pytest.fail("the block must not run")
    with lock_folder(tmp_path, 0), run_folder(tmp_path / "other", RECIPE, False, []):
        pass


def test_data_may_lie_elsewhere_when_a_run_is_resumed(tmp_path: Path) -> None:
    recipe = DISTILLATIONS.get("nano-gsa-fp8")(None)

    def at(root: str) -> dict[str, object]:
        return replace(recipe, data=Data((Source("blendedmvs", root),))).as_dict()

    keep_recipe(tmp_path, at("/scratch/job-1"), False)
    keep_recipe(tmp_path, at("/scratch/job-2"), True)
    with pytest.raises(UsageError, match=r"sources"):
        keep_recipe(tmp_path, recipe.as_dict(), True)


def test_the_same_batches_on_another_number_of_processes_are_the_same_recipe(tmp_path: Path) -> None:
    recipe = DISTILLATIONS.get("nano-gsa-fp8")(None).as_dict()
    keep_recipe(tmp_path, recipe, False)
    (first, *others), four = recipe["phases"], {"accumulate": 4}
    shared = {**recipe, "phases": [first | {"stages": [first["stages"][0] | four]}, *others]}
    with pytest.raises(UsageError, match=r"phases\.0\.stages\.0\.accumulate: 1 in the run, 4 now"):
        keep_recipe(tmp_path, shared, True)
    keep_recipe(tmp_path / "4", shared | {"phases": [shared["phases"][0]]}, False)
    keep_recipe(tmp_path / "4", recipe | {"processes": 4, "phases": [first]}, True)
