"""Graphs of `encode`: what they replay is what a run gives, and what they cannot do runs as without."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from lean3r.compress import compress
from lean3r.errors import InputError
from lean3r.layers import attention as attention_module
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.graphs import MOST_GRAPHS, MOST_VIEWS, EncodeGraphs
from lean3r.types import Known, Tokens, Views
from models.recorded_graphs import Graph, operator_by_operator, stand_in


@pytest.fixture(autouse=True)
def graphs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    # The path of a GPU, which makes no tables on the way.
    monkeypatch.setattr(attention_module, "in_one_pass", lambda *_: not torch.is_grad_enabled())


def model_of(name: str) -> Backbone:
    torch.manual_seed(0)
    kind = MODELS.get(name)
    model: Backbone = kind(kind.SMALLEST).eval()
    model.graphs = EncodeGraphs()
    return model


def pictures(model: Backbone, views: int = 2, *, seed: int = 0, masked: bool = False) -> Views:
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(1, views, 3, 2 * model.patch, 3 * model.patch, generator=random)
    mask = torch.ones(1, views, *images.shape[-2:], dtype=torch.bool)
    mask[:, -1, :, 2 * model.patch :] = False
    return Views(images, mask if masked else None)


def same(found: Tokens, expected: Tokens) -> bool:
    assert found.layers.keys() == expected.layers.keys()
    return all(torch.equal(value, expected.layers[name]) for name, value in found.layers.items())


def replays(model: Backbone) -> list[int]:
    assert isinstance(model.graphs, EncodeGraphs)
    graphs = [recording and recording.graph for recording in model.graphs.recordings.values()]
    return [graph.replays for graph in graphs if isinstance(graph, Graph)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["vggt", "pi3", "pi3x", "da3-large", "da3nested-giant-large", "da3mono-large"])
def test_a_replay_is_a_run_bit_by_bit(name: str, masked: bool) -> None:
    model = model_of(name)
    plain = copy.deepcopy(model)
    plain.encode = operator_by_operator(plain.encode)  # type: ignore[method-assign]
    with torch.inference_mode():
        for seed in range(3):
            views = pictures(model, 3, seed=seed, masked=masked)
            prediction, expected = model(views), plain(views)
            for part in ("cam_from_world", "depth"):
                assert torch.equal(getattr(prediction, part), getattr(expected, part))
    assert replays(model) == [3]


def test_results_outlive_the_next_replay_and_belong_to_their_views() -> None:
    model = model_of("pi3")
    with torch.no_grad():
        first, second = (model._encode(pictures(model, seed=seed, masked=True)) for seed in (0, 1))
        assert same(first, model.encode(pictures(model, masked=True)))
        assert not same(first, second) and torch.equal(first.views.images, pictures(model).images)


def test_a_graph_for_every_condition_and_a_limit_on_their_number() -> None:
    model = model_of("pi3")
    with torch.no_grad():
        model(pictures(model))
        model(pictures(model, masked=True))
        with torch.autocast("cpu", torch.bfloat16):
            model(pictures(model))
        assert torch.is_autocast_cache_enabled()
        model.set_chunk_bytes(1)
        model(pictures(model))
        assert len(replays(model)) == 4 == MOST_GRAPHS
        model(pictures(model, 3))
    assert replays(model) == [1, 1, 1, 1]


def test_nano_and_its_singular_values_stay_plain(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("nano")
    with torch.no_grad():
        views = pictures(model)
        assert same(model._encode(views), model.encode(views))
    assert replays(model) == [] and "nano runs without CUDA graphs" in caplog.text


@pytest.mark.parametrize("why", ["many views", "gradients", "known cameras"])
def test_other_runs_are_plain(why: str) -> None:
    model = model_of("pi3")
    views = pictures(model, MOST_VIEWS + 1 if why == "many views" else 2)
    if why == "known cameras":
        views = Views(views.images, known=Known(intrinsics=torch.eye(3).expand(1, 2, 3, 3)))
    with torch.set_grad_enabled(why == "gradients"):
        assert same(model._encode(views), model.encode(views))
    assert replays(model) == []


def test_what_cannot_be_recorded_runs_plainly_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("pi3")
    asked = model.trunk.forward
    model.trunk.forward = lambda x, *rest, **named: asked(x * float(x.isfinite().all()), *rest, **named)  # type: ignore[method-assign]
    with torch.no_grad(), caplog.at_level(logging.WARNING, "lean3r"):
        for seed in range(2):
            views = pictures(model, seed=seed)
            assert same(model._encode(views), model.encode(views))
    assert replays(model) == []
    assert [r.message for r in caplog.records] == [
        "pi3 runs without CUDA graphs, which cannot be recorded: "
        "operation not permitted when stream is capturing: _local_scalar_dense"
    ]


def test_pictures_are_checked_before_every_replay() -> None:
    model = model_of("pi3")
    views = pictures(model)
    with torch.no_grad():
        model(views)
        views.images[0, 1, 0, 0, 0] = torch.nan
        with pytest.raises(InputError, match="view 1 has NaN"):
            model(views)


def test_copies_and_plans_start_without_graphs() -> None:
    model = model_of("pi3")
    with torch.no_grad():
        model(pictures(model))
    assert copy.deepcopy(model).graphs is None
    assert compress(model, "gsa").graphs is None
