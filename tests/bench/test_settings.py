"""What the text of a benchmark means, and what is refused before anything runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from lean3r.bench.official import parse_clones
from lean3r.bench.programs import check_plans
from lean3r.bench.settings import Cell, Settings, parse_layers, parse_sizes, parse_views, split_plans
from lean3r.cli.main import run
from lean3r.errors import KernelError, UsageError

ROOT = Path(__file__).parents[2]


def test_views_double_within_a_range() -> None:
    assert parse_views("2..64") == (2, 4, 8, 16, 32, 64)
    assert parse_views("32, 3..13,6") == (3, 6, 12, 32)


@pytest.mark.parametrize("text", ["", "0", "8..2", "2...4", "two", "2,", "-1", "99999999"])
def test_other_views_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--views"):
        parse_views(text)


def test_sizes_become_multiples_of_the_patch_of_each_model() -> None:
    square, wide, own = (Cell(2, size) for size in (*parse_sizes("240,168x224"), None))
    assert [cell.pixels("nano") for cell in (square, wide, own)] == [(240, 240), (160, 224), (240, 240)]
    assert [cell.pixels("vggt") for cell in (square, wide, own)] == [(238, 238), (168, 224), (518, 518)]
    for text in ("x", "16x", "16x16x16"):
        with pytest.raises(UsageError, match="--resolution"):
            parse_sizes(text)


def test_settings_stay_with_their_plan() -> None:
    assert split_plans("dense,gsa:special=pooled,regions=64,fp8") == ("dense", "gsa:special=pooled,regions=64", "fp8")
    assert split_plans(["sdpa,merge", "sdpa"]) == ("sdpa", "merge")
    assert split_plans("kv_prune:frames=1,grid=[3,2],own=true,fp8") == ("kv_prune:frames=1,grid=[3,2],own=true", "fp8")
    assert split_plans("dense,gsa:target=frame blocks 0,2-,top_k=4,fp8") == (
        "dense",
        "gsa:target=frame blocks 0,2-,top_k=4",
        "fp8",
    )
    stages = 'by_views:dense_below=1,stages=[[2,"merge",{"ratio":0.5}],[9,"kv_prune",{}]]'
    assert split_plans(f"{stages},fp8") == (stages, "fp8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": ("nona",)}, "Perhaps you meant nano"),
        ({"plans": ("dens",)}, "Perhaps you meant dense"),
        ({"against": ("offical",)}, "offical"),
        ({"sizes": (3,)}, "at least 16 pixels"),
        ({"sizes": (0,)}, "--resolution is 0; nano needs at least 16 pixels"),
        ({"devices": ("tpu",)}, "unknown device"),
        ({"dtypes": ("int3",)}, "unknown dtype"),
        ({"repeats": 0}, "--repeats is 0"),
        ({"limit_s": 0.0}, "--limit is 0; expected seconds, more than 0"),
        ({"threads": 0}, "--threads is 0"),
        ({"weights": (("vggt", "x.safetensors"),)}, "not among --models"),
        ({"whole": "nowhere"}, "does not exist"),
        ({"whole": "nowhere", "against": ("sdpa",)}, "leave out sdpa"),
        ({"refine": "off"}, "--refine off is for --whole"),
    ],
)
def test_mistakes_are_found_before_anything_runs(change: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Settings(**change)


@pytest.mark.parametrize("option", ["--plans", "--against"])
@pytest.mark.parametrize("models", [["--models=nano"], ["--layer=4x32"]])
def test_values_of_plans_are_checked_before_anything_runs(
    option: str, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.json"
    assert run(["bench", f"{option}=gsa:regions=abc", *models, "--views=2", "-o", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"{option} gsa:regions=abc: regions is 'abc'; expected a whole number" in said and not out.exists()


def test_a_plan_that_suits_one_model_of_several_is_kept(tmp_path: Path) -> None:
    fourth = {"groups": [[[3], "merge", {}]]}
    step = {"target": "every attention layer", "mechanism": "per_head", "settings": fourth}
    (tmp_path / "fourth.json").write_text(json.dumps({"steps": [step]}))
    plans = (str(tmp_path / "fourth.json"),)
    check_plans(Settings(models=("layer-2x32", "layer-4x32"), plans=plans))
    with pytest.raises(UsageError, match="groups name the heads"):
        check_plans(Settings(models=("layer-2x32",), plans=plans))


def test_a_plan_for_students_alone_is_refused() -> None:
    """Their weights have one: `--plans gsa` measured that, and said nothing."""
    with pytest.raises(UsageError, match="--plans gsa: nano-gsa-fp8 already has the plan of its weights"):
        check_plans(Settings(models=("nano-gsa-fp8",), plans=("dense", "gsa")))
    check_plans(Settings(models=("nano-gsa-fp8", "layer-2x32"), plans=("dense", "gsa")))
    check_plans(Settings(models=("nano-gsa-fp8",)))


@pytest.mark.parametrize("error", [KernelError("no kernel"), RuntimeError("a bug"), MemoryError()])
def test_a_plan_that_crashes_is_left_to_its_row(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise error

    monkeypatch.setattr("lean3r.bench.programs.compress", crash)
    check_plans(Settings(models=("layer-2x32",), plans=("gsa",)))


def test_a_clone_must_be_one(tmp_path: Path) -> None:
    for text in ("vggt", "vggt=", "nano=x", f"vggt={tmp_path}", f"vggt={tmp_path / 'nowhere'}"):
        with pytest.raises(UsageError, match="--peer"):
            parse_clones([text])
    (tmp_path / "vggt").mkdir()
    assert parse_clones([f"vggt={tmp_path}"]) == {"vggt": tmp_path.resolve()}


def test_recorded_runs_are_settings_which_options_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/costs.py gives `lean3r bench` options that it understands."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    costs, asked = importlib.import_module("costs"), list[Settings]()
    monkeypatch.setattr("lean3r.bench.run.bench", lambda settings, *_, **__: asked.append(settings))
    monkeypatch.chdir(tmp_path)
    costs.PHOTOS.mkdir(parents=True)
    for settings in costs.RUNS.values():
        assert costs.bench(settings, ["--json", "-o", "x.json", "--views=3"]) == 0
    assert {settings.views for settings in asked} == {(3,)}
    assert costs.bench(costs.RUNS["layer"], ["--json", "-o", "x.json", "-m", "pi3"]) == 0
    assert asked[0].models == ("layer-16x64", "layer-4x32") and asked[-1].models == ("pi3",)
    assert len(asked[0].plans) == len(costs.SPARSE) + 3


def test_layers_are_models() -> None:
    assert parse_layers("16x64,4x32") == ("layer-16x64", "layer-4x32")
    for text in ("16", "0x64", "4x30"):
        with pytest.raises(UsageError, match="--layer"):
            parse_layers(text)


def test_the_dense_program_is_first_and_a_student_is_alone() -> None:
    programs = Settings(plans=("gsa", "dense"), against=("merge", "sdpa", "official")).programs("nano")
    assert [(p.plan, p.kind) for p in programs] == [
        *((plan, "lean3r") for plan in ("dense", "gsa", "merge")),
        ("dense", "sdpa"),
        ("dense", "official"),
    ]
    alone = Settings(models=("nano-gsa-fp8",), plans=("dense", "gsa")).programs("nano-gsa-fp8")
    assert [p.plan for p in alone] == ["stored"]
