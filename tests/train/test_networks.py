"""Students of networks that we did not write: they learn, stay what they were elsewhere, return from files."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from third_party import CASES, Case, ManyViews, Pairs, by_hand
from torch import Tensor, nn

import lean3r
from lean3r.attention.base import recording
from lean3r.compress import compress, convert, prepare
from lean3r.errors import UsageError, WeightsError
from lean3r.testing import assert_rms, rms_ratio
from lean3r.train import NetworkRecipe, distill
from lean3r.train.networks import Inputs, difference


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield CASES[request.param]()


def inputs_like(images: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(images.shape, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("plan", ["sla-fp8", "gsa-fp8", "fp8"])
def test_a_student_learns_is_saved_and_returns(case: Case, plan: str, tmp_path: Path) -> None:
    teacher = case.network
    before = copy.deepcopy(teacher.state_dict())
    student = prepare(teacher, plan, adapter=case.adapter)
    recipe = NetworkRecipe(steps=8, lr=1e-3, gamma_from=1.0, gamma_to=0.1)
    with recording() as log:
        trained = distill(teacher, student, case.adapter, inputs_like(case.images), recipe)
    assert bool(log) == (plan != "fp8"), "sparse at every length while it trains"
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in before.items())
    assert all(p.requires_grad for p in teacher.parameters()) and not teacher.training

    path = lean3r.save(convert(trained), tmp_path / "student.safetensors")
    with safe_open(path, "pt") as file:
        assert f'"name": "{plan}"' in file.metadata()["plan"]
    fresh = copy.deepcopy(teacher)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    loaded = lean3r.load_into(fresh, path, adapter=case.adapter)
    with torch.inference_mode():
        assert_rms(case.run(loaded), case.run(convert(trained)), 0)
    assert not any(parameter.any() for parameter in fresh.parameters())
    prepared = lean3r.save(trained, tmp_path / "prepared.safetensors")
    more = lean3r.load_into(fresh, prepared, adapter=case.adapter)
    with torch.inference_mode():
        assert_rms(case.run(more), case.run(trained), 0)
    trains = [{n for n, p in network.named_parameters() if p.requires_grad} for network in (more, trained, student)]
    assert trains[0] == trains[1] == trains[2]


def test_distillation_recovers_what_sparsity_lost() -> None:
    torch.manual_seed(0)
    teacher, adapter = by_hand().network, Pairs()
    plan = {"steps": [{"target": "global blocks", "mechanism": "gsa", "settings": {"top_k": 1}}]}
    student = compress(teacher, plan, adapter=adapter)
    data = inputs_like(torch.empty(2, 3, 3, 40, 48))
    recipe = NetworkRecipe(steps=60, lr=3e-3, train=("mechanisms", "global blocks"), gamma_from=1.0, gamma_to=0.1)
    trained = distill(teacher, student, adapter, lambda number: {"images": data[number % 4]}, recipe)
    held_out = torch.rand(4, 3, 3, 40, 48)
    with torch.inference_mode():
        expected, untrained, found = (network(held_out)["depth"] for network in (teacher, student, trained))
    assert rms_ratio(found, expected) < 0.7 * rms_ratio(untrained, expected)
    changed = {n for n, value in trained.state_dict().items() if not torch.equal(value, student.state_dict()[n])}
    assert changed and all(".across." in name for name in changed)


def test_a_stopped_run_continues_to_the_same_student(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = by_hand().network
    student = prepare(teacher, "sla-fp8", adapter=Pairs())
    data, recipe = inputs_like(torch.empty(1, 2, 3, 40, 48)), NetworkRecipe(steps=4, lr=1e-3, checkpoint_every=2)
    whole = distill(teacher, student, Pairs(), data, recipe)

    def killed(number: int) -> Tensor:
        if number == 3:
            raise OSError("no picture")
        return data[number]

    with pytest.raises(OSError, match="no picture"):
        distill(teacher, student, Pairs(), killed, recipe, out=tmp_path)
    resumed = distill(teacher, student, Pairs(), data, recipe, out=tmp_path, resume=True)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    other = prepare(teacher, "gsa-fp8", adapter=Pairs())
    with pytest.raises(UsageError, match="another config"):
        distill(teacher, other, Pairs(), data, recipe, out=tmp_path, resume=True)


def test_inputs_move_to_a_device_however_nested() -> None:
    views = {"images": torch.rand(2, 3, 8, 8), "names": ["a", "b"]}
    moved = Inputs.of((views, [torch.rand(2), None])).to("meta")
    (first, (second, nothing)) = moved.args
    assert first["images"].is_meta and second.is_meta and nothing is None and first["names"] == ["a", "b"]
    assert Inputs.of(views).to("meta").named["images"].is_meta and moved.views == 2


def test_what_cannot_train_is_refused(tmp_path: Path) -> None:
    teacher, data = by_hand().network, [torch.rand(1, 2, 3, 40, 48)]
    student = prepare(teacher, "sla-fp8", adapter=Pairs())
    with pytest.raises(UsageError, match="prepare"):
        distill(teacher, convert(student), Pairs(), data)
    with pytest.raises(UsageError, match="expected a list of inputs, or a function"):
        distill(teacher, student, Pairs(), iter(data))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"the teacher has no pairs\.1"):
        distill(ManyViews(1), student, Pairs(), data)
    with pytest.raises(UsageError, match="no attention layer is known"):
        distill(nn.Linear(3, 3), nn.Linear(3, 3), None, [torch.rand(2, 3)])
    with pytest.raises(UsageError, match="pass compare"):
        difference({"a": torch.rand(3)}, {"a": torch.rand(4)})
    path = lean3r.save(convert(student), tmp_path / "student.safetensors")
    with pytest.raises(UsageError, match="pass adapter="):
        lean3r.load_into(teacher, path)
    with pytest.raises(WeightsError, match=r"does not fit ManyViews; missing: pairs\.2\."):
        lean3r.load_into(ManyViews(3), path, adapter=Pairs())
