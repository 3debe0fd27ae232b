"""A mechanism for each range of numbers of views: which one runs, and what cannot be a stage."""

from __future__ import annotations

import pytest
import torch

from lean3r.attention.base import recording
from lean3r.attention.by_views import ByViews
from lean3r.attention.kv_prune import KeyValuePrune
from lean3r.attention.merge import TokenMerge
from lean3r.compress import compress
from lean3r.errors import UsageError
from lean3r.models.pi3 import Pi3, Pi3Config
from lean3r.pipeline.predict import predict
from lean3r.types import Views

STAGES = ((2, "merge", {}), (5, "kv_prune", {"frames": 2, "query_merge": 1}))


def used(views: int, plan: object) -> set[str]:
    """Names of the mechanisms that report a call."""
    torch.manual_seed(0)
    model = Pi3(Pi3Config(width=32, heads=2, encoder_depth=1, depth=2, grid=4, camera_width=16)).eval()
    with recording() as log:
        predict(compress(model, plan), Views(torch.rand(1, views, 3, 28, 42)))  # type: ignore[arg-type]
    return {type(record.mechanism).__name__ for record in log}


@pytest.mark.parametrize(("views", "name"), [(1, None), (2, "TokenMerge"), (4, "TokenMerge"), (5, "KeyValuePrune")])
def test_the_number_of_views_chooses(views: int, name: str | None) -> None:
    step = {"target": "global blocks", "mechanism": "by_views", "settings": {"stages": STAGES}}
    assert used(views, {"steps": [step]}) & {"TokenMerge", "KeyValuePrune"} == ({name} if name else set())


def test_the_usual_stages_meet_where_kv_prune_begins() -> None:
    usual = ByViews()
    assert usual.starts == [2, 101]
    assert [type(stage) for stage in usual.mechanisms] == [TokenMerge, KeyValuePrune]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (((5, "merge", {}), (2, "kv_prune", {})), "ascending"),
        (((0, "merge", {}),), "views of a stage"),
        (((2, "gsa", {"dim": 32, "heads": 2}),), "cannot be a stage"),
        (((2, "gsa", {}),), "gsa cannot be a stage"),
        (((2, "merge", {"fraims": 1}),), r"a stage of merge has the settings .'fraims'.; expected a mapping of: "),
        (((2, "merge", 3),), "a stage of merge has the settings 3"),
        (((2, "merge"),), "a stage is .2, 'merge'.; expected .views, mechanism, settings"),
        (((2, "merg", {}),), "merge"),
    ],
)
def test_what_cannot_be_a_stage_is_refused(stages: object, said: str) -> None:
    with pytest.raises((UsageError, ValueError), match=said):
        ByViews(stages)  # type: ignore[arg-type]
