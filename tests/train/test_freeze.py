"""Choosing parameters by role: the roles part a network as its rooms do, and targets mean what they mean in plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from lean3r.compress import compress, prepare, resolve_plan
from lean3r.errors import UsageError
from lean3r.models.nano import Nano, NanoConfig
from lean3r.models.vggt import Vggt, VggtConfig
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.freeze import trainable_names
from lean3r.train.students import only_trains

DPT: Any = {"features": 16, "channels": (8, 8, 8, 8), "grid": 4}
TRACK: Any = {"track_features": 16, "track_levels": 2, "track_radius": 1, "track_hidden": 48}


def nano() -> Nano:
    return Nano(NanoConfig(width=32, heads=2, pairs=2))


def vggt() -> Vggt:
    return Vggt(VggtConfig(width=32, heads=2, encoder_depth=2, pairs=4, keep=(0, 1, 2, 3), **DPT, **TRACK))


@pytest.mark.parametrize("make", [nano, vggt])
def test_encoder_trunk_and_heads_partition_the_network(make) -> None:
    model = make()
    everything = {name for name, _ in model.named_parameters()}
    parts = [trainable_names(model, [role]) for role in ("encoder", "trunk", "heads")]
    assert set.union(*parts) == everything and sum(map(len, parts)) == len(everything)
    assert trainable_names(model, ("encoder", "trunk", "heads")) == everything
    assert trainable_names(model, ()) == trainable_names(model, ("all",)) == everything


def test_roles_of_nano_by_name() -> None:
    model = nano()
    assert {name.split(".")[0] for name in trainable_names(model, ("trunk",))} == {"trunk"}
    assert {name.split(".")[0] for name in trainable_names(model, ("encoder",))} == {"stem"}
    norms = trainable_names(model, ("norms",))
    assert {"trunk.blocks.0.attn.q_norm.weight", "trunk.blocks.0.norm1.bias", "stem.norm.weight"} <= norms
    assert not any(".qkv." in name or ".fc1." in name for name in norms)


def test_a_trunk_in_the_camera_head_belongs_to_the_heads() -> None:
    model = vggt()
    assert not any(name.startswith("camera") for name in trainable_names(model, ("trunk",)))


def test_mechanisms_are_parameters_that_a_plan_added() -> None:
    model = nano()
    dense = {name for name, _ in model.named_parameters()}
    for plan in ("gsa", "sla"):
        sparse = compress(model, plan)
        new = {name for name, _ in sparse.named_parameters()} - dense
        assert new and trainable_names(sparse, ("mechanisms",)) == new
    with pytest.raises(UsageError, match=r"role 'mechanisms'\. Only attention such as gsa and sla has"):
        trainable_names(model, ("mechanisms",))


def test_targets_name_layers() -> None:
    model = nano()
    assert trainable_names(model, ("named trunk.blocks.1.mlp.fc1",)) == {
        "trunk.blocks.1.mlp.fc1.weight",
        "trunk.blocks.1.mlp.fc1.bias",
    }
    second = trainable_names(model, ("global blocks 1",))
    assert second and all(name.startswith("trunk.blocks.4.") and "norm" not in name for name in second)
    assert trainable_names(model, ("global blocks 1", "norms")) > second
    whole = trainable_names(model, ("named trunk.blocks.4.attn",))
    assert "trunk.blocks.4.attn.q_norm.weight" in whole and "trunk.blocks.4.attn.qkv.bias" in whole


def test_layers_rounded_in_training_keep_their_roles() -> None:
    dense = Nano(NanoConfig(width=32, heads=2, pairs=2))
    rounded = prepare(dense, resolve_plan("fp8"))
    for role in ("global blocks 1-", "every linear", "every layer"):
        assert trainable_names(rounded, (role,)) == trainable_names(dense, (role,))


def test_a_shared_parameter_counts_under_its_first_name() -> None:
    linear = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": linear, "b": linear})
    assert trainable_names(model, ("heads",)) == {"a.weight", "a.bias"}


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (("trunks",), "unknown role 'trunks'. Known: all, mechanisms"),
        ("trunk", "expected a tuple"),
        (("adapters",), "no parameter of the network has the role 'adapters'"),
        (("named nothing.*",), "no parameter of the network has the role 'named nothing"),
        (("global blocks 9",), "names block 9"),
    ],
)
def test_refusals(roles, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        trainable_names(nano(), roles)


def test_names_are_those_of_the_parameters() -> None:
    model = nano()
    chosen = trainable_names(model, ("trunk",))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == sum(p.numel() for p in model.trunk.parameters())


def test_what_no_stage_trains_has_no_gradients() -> None:
    """A part that one stage freezes, another trains; a prefix of nothing is refused."""
    stage = Stage(1, 14, 14, (2,), 2, train=("trunk", "heads"), frozen=("points.", "tracker."))
    stages = (stage, replace(stage, train=("heads",), frozen=("points.", "camera.")))
    config = TrainConfig("x", 0, stages, OptimConfig(warmup_steps=0))
    trains = {name.split(".")[0] for name, p in only_trains(vggt(), config).named_parameters() if p.requires_grad}
    assert trains >= {"trunk", "camera", "tracker"} and not trains & {"points", "encoder"}
    with pytest.raises(UsageError, match=r"starts with 'point_map', expected one of .*points"):
        only_trains(vggt(), replace(config, stages=(replace(stage, frozen=("point_map",)),)))
