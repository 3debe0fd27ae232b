"""Plans: data that survives JSON and checkpoints, roles instead of names, and refusals that say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lean3r
from lean3r.attention import ATTENTION
from lean3r.attention.base import Mechanism, Projected, record, recording
from lean3r.compress import PLANS, CompressionPlan, compress, resolve_plan
from lean3r.compress.plan import Step
from lean3r.compress.sparsify import apply, plan_of
from lean3r.errors import UsageError, WeightsError
from lean3r.models import MODELS
from lean3r.models.checkpoint import save_model
from lean3r.models.nano import Nano, NanoConfig
from lean3r.types import TokenLayout, Views


class Scaled(Mechanism):
    """Dense attention times a learned factor a channel: a mechanism with settings and its own parameters."""

    def __init__(self, dim: int, heads: int, *, start: float = 1.0):
        super().__init__()
        if start <= 0:
            raise ValueError("start must be positive")
        self.factor = nn.Parameter(torch.full((dim // heads,), start))

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        record(self, layout, density=0.5, costly=lambda: p.q.sum())
        q, k = p.finish(p.q, p.k)
        return nn.functional.scaled_dot_product_attention(q, k, p.v) * self.factor


@pytest.fixture(autouse=True)
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTENTION._rows, "scaled", f"{__name__}:Scaled")


@pytest.fixture(scope="module")
def model() -> Nano:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Nano(NanoConfig(width=32, heads=2, pairs=2)).eval()


def plan(target: str = "global blocks", mechanism: str = "scaled", **step) -> CompressionPlan:
    return CompressionPlan((Step(target, mechanism, **step),))


def depth(model: Nano, views: int = 3) -> Tensor:
    images = torch.rand(1, views, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = model(Views(images)).depth
    assert found is not None
    return found


def test_weights_are_carried_over_and_the_original_stays(model: Nano) -> None:
    fast, changes = apply(model, plan(settings={"start": 2.0}))
    assert plan_of(model) is None and plan_of(fast) == plan(settings={"start": 2.0})
    own = dict(fast.named_parameters())
    assert all(own.pop(name) is parameter for name, parameter in model.named_parameters())
    assert set(own) == {f"trunk.blocks.{i}.attn.mechanism.factor" for i in (2, 4)}
    assert all(bool((value == 2).all()) for value in own.values())
    assert [change.site.name for change in changes] == ["trunk.blocks.2.attn", "trunk.blocks.4.attn"]
    assert changes[0].as_dict()["new_parameters"] == {"trunk.blocks.2.attn.mechanism.factor": [16]}
    assert torch.equal(depth(compress(model, plan())), depth(model)) and not torch.equal(depth(fast), depth(model))


def test_short_sequences_stay_dense(model: Nano) -> None:
    tokens = 1 + 3 * 4  # a view
    fast = compress(model, plan(settings={"start": 2.0}, dense_below=2 * tokens + 1))
    assert torch.equal(depth(fast, 2), depth(model, 2)) and not torch.equal(depth(fast, 3), depth(model, 3))
    assert "dense_below=27" in repr(fast)


def test_the_later_step_counts(model: Nano) -> None:
    both = plan("all blocks") + plan("global blocks 1", "dense")
    fast = compress(model, both)
    kinds = [type(block.attn.mechanism).__name__ for block in fast.trunk.blocks]  # type: ignore[union-attr]
    assert kinds == ["Scaled"] * 4 + ["Dense"]


@pytest.mark.parametrize("name", ["vggt", "da3-base", "pi3x", "speed3r-pi3"])
def test_every_backbone_with_a_trunk_has_global_blocks(name: str) -> None:
    with torch.device("meta"):
        model = MODELS.get(name)()
    if name == "speed3r-pi3":  # its own mechanism has parameters that no plan may drop
        with pytest.raises(UsageError, match="its own parameters"):
            compress(model, plan())
        return
    fast = compress(model, plan())
    new = set(fast.state_dict()) - set(model.state_dict())
    assert new and all(name.endswith("mechanism.factor") for name in new)
    keys = model.KEY_MAP
    assert keys is None or all(keys.ours(keys.official(name) or "") == name for name in new)


@pytest.mark.parametrize("name", list(PLANS))
def test_presets_survive_json_and_fit(name: str, model: Nano, tmp_path: Path) -> None:
    found = resolve_plan(name)
    assert found.name == name and CompressionPlan.from_json(found.to_json()) == found
    path = tmp_path / "mine.json"
    path.write_text(found.to_json())
    assert resolve_plan(path) == resolve_plan(str(path)) == resolve_plan(found.as_dict()) == found
    assert torch.isfinite(depth(compress(model, found))).all()


def quantized(scheme: str, **settings: object) -> dict[str, object]:
    return {"steps": [{"quantize": scheme, "target": "every linear", "settings": settings}]}


def test_settings_follow_the_name_of_a_plan() -> None:
    (step,) = resolve_plan("lite3r:rounding=none,keep=0.2,mode=block,window=4").exchanges
    assert (step.target, step.mechanism) == ("every attention layer", "sla")
    assert step.settings == {"mode": "block", "keep": 0.2, "window": 4}
    (step,) = resolve_plan("kv_prune:frames=1,grid=[3,2],dense_below=0").exchanges
    assert (step.settings, step.dense_below) == ({"frames": 1, "grid": [3, 2]}, 0)


def test_settings_may_have_commas_spaces_and_quotes() -> None:
    for text in ("gsa:target=frame blocks 0,2-,top_k=4", 'gsa: target = "frame blocks 0,2-", top_k = 4'):
        (step,) = resolve_plan(text).exchanges
        assert (step.target, step.settings) == ("frame blocks 0,2-", {"top_k": 4})
    (step,) = resolve_plan('by_views:stages=[[2,"merge",{"ratio":0.5}],[50,"kv_prune",{}]],dense_below=7').exchanges
    assert step.settings == {"stages": [[2, "merge", {"ratio": 0.5}], [50, "kv_prune", {}]]}
    assert step.dense_below == 7


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("gsq", r"unknown plan 'gsq'. Perhaps you meant gsa"),
        ("absent.json", "cannot read the plan absent.json"),
        ({"step": []}, "unknown key 'step' of a plan. Perhaps you meant steps"),
        ({"steps": []}, "no steps"),
        ({"steps": {}}, "expected a list"),
        ({"format": 9, "steps": []}, "format 9"),
        ({"steps": [{"target": "global blocks"}]}, "step 1 has no mechanism"),
        ({"steps": [{"target": "global blocks", "mechanism": "scale"}]}, "Perhaps you meant scaled"),
        ({"steps": [{"target": "globals", "mechanism": "dense"}]}, "cannot be read; expected 'every attention layer'"),
        ({"steps": [{"target": "global blocks 1-2-3", "mechanism": "dense"}]}, "expected 'every attention layer'"),
        ({"steps": [{"target": "global blocks 3-1", "mechanism": "dense"}]}, "ends before it starts"),
        ({"steps": [{"target": "global blocks", "mechanism": "scaled", "settings": {"stat": 1}}]}, "meant start"),
        ({"steps": [{"target": "global blocks", "mechanism": "scaled", "settings": {"dim": 1}}]}, "unknown setting"),
        ({"steps": [{"target": "global blocks", "mechanism": "scaled", "settings": {"start": -1}}]}, "be positive"),
        ({"steps": [{"target": "global blocks", "mechanism": "dense", "dense_below": -1}]}, "0 or more"),
        (
            {"steps": [{"target": "global blocks 8-23", "mechanism": "dense"}]},
            "names block 23.* 2 of them, 0 to 1",
        ),
        ({"steps": [{"target": "named head.*", "mechanism": "dense"}]}, "There are 3 of role frame"),
        (3, "type int"),
        ("lite3r:keep", "has 'keep'; expected NAME=VALUE for each setting"),
        ("gsa:0,1", "has '0'; expected NAME=VALUE"),
        ("lite3r:keap=0.2", "unknown setting 'keap' of sla. Perhaps you meant keep"),
        ("lite3r:rounding=fp4", "rounding is 'fp4'; expected one of fp8, w4a16, w4a8, none"),
        ("gsa:top_k=8,window=2,top_k=32", "has top_k twice"),
        ("frame_subset:keep=[0.5]", r"keep is \[0\.5\]; expected distinct view numbers"),
        ("frame_subset:keep=3", "keep is 3; expected distinct view numbers"),
        ("fp8:fast_accum=False", "fast_accum is 'False'; expected True or False"),
        (quantized("w4a8", smooth="no"), "smooth is 'no'; expected True or False"),
        (quantized("w4a8", group_size=True), "group_size is True; expected a whole number"),
        ("fp8-weight:keep=0.2", "plan fp8-weight does not accept these settings"),
    ],
)
def test_wrong_plans_are_refused(model: Nano, wrong: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        compress(model, wrong)  # type: ignore[arg-type]


def test_no_trunk_and_twice_are_refused(model: Nano) -> None:
    with pytest.raises(UsageError, match="nothing for 'global blocks'"):
        compress(nn.Linear(2, 2), plan())
    with pytest.raises(UsageError, match="compressed already, by plan 'custom'"):
        compress(compress(model, plan()), plan())


def test_the_plan_travels_with_the_weights(tmp_path: Path) -> None:
    fast = lean3r.compress(lean3r.load("nano"), plan("global blocks 1-", settings={"start": 1.5}))
    path = lean3r.save(fast, tmp_path / "fast.safetensors")
    again = lean3r.load("nano", weights=path)
    assert plan_of(again) == plan_of(fast) and torch.equal(depth(again), depth(fast))
    with pytest.raises(UsageError, match="cannot become"):
        lean3r.load("nano", weights=path, plan="dense")
    with pytest.raises(UsageError, match="exists"):
        lean3r.save(fast, path)
    for step in ({"mechanism": "new"}, {"mechanism": "merge", "settings": {"ratio": 7}}):
        save_model(Nano(), path, {"plan": json.dumps({"steps": [{"target": "global blocks", **step}]})})
        with pytest.raises(WeightsError, match=r"fast\.safetensors contains an unusable plan"):
            lean3r.load("nano", weights=path)


def test_only_recordings_record(model: Nano) -> None:
    fast = compress(model, plan())
    with recording() as log:
        depth(fast)
        with recording() as inner:
            pass
    depth(fast)
    assert [entry.values["density"] for entry in log] == [0.5, 0.5] and not inner
    assert log[0].mechanism is fast.trunk.blocks[2].attn.mechanism  # type: ignore[union-attr]
    assert isinstance(log[0].values["costly"], Tensor) and log[0].layout.views == 3
