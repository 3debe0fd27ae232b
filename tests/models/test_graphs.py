"""Graphs of `encode`: what they replay is what a run gives, and what they cannot do runs as without."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from lean3r import tables
from lean3r.compress import CompressionPlan, compress, presets
from lean3r.errors import InputError
from lean3r.group import Group, Share
from lean3r.layers import attention as attention_module
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.execution import hold
from lean3r.models.graphs import MOST_GRAPHS, MOST_VIEWS, EncodeGraphs
from lean3r.tables import noting
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
    graphs = [recording and recording.encoding.graph for recording in model.graphs.recordings.values()]
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


@pytest.mark.parametrize("plan", [presets.dense(), presets.merge(dense_below=0), presets.fp8()])
def test_a_graph_holds_what_it_reads_by_address_as_long_as_it_lives(plan: CompressionPlan) -> None:
    model = compress(model_of("vggt"), plan)
    model.graphs = EncodeGraphs()
    with torch.no_grad():
        model.encode(pictures(model))  # tables that other tables are made of
        with noting() as kept:
            model.encode(pictures(model))
        read = [weakref.ref(value) for value in kept.values()]
        assert read and not kept.clear()
        model(pictures(model))
        (recording,) = model.graphs.recordings.values()
        assert recording is not None
        assert isinstance(recording.encoding.graph, Graph)
        recording.encoding.graph.calls.clear()  # a true graph knows addresses only
        tables._make_once.cache_clear()  # as the next tables may, one by one
        for part in model.modules():
            part.__dict__.pop("_laid_out", None)
        gc.collect()
        assert all(ref() is not None for ref in read)
        del recording
        model.graphs.recordings.clear()
        gc.collect()
        assert all(ref() is None for ref in read)


def test_a_summary_leaves_the_tables_of_others_alone() -> None:
    model = model_of("pi3")
    with torch.no_grad(), noting() as kept:
        model.encode(pictures(model))
        before = set(kept)
        model.summary(2, 2 * model.patch, 3 * model.patch)
        with noting() as again:
            model.encode(pictures(model))
    assert before and set(again) == before


@pytest.mark.parametrize("change", ["number type", "one weight", "codes in place"])
def test_a_graph_ends_with_the_weights_that_it_reads(change: str) -> None:
    model = model_of("pi3")
    if change == "codes in place":
        model = compress(model, "fp8")
        model.graphs = EncodeGraphs()
    first, last = next(model.parameters()).data_ptr(), model.get_submodule("trunk.blocks.0.attn.proj")
    with torch.no_grad():
        before = model._encode(pictures(model))
        if change == "number type":
            hold(model, torch.bfloat16)
        elif change == "one weight":
            last.weight = torch.nn.Parameter(last.get_parameter("weight") * 2)
        else:
            codes = last.get_buffer("weight")
            codes.copy_(codes.roll(1, 0))
        assert next(model.parameters()).data_ptr() == first
        found = model._encode(pictures(model))
        assert same(found, model.encode(pictures(model))) and not same(found, before)
    assert replays(model) == [1]


@pytest.mark.parametrize("why", ["many views", "gradients", "known cameras", "a share"])
def test_other_runs_are_plain(why: str) -> None:
    model = model_of("pi3")
    views = pictures(model, MOST_VIEWS + 1 if why == "many views" else 2)
    if why == "known cameras":
        views = Views(views.images, known=Known(intrinsics=torch.eye(3).expand(1, 2, 3, 3)))
    if why == "a share":
        group = SimpleNamespace(rank=0, size=1, gather=lambda rows, counts, purpose: rows)
        views = replace(views, share=Share.of(cast(Group, group), 2))
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
