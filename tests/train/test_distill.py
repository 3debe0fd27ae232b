"""Distillation: every recipe takes a step on small models, trains what it says and leaves the teacher alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from data import tiny as tiny_copies
from safetensors.torch import load_file
from torch import nn

from lean3r.compress import compress, convert, resolve_plan
from lean3r.compress.distill import gamma
from lean3r.compress.plan import CompressionPlan, RemoveStep
from lean3r.compress.sparsify import plan_of
from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.errors import InputError, UsageError
from lean3r.models.base import Backbone
from lean3r.models.da3 import Da3, Da3Config
from lean3r.models.nano import Nano, NanoConfig
from lean3r.models.pi3 import Pi3, Pi3Config
from lean3r.models.pi3x import Pi3X
from lean3r.models.speed3r import from_pi3
from lean3r.models.vggt import Vggt, VggtConfig
from lean3r.train import DISTILLATIONS
from lean3r.train.config import on_processes
from lean3r.train.freeze import trainable_names
from lean3r.train.logs.log import read_events
from lean3r.train.loop import fit
from lean3r.train.losses.distillation import (
    Lite3rDistillation,
    NanoDistillation,
    Objective,
    Speed3rDistillation,
    local_geometry,
)
from lean3r.train.losses.truth import make_target
from lean3r.train.recipes.distilled import OBJECTIVES, Distillation, Phase
from lean3r.train.recipes.overrides import with_gamma, with_plan
from lean3r.train.recipes.sources import Data, Source, shape_of
from lean3r.train.students import only_trains, student_of
from lean3r.types import Views

DPT = {"features": 16, "channels": (8, 8, 8, 8), "grid": 4}
TINY = {
    "nano": lambda: Nano(NanoConfig(width=32, heads=2, pairs=2)),
    "vggt": lambda: Vggt(
        VggtConfig(
            width=32, heads=2, encoder_depth=1, pairs=4, keep=(0, 1, 2, 3), track_features=16, track_levels=2,
            track_radius=1, track_hidden=48, **DPT,
        )
    ),
    "pi3x": lambda: Pi3X(Pi3X.SMALLEST),
    "pi3": lambda: Pi3(Pi3Config(width=32, heads=2, encoder_depth=1, grid=4, camera_width=16, depth=4)),
    "da3-large": lambda: Da3(Da3Config(width=64, depth=6, heads=4, alternate=2, keep=(2, 3, 4, 5), **DPT)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """No curves: they take longer than the runs."""
    monkeypatch.setattr("lean3r.train.logs.watch.draw_curves", lambda *_: None)


def tiny(name: str) -> Backbone:
    torch.manual_seed(0)
    return TINY[name]().eval()


def small(recipe: Distillation) -> Distillation:
    """The recipe with two views of a few patches."""
    side = 64 if recipe.teacher == "nano" else 56
    phases = []
    for phase in recipe.phases:
        (stage,) = phase.config.stages
        stage = replace(stage, steps=3, height=side, width=side, views=(2,), views_per_step=2, pixels=None, aspect=None)
        optim = replace(phase.config.optim, warmup_steps=0)
        config = replace(phase.config, stages=(replace(stage, accumulate=1),), optim=optim, precision="fp32", workers=0)
        phases.append(replace(phase, config=config))
    world = SyntheticWorld(seed=5, tiles=32, tile_size=16)
    return replace(recipe, phases=tuple(phases), data=Data(world=world), processes=1)


def parts(recipe: Distillation, index: int) -> tuple[Backbone, Any, Backbone]:
    """(teacher, objective, student) of a phase."""
    teacher, phase = tiny(recipe.teacher), recipe.phases[index]
    start = from_pi3(teacher) if recipe.student and isinstance(teacher, Pi3) else teacher
    student = only_trains(student_of(start, phase.plan), recipe.config(index))
    return teacher, OBJECTIVES.get(phase.objective)(teacher, **phase.settings), student.train()


@pytest.mark.parametrize("name", list(DISTILLATIONS))
def test_one_step_of_every_phase_trains_its_roles_alone(name: str) -> None:
    recipe = small(DISTILLATIONS.get(name)(None))
    for index, phase in enumerate(recipe.phases):
        teacher, objective, student = parts(recipe, index)
        (stage,) = phase.config.stages
        before = {key: value.clone() for key, value in student.state_dict().items()}
        taught = {key: value.clone() for key, value in teacher.state_dict().items()}
        loss, terms = objective(student, recipe.batch(index, 0, stage, 0, 1), 0.5, **stage.loss)
        assert loss.isfinite() and all(torch.as_tensor(value).isfinite() for value in terms.values()), name
        loss.backward()
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        named = {key: p for key, p in student.named_parameters() if not key.startswith(stage.frozen)}
        torch.optim.SGD([p for p in named.values() if p.requires_grad], 1e-2).step()
        moved = {key for key, value in student.state_dict().items() if not torch.equal(value, before[key])}
        wanted = {key for key in trainable_names(student, stage.train) if not key.startswith(stage.frozen)}
        assert moved and moved <= wanted, (phase.config.name, sorted(moved - wanted)[:3])
        if name.startswith("lite3r"):
            assert all("proj_lin" in key for key in moved)
        assert all(torch.equal(value, taught[key]) for key, value in teacher.state_dict().items())


def test_resumed_distillation_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    recipe = small(DISTILLATIONS.get("nano-gsa-fp8")(None))
    config = replace(recipe.config(2), checkpoint_every=1)

    def run(folder: str, stops_at: int = -1, resume: bool = False) -> None:
        _, objective, student = parts(recipe, 2)

        def batch(step, stage, rank, size):
            if step == stops_at:
                raise InterruptedError
            return recipe.batch(2, step, stage, rank, size)

        fit(student, objective, batch, config, tmp_path / folder, resume=resume)

    run("whole")
    with pytest.raises(InterruptedError):
        run("killed", stops_at=1)
    run("killed", resume=True)
    whole, killed = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[key], killed[key]) for key in whole)


def test_a_student_learns_from_a_set_on_disk_in_spite_of_a_damaged_file(tmp_path: Path) -> None:
    root = tmp_path / "set"
    tiny_copies.write("blendedmvs", root)
    scenes = sorted(path for path in root.iterdir() if path.is_dir())
    damaged = sorted((scenes[0] / "blended_images").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    recipe = small(DISTILLATIONS.get("lite3r-vggt")(None))
    recipe = recipe.with_data(replace(recipe.data, sources=(Source("blendedmvs", str(root)),)), processes=1)
    config = recipe.config(0)
    assert config.total_steps == len(scenes), "one epoch of a scene a step"
    (stage,) = config.stages
    stages = (replace(stage, steps=4 * len(scenes)),)
    _, objective, student = parts(recipe, 0)
    result = fit(student, objective, partial(recipe.batch, 0), replace(config, stages=stages), tmp_path / "run")
    assert result.step == 4 * len(scenes) and result.skipped == 0
    corrupt = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["event"] == "corrupt sample"]
    assert result.corrupt == len(corrupt) > 0 and all(scenes[0].name in event["id"] for event in corrupt)


def test_gamma_falls_with_progress() -> None:
    recipe = with_gamma(small(DISTILLATIONS.get("nano-gsa-fp8")(None)), 0.4)
    teacher, _, student = parts(recipe, 0)
    batch = recipe.batch(0, 0, recipe.phases[0].config.stages[0], 0, 1)
    assert recipe.phases[0].settings == {"gamma_from": 0.4, "gamma_to": 0.04}
    objective = NanoDistillation(teacher, **recipe.phases[0].settings)
    without, _ = NanoDistillation(teacher, gamma_from=0.0, gamma_to=0.0)(student, batch, 0.0)
    for progress in (0.0, 0.25, 1.0):
        total, terms = objective(student, batch, progress)
        weight = gamma(int(100 * progress), 100, highest=0.4, lowest=0.04)
        assert (total - without).item() == pytest.approx(weight * terms["attention"].item(), rel=1e-3, abs=1e-6)


def test_a_student_that_is_its_teacher_costs_nothing() -> None:
    teacher = tiny("nano")
    batch = SyntheticWorld(seed=5, tiles=32, tile_size=16).batch(0, 1, views=3, height=64, width=80)
    objective = NanoDistillation(teacher, truth=0.0)
    _, terms = objective(teacher, batch)
    assert max(terms["attention"], terms["tokens"]) < 1e-10 and terms["labels"] < 1e-3  # sqrt(1e-8) of each pose
    same = Speed3rDistillation(tiny("pi3"), points="own")
    _, terms = same(tiny("pi3"), SyntheticWorld(seed=5).batch(0, 1, views=2, height=56, width=56))
    assert terms["points"] < 1e-6 and terms["translation"] < 1e-8


def test_scenes_without_depth_have_the_labels_that_the_teacher_is_sure_of() -> None:
    """As if the set had depth on these pixels; scenes with depth keep their own, and padding stays out."""
    batch = SyntheticWorld(seed=5).batch(0, 3, views=2, height=56, width=56)
    mask = torch.ones_like(batch.depth, dtype=torch.bool)
    mask[..., 50:] = False
    depth = batch.depth.clone()
    depth[1:] = 0
    teacher, student = tiny("pi3"), tiny("pi3")
    torch.nn.init.normal_(student.point_head.proj.weight)  # type: ignore[union-attr]
    with torch.no_grad():
        conf = local_geometry(teacher, Views(batch.images, mask), "own").conf
    assert conf is not None
    probability = float((1 - 1 / conf[1]).median())
    objective = Speed3rDistillation(teacher, points="own", confidence=probability)
    sure = (conf >= 1 / (1 - probability)) & mask
    equal = torch.where(torch.tensor([True, False, False])[:, None, None, None], batch.depth, sure.float())
    ids = ("hypersim/a", "dl3dv/b", "dl3dv/c")
    loss, terms = objective(student, replace(batch, depth=depth, mask=mask, ids=ids))
    same, _ = objective(student, replace(batch, depth=equal, mask=mask, ids=ids))
    assert terms["points"] > 0.01 and torch.equal(loss, same)
    assert 0.2 < float(terms["labelled"]) < 0.9


def test_scenes_without_labels_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    """A scene that teaches nothing does not change the loss of another; a set of such scenes is an error."""
    batch = SyntheticWorld(seed=5).batch(0, 2, views=2, height=56, width=56)
    depth = batch.depth.clone()
    depth[1] = 0
    objective = Speed3rDistillation(tiny("pi3"), points="own", confidence=0.999)
    student = tiny("pi3")
    torch.nn.init.normal_(student.point_head.proj.weight)  # type: ignore[union-attr]
    first = SceneBatch(*(t[:1] for t in (batch.images, batch.depth, batch.intrinsics, batch.cam_from_world)))
    alone, _ = objective(student, replace(first, ids=("dtu/a",)))
    both, _ = objective(student, replace(batch, depth=depth, normals=None, ids=("dtu/a", "dl3dv/b")))
    assert both.item() == pytest.approx(alone.item(), rel=1e-4)
    assert "dl3dv/b has no depth" in caplog.text
    nothing = replace(batch, depth=torch.zeros_like(depth), ids=("dl3dv/c", "dl3dv/d"))
    loss, terms = objective(student, nothing)
    loss.backward()
    assert loss == 0 and terms == {"labelled": 0}
    with pytest.raises(InputError, match="first 4 scenes of dl3dv"):
        objective(student, nothing)


def test_a_loss_against_ground_truth_needs_some() -> None:
    batch = SyntheticWorld(seed=5).batch(0, 1, views=2, height=56, width=56)
    nothing = replace(batch, depth=torch.zeros_like(batch.depth), ids=("dl3dv/a",))
    for call in (
        lambda: make_target(nothing, 8),
        lambda: Lite3rDistillation(tiny("da3-large"))(tiny("da3-large"), nothing),
    ):
        with pytest.raises(InputError, match=r"no pixel.*dl3dv/a.*nothing to learn from"):
            call()


def test_pairs_have_one_number_of_views() -> None:
    """All samples come from one stream of random numbers: with others between, a resumed run would draw others."""
    recipe = DISTILLATIONS.get("lite3r-vggt")(None)

    def with_views(*views: int) -> Distillation:
        phases = []
        for phase in recipe.phases:
            stages = tuple(replace(stage, views=views) for stage in phase.config.stages)
            phases.append(replace(phase, config=replace(phase.config, stages=stages)))
        return replace(recipe, phases=tuple(phases))

    assert with_views(2).phases
    with pytest.raises(UsageError, match="got 1, 2 views, expected one number"):
        with_views(1, 2)


def test_recipes_have_the_numbers_of_the_papers() -> None:
    speed3r, lite3r = (DISTILLATIONS.get(name)(None) for name in ("speed3r-pi3", "lite3r-vggt"))
    config = speed3r.config(0)
    (stage,) = config.stages
    assert config.total_steps == 80 * 800 and sorted(stage.views) == list(range(2, 25))
    assert on_processes(config, speed3r.processes, 8).stages[0].accumulate == 4
    settings = {"points": "own", "confidence": 0.1, "gamma_from": 0.0, "gamma_to": 0.0}
    assert config.settings["objective_settings"] == settings
    assert (stage.pixels, stage.aspect, stage.multiple) == ((100_000, 255_000), (0.5, 2.0), 56)
    optim = config.optim
    assert (optim.lr, optim.betas, optim.weight_decay, optim.clip_norm) == (1e-5, (0.9, 0.95), 0.05, 1.0)
    assert optim.warmup_steps == 0 and config.precision == "bf16"
    for step in range(200):
        shape = shape_of(stage, 1, step)
        assert shape.height % 56 == shape.width % 56 == 0 and shape.scenes * shape.views <= 24
        assert 100_000 <= shape.height * shape.width <= 255_000 and 0.5 <= shape.width / shape.height <= 2
    first, second = lite3r.phases
    assert {step.quantize for step in first.plan.quantizes} == {"w4a16"} and first.settings["gamma_from"] == 0
    assert {step.quantize for step in second.plan.quantizes} == {"fp8"}
    form = {"form": "corrected", "pictures": "normalised"}
    assert lite3r.config(1).settings["objective_settings"] == {**form, "gamma_from": 0.1, "gamma_to": 0.01}
    assert (second.config.optim.lr, second.config.optim.warmup_steps) == (1e-3, 30)


def test_epochs_become_steps_once_the_data_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Data, "scenes", lambda self: 4_000)
    recipe = DISTILLATIONS.get("lite3r-da3")(None)
    recipe = recipe.with_data(recipe.data, processes=8)
    assert [phase.config.total_steps for phase in recipe.phases] == [500, 500]
    recipe = DISTILLATIONS.get("speed3r-pi3")(None)
    assert recipe.with_data(recipe.data, 8).phases[0].config.total_steps == 64_000


def test_another_plan_for_the_student() -> None:
    recipe = DISTILLATIONS.get("nano-gsa-fp8")(None)
    sparse = with_plan(recipe, resolve_plan("gsa"))
    assert [phase.config.name for phase in sparse.phases] == ["nano-gsa-1", "nano-gsa"] and not sparse.plan.quantizes
    assert all(step.dense_below == 0 for phase in sparse.phases for step in phase.plan.exchanges)
    rounded = with_plan(recipe, resolve_plan("fp8"))
    assert [phase.config.name for phase in rounded.phases] == ["nano-fp8"]
    assert [bool(p.plan.quantizes) for p in with_plan(recipe, resolve_plan("sla-fp8")).phases] == [False, False, True]


def test_blocks_are_removed_from_the_first_phase_on() -> None:
    """The weights of a phase go into the next one; a student that is not quantised ends with the last but one."""
    recipe = DISTILLATIONS.get("nano-gsa-fp8")(None)
    gaps = CompressionPlan((RemoveStep("frame blocks 1"),), "gaps")
    for plan in (resolve_plan("gsa") + gaps, resolve_plan("gsa") + gaps + resolve_plan("fp8")):
        phases = with_plan(recipe, plan).phases
        assert len(phases) > 1 and all(phase.plan.removals == gaps.steps for phase in phases)
    sparse = resolve_plan("gsa:dense_below=0") + gaps
    start = compress(tiny("nano"), sparse)  # such as with matrices that --fit has fitted
    assert plan_of(student_of(start, sparse)) == plan_of(start)


def test_the_finished_student_gives_the_outputs_of_the_prepared_one() -> None:
    recipe = small(DISTILLATIONS.get("nano-sla-fp8")(None))
    last = len(recipe.phases) - 1
    _, _, student = parts(recipe, last)
    batch = recipe.batch(last, 0, recipe.phases[last].config.stages[0], 0, 1)
    with torch.no_grad():
        prepared, coded = (m.eval().iterate(batch.images).tokens for m in (student, convert(student)))  # type: ignore[operator]
    assert torch.allclose(prepared, coded, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: NanoDistillation(nn.Identity(), gamma_from=0.01, gamma_to=0.1), "falls or stays"),
        (lambda: NanoDistillation(nn.Identity(), labels=float("nan")), "labels is nan"),
        (lambda: Speed3rDistillation(nn.Identity(), confidence=1.0), "confidence is 1.0"),
        (lambda: Speed3rDistillation(nn.Identity(), points="none"), "'own' or 'depth'"),  # type: ignore[arg-type]
        (lambda: Source.parse("dtu"), "{folder} expected"),
        (lambda: Source.parse("synthetic=here"), "synthetic has no folder"),
        (lambda: Source.parse("dtu=here:0"), "weight 0.0"),
        (lambda: Source.parse("dut=here"), "unknown data set 'dut'"),
        (lambda: Source.parse("="), "cannot be read"),
    ],
)
def test_refused(call, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("{", r"\{").replace("}", r"\}")):
        call()


def test_sources_are_read() -> None:
    assert Source.parse("dtu=some/where:0.5") == Source("dtu", "some/where", 0.5)
    assert Source.parse("dtu=c:/some") == Source("dtu", "c:/some") and Source.parse("synthetic:2").weight == 2


def test_contradictions_of_recipes_are_refused() -> None:
    recipe = DISTILLATIONS.get("nano-gsa-fp8")(None)
    with pytest.raises(UsageError, match="no setting 'gama'"):
        replace(recipe.phases[0], settings={"gama": 1})
    with pytest.raises(UsageError, match="has none"):
        Phase(recipe.phases[0].config, resolve_plan("fp8"), "nano")
    with pytest.raises(UsageError, match="phases with the same name"):
        replace(recipe, phases=recipe.phases[:1] * 2)
    with pytest.raises(UsageError, match="does not fit the recipe"):
        replace(recipe, teacher="vggt")
    with pytest.raises(UsageError, match="Use the recipe speed3r-vggt"):
        replace(DISTILLATIONS.get("speed3r-pi3")(None), teacher="vggt")


def test_a_teacher_that_does_not_fit_is_refused() -> None:
    batch = SyntheticWorld(seed=5).batch(0, 1, views=2, height=56, width=56)
    with pytest.raises(UsageError, match="no points in camera axes"):
        Speed3rDistillation(tiny("vggt"), points="own")(tiny("vggt"), batch)
    with pytest.raises(UsageError, match="does not fit the student"):
        Objective(tiny("pi3")).attention([torch.zeros(1, 4, 32)], [torch.zeros(1, 4, 64)], 0.0)
    objective = Lite3rDistillation(tiny("da3-large"))
    loss, _ = partial(objective, progress=1.0)(tiny("da3-large"), batch)
    assert loss.isfinite()
