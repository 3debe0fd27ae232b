"""The folder of a training run, and what it is judged on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from data.tiny import write

from lean3r.cli.main import main
from lean3r.cli.running import SETS, HeldOut, run_folder, validate
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.errors import UsageError
from lean3r.train.checkpoints.state import lock_folder
from lean3r.train.config import Stage, TrainConfig
from lean3r.train.recipes.sources import Source
from lean3r.types import Views

RECIPE = {"processes": 1, "phases": [{"stages": [{"accumulate": 1}]}]}
CONFIG = TrainConfig("a", 0, (Stage(200, 24, 32, (2,), 2),))


@pytest.mark.parametrize("name", ["recipe.json", "phase-1", "nano.safetensors"])
@pytest.mark.parametrize("resume", [False, True])
def test_what_is_no_training_run_is_not_written_over(tmp_path: Path, name: str, resume: bool) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / name).write_text('{"name": "soup"}')
    taken = pytest.raises(UsageError, match=f"{name} that is no training run's")
    with taken, run_folder(tmp_path, RECIPE, resume, ["phase-1", "nano.safetensors"]):
        pytest.fail("the block must not run")
    assert (tmp_path / name).read_text() == '{"name": "soup"}'
    (tmp_path / name).unlink()
    with run_folder(tmp_path, RECIPE, False, ["phase-1", "nano.safetensors"]):
        (tmp_path / "nano.safetensors").touch()
    with run_folder(tmp_path, RECIPE, True, ["phase-1", "nano.safetensors"]):
        assert (tmp_path / "notes.txt").read_text() == "mine"


def test_one_run_at_a_time_which_tidies_up(tmp_path: Path) -> None:
    (tmp_path / ".recipe.json.123.partial").touch()
    with run_folder(tmp_path, RECIPE, False, []):
        assert not list(tmp_path.glob("*.partial"))
        with pytest.raises(UsageError, match="another run writes to"), run_folder(tmp_path, RECIPE, True, []):
            pytest.fail("the block must not run")
    with lock_folder(tmp_path, 0), run_folder(tmp_path / "other", RECIPE, False, []):
        pass


class Flat:
    """Sees every camera at the origin and a plane, and counts the scenes."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, views: Views) -> SimpleNamespace:
        self.shapes.append(tuple(views.images.shape))
        batch, count, _, height, width = views.images.shape
        eye = torch.eye(4).expand(batch, count, 4, 4)
        return SimpleNamespace(
            cam_from_world=eye, intrinsics=eye[..., :3, :3], depth=torch.ones(batch, count, height, width)
        )


def test_held_out_scenes_may_be_fewer_and_of_a_set_on_disk(tmp_path: Path) -> None:
    world = SyntheticWorld(24, 32, 2, seed=1, tiles=16, tile_size=16)
    few, sets = Flat(), ((2, 10, 40), (4, 4, 40))
    figures = validate(world, CONFIG, 1, sets, HeldOut(scenes=5), few)
    assert [shape[:2] for shape in few.shapes] == [(5, 2), (4, 4), (1, 4)] and figures["auc30"] == figures["auc30_4"]

    write("blendedmvs", tmp_path)
    real, again = Flat(), Flat()
    held_out = HeldOut((Source("blendedmvs", str(tmp_path)),), 2)
    one = validate(world, CONFIG, 2, ((2, 1, 40),), held_out, real)
    assert real.shapes == [(1, 2, 3, 48, 64)] * 2
    assert one == pytest.approx(validate(world, CONFIG, 2, ((2, 1, 40),), held_out, again), nan_ok=True), (
        "always the same"
    )
    assert one["abs_rel_2"] > 0
    write("dl3dv", tmp_path / "none")
    figures = validate(world, CONFIG, 1, ((2, 1, 1),), HeldOut((Source("dl3dv", str(tmp_path / "none")),)), Flat())
    assert "abs_rel_2" not in figures and "auc30_2" in figures, "cameras alone where no depth is known"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--validate-scenes", "0"], 2, "--validate-every 0"),
        (["--validate-data", "blendedmvs=/nowhere/at/all"], 3, "is no folder"),
        (["--validate-data", "synthetic"], 2, "what is taken without any data"),
        (["--validate-data", "blendedmvs={tiny}"], 3, "fewer than 8 views"),
    ],
)
def test_what_cannot_be_judged_is_said_before_the_first_step(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("blendedmvs", tmp_path / "tiny")
    arguments = [argument.format(tiny=tmp_path / "tiny") for argument in arguments]
    assert main(["train", "nano", "-o", str(tmp_path / "run"), *arguments]) == code
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert {views for views, _, _ in SETS} == {2, 8}
