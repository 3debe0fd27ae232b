"""Bad and odd input by the public route: compress a tiny model of each kind, run it, or be refused clearly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from contracts.test_attention import COMPLETE, SMALL
from contracts.test_backbones import predict
from contracts.tiny import tiny
from torch import Tensor

import lean3r
from lean3r.attention import ATTENTION
from lean3r.attention.base import recording
from lean3r.errors import InputError, KernelError, UsageError
from lean3r.models.base import Backbone
from lean3r.models.nano import Nano, NanoConfig
from lean3r.testing import assert_rms
from lean3r.types import Prediction, Views

SPECIAL = {"vggt": 5, "pi3": 5, "da3-small": 1}
"""Model -> special tokens a view."""

each_model = pytest.mark.parametrize("model", SPECIAL)
each_mechanism = pytest.mark.parametrize("mechanism", list(ATTENTION))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def images(model: str, tokens: int, views: int = 3) -> Tensor:
    """Pictures of so many tokens a view, as square as that number allows."""
    patches, patch = tokens - SPECIAL[model], tiny(model).patch
    rows = max(n for n in range(1, math.isqrt(patches) + 1) if patches % n == 0)
    return torch.rand(1, views, 3, rows * patch, patches // rows * patch)


def with_mechanism(model: Backbone, mechanism: str, settings: dict[str, Any]) -> Backbone:
    return lean3r.compress(
        model, {"steps": [{"target": "global blocks", "mechanism": mechanism, "settings": settings}]}
    )


def assert_finite(found: Prediction) -> None:
    for value in (found.depth, found.conf, found.cam_from_world, found.intrinsics):
        assert value is not None and bool(value.isfinite().all())


def assert_same(found: Prediction, expected: Prediction) -> None:
    assert found.depth is not None and expected.depth is not None
    for name in ("depth", "cam_from_world", "intrinsics"):
        assert_rms(getattr(found, name), getattr(expected, name), 1e-4)


@each_mechanism
@each_model
@pytest.mark.parametrize("tokens", [63, 183])
def test_odd_lengths(mechanism: str, model: str, tokens: int) -> None:
    pictures = images(model, tokens)
    sparse = with_mechanism(tiny(model), mechanism, SMALL[mechanism][0])
    with recording() as log:
        assert_finite(predict(sparse, pictures))
    assert {record.layout.tokens for record in log} == {tokens} or mechanism == "dense"
    assert all(record.density is not None and 0 < record.density < 1 for record in log)


@each_mechanism
@each_model
def test_nothing_left_out_is_the_dense_model(mechanism: str, model: str) -> None:
    """More windows, blocks and views asked for than there are among them; of one view, and of one window."""
    pictures, side = images(model, 63), 2 * tiny(model).patch
    expected = predict(tiny(model), pictures)
    for settings in COMPLETE[mechanism]:
        assert_same(predict(with_mechanism(tiny(model), mechanism, settings), pictures), expected)
    if mechanism == "frame_local":  # another view is all that it leaves out
        assert_same(
            predict(with_mechanism(tiny(model), mechanism, {}), pictures[:, :1]), predict(tiny(model), pictures[:, :1])
        )
    for few in (pictures[:, :1], pictures[:, :, :, :side, :side]):
        dense = predict(tiny(model), few)
        for settings in COMPLETE[mechanism][:1]:
            assert_same(predict(with_mechanism(tiny(model), mechanism, settings), few), dense)
        assert_finite(predict(with_mechanism(tiny(model), mechanism, SMALL[mechanism][0]), few))


@each_model
@each_mechanism
def test_nan_pixels_are_refused_naming_their_view(mechanism: str, model: str) -> None:
    pictures = images(model, 63)
    pictures[0, 1, 2, 5, 7] = torch.nan
    with pytest.raises(InputError, match="view 1 has NaN or infinite pixels"):
        predict(with_mechanism(tiny(model), mechanism, {}), pictures)


@each_model
@pytest.mark.parametrize("mechanism", ["gsa", "sla", "thu-sla", "block_sparse"])
def test_head_sizes_that_kernels_do_not_support(mechanism: str, model: str) -> None:
    """Known, and said, when the model is converted: 16 channels a head."""
    with pytest.raises(
        KernelError, match=rf"{mechanism} cannot run .* at \S+attn: head_dim 16 is not within 32 to 128"
    ):
        with_mechanism(tiny(model), mechanism, {"implementation": "triton"})
    with pytest.raises(KernelError, match="head_dim 16 is not within"):
        lean3r.compress(tiny(model), {"steps": [{**STEP, "mechanism": mechanism}]})
    assert_finite(predict(with_mechanism(tiny(model), mechanism, {"implementation": "auto"}), images(model, 63)))


STEP = {"target": "global block 0", "settings": {"implementation": "triton"}, "dense_below": 10_000}


@pytest.mark.parametrize("mechanism", ["gsa", "sla", "thu-sla", "block_sparse"])
def test_number_types_that_kernels_do_not_support(mechanism: str) -> None:
    """A model's type and device may change after it is converted: the run says so."""
    wide = Nano(NanoConfig(width=64, heads=2, pairs=2)).double().eval()
    sparse = with_mechanism(wide, mechanism, {"implementation": "triton"})
    with pytest.raises(KernelError, match=r"cannot run: torch\.float64 is not float32"), torch.no_grad():
        sparse(Views(torch.rand(1, 3, 3, 48, 64, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("mechanism", "settings", "says"),
    [
        ("gsa", {"reference": "no"}, "reference is 'no'; expected True or False"),
        ("gsa", {"fill": "last"}, "fill is 'last'; expected 'unique' or 'repeat_last'"),
        ("gsa", {"gate": "three"}, "gate is 'three'; expected 'two', 'one' or 'none'"),
        ("gsa", {"top_k": 0}, "top_k is 0; expected a whole number, 1 or more"),
        ("gsa", {"window": 0}, "window is 0; expected a whole number, 1 or more"),
        ("gsa", {"implementation": "cuda"}, "implementation is one of auto, reference, torch, triton, got 'cuda'"),
        ("sla", {"keep": 0}, "keep is 0; expected a share above 0"),
        ("sla", {"keep": 30}, "keep is 30; expected a share from 0 to 1"),
        ("sla", {"keep": "0.3"}, "keep is '0.3'; expected a share from 0 to 1"),
        ("thu-sla", {"keep": 0.0}, "keep is 0; expected a share above 0"),
        ("thu-sla", {"implementation": "flash"}, "implementation is one of"),
        ("block_sparse", {"sparsity": None}, "got neither"),
        ("sla", {"init_std": -1}, "init_std is -1; expected a standard deviation, 0 or more"),
        ("kv_prune", {"multiplier": 10**30}, "expected a whole number of at most 2,147,483,647"),
        ("merge", {"seed": 10**30}, "expected a whole number of at most 2,147,483,647"),
        ("by_views", {"stages": []}, "stages are empty; expected"),
        ("merge", {"random": "no"}, "random is 'no'; expected True or False"),
        ("kv_prune", {"own": 1}, "own is 1; expected True or False"),
        ("frame_subset", {"frames": 0}, "frames is 0; expected a whole number, 1 or more"),
    ],
)
def test_invalid_settings_are_refused(mechanism: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        with_mechanism(tiny("pi3"), mechanism, settings)
    assert "\n" not in str(caught.value)


@each_model
def test_views_that_are_not_there(model: str) -> None:
    with pytest.raises(UsageError, match="keep has view 7, but there are 3 views, counted from 0"):
        predict(with_mechanism(tiny(model), "frame_subset", {"keep": [0, 7]}), images(model, 63))
