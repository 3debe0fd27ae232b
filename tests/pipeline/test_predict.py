"""From views to a checked prediction: what comes back, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contracts.tiny import tiny

from lean3r.errors import LeanError
from lean3r.models.base import Backbone
from lean3r.pipeline.predict import check_finite, device_name, predict, where
from lean3r.types import Views


@pytest.fixture(scope="module")
def model() -> Backbone:
    return tiny("vggt")


@pytest.fixture(scope="module")
def views(model: Backbone) -> Views:
    side = 5 * model.patch
    return Views(torch.rand(1, 3, 3, side, side + model.patch, generator=torch.Generator().manual_seed(0)))


def test_a_prediction_is_of_float32_without_gradients_and_the_model_is_as_it_was(model: Backbone, views: Views) -> None:
    model.train()
    found = predict(model, views)
    assert not model.training, "layers that train otherwise run as they were trained for"
    for value in (found.cam_from_world, found.intrinsics, found.depth, found.conf):
        assert value is not None and value.dtype == torch.float32 and value.device.type == "cpu"
        assert not value.requires_grad and bool(torch.isfinite(value).all())
    model.origin = replace(model.origin, dtype=torch.bfloat16)
    try:
        half = predict(model, views)
    finally:
        model.origin = replace(model.origin, dtype=torch.float32)
    assert half.depth is not None and found.depth is not None and half.depth.dtype == torch.float32
    assert not torch.equal(half.depth, found.depth), "products are made in the number type that was chosen"
    torch.testing.assert_close(half.depth, found.depth, rtol=0.2, atol=0.2)


def test_the_reference_view_is_handed_on(model: Backbone, views: Views) -> None:
    first, second = predict(model, views), predict(model, views, reference=1)
    assert torch.equal(predict(model, views, reference=0).cam_from_world, first.cam_from_world)
    assert not torch.equal(first.cam_from_world, second.cam_from_world)


@pytest.mark.parametrize("quantity", ["cam_from_world", "intrinsics", "depth", "conf"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_reported_by_view_and_quantity(model: Backbone, views: Views, quantity: str, value: float) -> None:
    found = predict(model, views)
    check_finite(found, ["a", "b", "c"])
    broken = getattr(found, quantity).clone()
    broken[0, 1].view(-1)[2] = value
    with pytest.raises(LeanError, match=rf"{quantity} of view 2 \(b\), 1 of \d+ values, 1 of 3 views"):
        check_finite(replace(found, **{quantity: broken}), ["a", "b", "c"])


def test_where_a_model_runs_has_a_name(model: Backbone) -> None:
    assert where(model) == f"CPU, {torch.get_num_threads()} threads"
    assert device_name(torch.device("mps")) == "Apple GPU (mps)"
