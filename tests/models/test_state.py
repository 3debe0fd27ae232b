"""What a model keeps besides its weights: typed, with a default, and safe from what torch does with modules."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import lean3r
from lean3r.compress import CompressionPlan, compress, convert, prepare
from lean3r.models.base import Backbone
from lean3r.models.nano import Nano, NanoConfig
from lean3r.models.origin import Origin
from lean3r.types import Views

LOADED = Origin("file.safetensors", "sha256:0", torch.bfloat16, ("fewer bits",), False)


def small() -> Nano:
    torch.manual_seed(0)
    return Nano(NanoConfig(width=32, heads=2, pairs=1)).eval()


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def save_and_load(model: Backbone) -> Backbone:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def compiled(model: Backbone) -> Backbone:
    for block in model.modules():
        if type(block).__name__ == "Block":
            block.compile(backend="eager")
    return model


def test_a_model_built_by_hand_has_the_defaults() -> None:
    model = small()
    assert (model.origin, model.plan, dict(model.metadata)) == (Origin(), None, {})
    assert model.origin.weights == "built by hand" and model.origin.dtype == torch.float32 and model.loops is None
    assert not {"origin", "plan", "metadata"} & set(vars(model)), "the class has them, whoever sets none owns none"


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), save_and_load, compiled])
def test_state_travels_with_the_model_and_not_with_its_weights(way: Callable[[Backbone], Backbone]) -> None:
    model = small()
    names = list(model.state_dict())
    views = Views(torch.rand(1, 2, 3, 32, 48))
    fast = compress(model, "kv_prune")
    fast.origin = LOADED
    with torch.no_grad():
        expected = fast(views)
        other = way(fast)
        found = other(views)
    torch.testing.assert_close(found.depth, expected.depth)  # compiled blocks round differently
    torch.testing.assert_close(found.cam_from_world, expected.cam_from_world)
    assert (other.origin, other.plan, other.metadata) == (LOADED, fast.plan, fast.metadata)
    assert isinstance(other.plan, CompressionPlan) and list(other.state_dict()) == names
    assert (model.origin, model.plan, dict(model.metadata)) == (Origin(), None, {}), "the one it was made of stays"


def test_state_survives_sharding(one_process: None) -> None:
    model = prepare(small(), "fp8")
    model.origin = LOADED
    plan, metadata = model.plan, model.metadata
    fully_shard(model, ignored_params={p for p in model.parameters() if not p.ndim})
    assert (model.origin, model.plan, model.metadata) == (LOADED, plan, metadata)
    assert metadata["stage"] == "prepared" and plan is not None


def test_a_file_carries_plan_and_stage_and_nothing_of_the_origin(tmp_path: Path) -> None:
    trained = prepare(small(), "fp8")
    trained.origin = LOADED
    assert dict(convert(trained).metadata) == {"plan": trained.metadata["plan"]}
    path = lean3r.save(convert(trained), tmp_path / "small.safetensors")
    from lean3r.models.weight_files import open_weights

    assert set(open_weights(path).metadata) == {"model", "plan"}
