"""Lite3R's recipe in its forms: what differs is on its page; corrected and as released; every mode of one student."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from docs.lite3r_forms import covered, leaves

from lean3r.attention.sla import SLA
from lean3r.compress import compress, resolve_plan, with_sla
from lean3r.compress.fp8_linear import Rounded
from lean3r.compress.linears import sites_of
from lean3r.compress.sparsify import plan_of
from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.errors import UsageError
from lean3r.geometry.rotation import so3_exp
from lean3r.layers.embed import before_imagenet, imagenet
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import without_memory
from lean3r.models.da3 import Da3
from lean3r.models.vggt import Vggt
from lean3r.train import DISTILLATIONS
from lean3r.train.losses.distillation import Lite3rDistillation, camera_steps
from lean3r.train.students import only_trains, student_of
from lean3r.types import Views

KINDS: dict[str, type[Vggt] | type[Da3]] = {"vggt": Vggt, "da3": Da3}
NAMES = {"name", "seed"}  # of recipes and phases


def small(kind: str) -> Backbone:
    torch.manual_seed(0)
    return KINDS[kind](KINDS[kind].SMALLEST).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def batch() -> SceneBatch:
    return SyntheticWorld(seed=5, tiles=32, tile_size=16).batch(0, 1, views=2, height=56, width=56)


def moved(batch: SceneBatch) -> SceneBatch:
    """The same scene in another world."""
    world = torch.eye(4)
    world[:3, :3], world[:3, 3] = so3_exp(torch.tensor([0.3, -0.5, 0.2])), torch.tensor([0.4, 1.0, -0.3])
    return replace(batch, cam_from_world=batch.cam_from_world @ world)


@pytest.mark.parametrize("kind", ["vggt", "da3"])
@pytest.mark.parametrize("form", ["-as-released", "-lean"])
def test_the_page_covers_every_entry_in_which_two_forms_differ(kind: str, form: str) -> None:
    ours, theirs = (leaves(DISTILLATIONS.get(f"lite3r-{kind}{end}")(None).as_dict()) for end in ("", form))
    differing = {path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)}
    ends = {path for path in differing if path.rpartition(".")[2] not in NAMES and ".after" not in path}
    left = {path for path in ends if not any(f".{name}" in path for name in covered() | {"recipe"})}
    assert ends and not left


@pytest.mark.parametrize(("kind", "sites", "rounded"), [("vggt", 76, (156, 384)), ("da3", 28, (147, 147))])
def test_full_size_students_have_the_layers_of_the_release(kind: str, sites: int, rounded: tuple[int, int]) -> None:
    recipe = DISTILLATIONS.get(f"lite3r-{kind}")(None)
    teacher = without_memory(MODELS.get(recipe.teacher))
    assert len(sites_of(teacher)) == sites
    for index, count in enumerate(rounded):
        plan = recipe.phases[index].plan
        assert plan is not None
        student = only_trains(student_of(teacher, plan), recipe.config(index))
        names = [n for n, m in student.named_modules() if isinstance(m, Rounded) and not n.startswith("tracker.")]
        assert len(names) == count
        trained = [name for name, p in student.named_parameters() if p.requires_grad]
        assert len(trained) == sites and all(name.endswith(".mechanism.proj_lin.weight") for name in trained)


@pytest.mark.parametrize("kind", ["vggt", "da3"])
def test_true_cameras_are_relative_to_the_first_view_unless_as_released(kind: str, batch: SceneBatch) -> None:
    model = small(kind)
    for form, same in (("corrected", True), ("as-released", False)):
        loss = Lite3rDistillation(model, form=form, gamma_from=0, gamma_to=0)
        here, there = (loss(model, b)[1]["camera"].item() for b in (batch, moved(batch)))
        assert (here == pytest.approx(there, rel=1e-4)) == same, form


def test_a_model_that_predicts_the_truth_has_no_camera_loss_unless_as_released(
    batch: SceneBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lean3r.data.sampling.lite3r import in_unit
    from lean3r.geometry.pose_encoding import encode_camera

    truth = in_unit(moved(batch))
    encoding = encode_camera(truth.cam_from_world, truth.intrinsics, 56, 56)
    perfect = ([encoding] * 4, truth.depth, torch.ones_like(truth.depth))
    monkeypatch.setattr("lean3r.train.losses.distillation.camera_steps", lambda *_: perfect)
    model = small("vggt")
    terms = [
        Lite3rDistillation(model, form=form, gamma_from=0, gamma_to=0)(model, moved(batch))[1]
        for form in ("corrected", "as-released")
    ]
    assert terms[0]["camera"] < 1e-5 and terms[1]["camera"] > 0.1
    assert all(t["residual"] < 1e-5 for t in terms)


def test_one_depth_of_nan_spoils_all_gradients_only_as_released(
    batch: SceneBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(model: Backbone, views: Views):
        encodings, depth, conf = camera_steps(model, views)
        return encodings, torch.where(torch.arange(depth.numel()).view_as(depth) == 700, torch.nan, depth), conf

    monkeypatch.setattr("lean3r.train.losses.distillation.camera_steps", spoilt)
    student = student_of(small("da3"), resolve_plan("lite3r"))
    (_, parameter) = next((n, p) for n, p in student.named_parameters() if "trunk.blocks.3" in n and "proj_lin" in n)
    for form, finite in (("corrected", True), ("as-released", False)):
        parameter.grad = None
        total, _ = Lite3rDistillation(student, form=form, gamma_from=0, gamma_to=0)(parameter_on(student), batch)
        total.backward()
        assert total.isfinite() and parameter.grad is not None
        assert parameter.grad.isfinite().all() == finite, form


def parameter_on(student: Backbone) -> Backbone:
    """The student with gradients again: an objective freezes its teacher, which here is the student itself."""
    return student.requires_grad_(True)


def test_raw_pictures_reach_the_network_without_normalisation(batch: SceneBatch) -> None:
    torch.testing.assert_close(imagenet(before_imagenet(batch.images)), batch.images, atol=1e-5, rtol=0)
    model = small("da3")
    ours, raw = (
        Lite3rDistillation(model, pictures=pictures, gamma_from=0, gamma_to=0)(model, batch)[0]
        for pictures in ("normalised", "raw")
    )
    by_hand = Lite3rDistillation(model, gamma_from=0, gamma_to=0)
    same = by_hand(model, replace(batch, images=before_imagenet(batch.images)))[0]
    assert raw == same and raw != ours
    settings = [DISTILLATIONS.get(f"lite3r-da3{form}")(None).phases[1].settings for form in ("", "-as-released")]
    assert [s["pictures"] for s in settings] == ["normalised", "raw"]


def test_a_head_that_iterates_gives_a_camera_for_every_iteration(batch: SceneBatch) -> None:
    views = Views(batch.images)
    for kind, count in (("vggt", 4), ("da3", 1)):
        model = small(kind)
        encodings, depth, conf = camera_steps(model, views)
        assert [e.shape for e in encodings] == [(1, 2, 9)] * count and depth.shape == conf.shape == (1, 2, 56, 56)
        found = model(views).cam_from_world
        torch.testing.assert_close(encodings[-1][..., :3], found[..., :3, 3], atol=1e-5, rtol=0)


def test_a_trained_student_runs_in_every_mode_of_its_attention(batch: SceneBatch) -> None:
    views = Views(batch.images)
    with torch.no_grad():
        student = compress(small("vggt"), "lite3r:rounding=none,keep=1.0")
        for name, parameter in student.named_parameters():
            if "proj_lin" in name:
                parameter.normal_(std=0.1)
        by_block = with_sla(student, mode="block", block=8)
        assert all(m.mode == "block" for m in by_block.modules() if isinstance(m, SLA))
        torch.testing.assert_close(by_block(views).depth, student(views).depth, atol=1e-4, rtol=1e-4)
        three = with_sla(by_block, mode="three-way", critical=0.5)
        assert (three(views).depth - student(views).depth).abs().max() > 1e-4
    before, after = (dict(m.named_parameters()) for m in (student, three))
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
    plan = plan_of(three)
    assert plan is not None and plan.exchanges[0].settings == {
        "mode": "three-way", "keep": 1.0, "block": 8, "critical": 0.5
    }  # fmt: skip
    with pytest.raises(UsageError, match="mode is 'rows'"):
        with_sla(student, mode="rows")
    with pytest.raises(UsageError, match="unknown setting 'kep' of sla"):
        with_sla(student, kep=0.2)
    with pytest.raises(UsageError, match="no sparse-linear attention"):
        with_sla(small("vggt"), mode="block")


@pytest.mark.parametrize("change", [{"mode": "token"}, {"mode": "three-way"}, {"filling": "zeros"}])
def test_blocks_with_dense_special_tokens_run_in_every_mode_too(change: dict[str, str]) -> None:
    student = compress(small("vggt"), "sla")
    other = with_sla(student, **change)
    plan = plan_of(other)
    assert plan is not None and plan.exchanges[0].settings == {"special": "alike", **change}
    assert all(m.special == "alike" for m in other.modules() if isinstance(m, SLA))
    back = plan_of(with_sla(student, keep=0.2))
    assert back is not None and back.exchanges[0].settings == {"special": "dense", "keep": 0.2}
    with pytest.raises(UsageError, match="special='dense' with"):
        with_sla(student, special="dense", **change)
