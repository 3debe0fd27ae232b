"""Files of the Lite3R release: asked for what they lack, refused where they do not fit; and files for official code."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import lean3r
from lean3r.cli.main import main
from lean3r.compress import compress, prepare, resolve_plan
from lean3r.errors import UsageError, WeightsError
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import load_weights, models_that_fit, save_model, without_memory
from lean3r.models.lite3r import released_name
from lean3r.models.pi3 import Pi3, Pi3Config
from lean3r.models.speed3r import Speed3rPi3, from_pi3
from lean3r.models.vggt import Vggt
from lean3r.models.weight_files import open_weights
from lean3r.pipeline.exchange import export_file
from lean3r.pipeline.transcode import compress_file, resolve_weights
from lean3r.types import Views

TINY = replace(Vggt.SMALLEST, point_head=False, track_head=False)


@pytest.fixture(autouse=True)
def tiny_vggt() -> Iterator[None]:
    with patch.dict(Vggt.SIZES, {"vggt": TINY}):
        yield


@pytest.fixture
def trained() -> Backbone:
    """As the last stage of training leaves it."""
    torch.manual_seed(0)
    return prepare(Vggt(TINY), "lite3r").eval()


def release(model: Backbone, path: Path, *, drop: str = "\0", extra: object = None) -> Path:
    """A file as the release writes it, without names that contain `drop`."""
    tensors = {released_name(k): v for k, v in model.KEY_MAP.write(model.state_dict()).items() if drop not in k}
    torch.save({"model": tensors, "optim": None, "step": 113, "extra": extra or {}}, path)
    return path


def stage_1(model: Backbone) -> Backbone:
    return prepare(Vggt(TINY), "lite3r-w4a16").eval()


def depth(model: Backbone) -> Tensor:
    images = torch.rand(1, 2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(Views(images)).depth
    assert found is not None
    return found


def test_what_a_file_does_not_record_is_asked_for(trained: Backbone, tmp_path: Path, capsys) -> None:
    final = release(trained, tmp_path / "vggt_fp8_qat_1ep.pt")
    first = release(stage_1(trained), tmp_path / "first.pt")
    for path, plan in ((final, "lite3r"), (first, "lite3r-w4a16")):
        asks = rf"neither keep ratio nor mode nor number format.*--plan: {plan} .*keep 0\.3.*{plan}:keep=0\.2.*paper"
        with pytest.raises(UsageError, match=asks):
            lean3r.load("vggt", weights=path)
        out = tmp_path / "out.safetensors"
        assert main(["compress", str(path), str(out), "-m", "vggt"]) == 2
        assert f"--plan: {plan} is how the release trained" in capsys.readouterr().err and not out.exists()


def test_plans_of_another_kind_or_stage_are_refused(trained: Backbone, tmp_path: Path) -> None:
    final = release(trained, tmp_path / "final.pt")
    first = release(stage_1(trained), tmp_path / "first.pt")
    for path, plan, says in (
        (final, "gsa", "has the linear branches of Lite3R, plan gsa .* has none"),
        (final, "lite3r-w4a16", "another stage than plan lite3r-w4a16: it lacks the smoothing factors.*--plan lite3r"),
        (first, "lite3r", "another stage than plan lite3r: it has the smoothing factors.*--plan lite3r-w4a16"),
    ):
        with pytest.raises(UsageError, match=says):
            lean3r.load("vggt", weights=path, plan=plan)
    with pytest.raises(WeightsError, match=r"unexpected: aggregator\.patch_embed\.blocks\.0\.attn\.(lam|proj_lin)"):
        lean3r.load("vggt", weights=final, plan="sla:mode=token,dense_below=0")


@pytest.mark.parametrize(
    ("drop", "says"),
    [
        ("frame_blocks.2.attn.mechanism.proj_lin", r"missing: aggregator\.frame_blocks\.2\.attn\.proj_lin\.weight\."),
        ("camera_head.", r"missing: camera_head\.empty_pose_tokens, .* and \d+ more"),
        ("attn.mechanism.proj_lin", r"missing: aggregator\.patch_embed\.blocks\.0\.attn\.proj_lin\.weight, "),
        ("attn.qkv", r"missing: aggregator\.patch_embed\.blocks\.0\.attn\.qkv\.bias, "),
    ],
)
def test_missing_halves_are_named_as_in_the_file(trained: Backbone, tmp_path: Path, drop: str, says: str) -> None:
    path = release(trained, tmp_path / "half.pt", drop=drop)
    with pytest.raises(WeightsError, match=says):
        lean3r.load("vggt", weights=path, plan="lite3r")
    with pytest.raises((UsageError, WeightsError), match=r"lacks \d+ tensors|missing: "):
        export_file("vggt", path, tmp_path / "out.pt", "lite3r")


def test_pickled_objects_in_the_payload_never_run(trained: Backbone, tmp_path: Path) -> None:
    path = release(trained, tmp_path / "evil.pt", extra={"config": Path("x")})
    with pytest.raises(WeightsError, match="lean3r never executes pickles"):
        lean3r.load("vggt", weights=path, plan="lite3r")


def test_it_becomes_a_deployable_file_with_its_plan(trained: Backbone, tmp_path: Path, capsys) -> None:
    path, out = release(trained, tmp_path / "final.pt"), tmp_path / "deployed.safetensors"
    assert main(["compress", str(path), str(out), "-m", "vggt", "--plan", "lite3r", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == {"before": trained.parameter_count, "after": trained.parameter_count}
    assert report["bytes"]["after"] < 0.7 * report["bytes"]["before"]
    deployed = lean3r.load("vggt", weights=out, dtype="float32")
    assert torch.equal(depth(deployed), depth(lean3r.load("vggt", weights=path, plan="lite3r", dtype="float32")))
    assert torch.equal(depth(deployed), depth(trained))
    with pytest.raises(UsageError, match=r"compressed as lite3r .*keep=0\.3.*cannot become .*keep=0\.2"):
        lean3r.load("vggt", weights=out, plan="lite3r:keep=0.2")
    with pytest.raises(UsageError, match=r"tensors as codes .* Export the file that training wrote"):
        export_file("vggt", out, tmp_path / "back.pt", "lite3r")


def test_full_weights_go_both_ways_on_the_command_line(trained: Backbone, tmp_path: Path, capsys) -> None:
    path, ours, back = release(trained, tmp_path / "final.pt"), tmp_path / "ours.safetensors", tmp_path / "back.pt"
    common = ["-m", "vggt"]
    assert main(["compress", str(path), str(ours), *common, "--plan", "lite3r", "--export", "lean3r"]) == 0
    again = prepare(Vggt(TINY), "lite3r")
    load_weights(again, ours)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in trained.state_dict().items())
    assert main(["compress", str(ours), str(back), *common, "--export", "lite3r"]) == 0
    assert "does not record the plan, lite3r" in capsys.readouterr().err
    before, after = (torch.load(p, weights_only=True) for p in (path, back))
    assert after["step"] == 113 and after["model"].keys() == before["model"].keys()
    assert all(torch.equal(value, before["model"][key]) for key, value in after["model"].items())
    assert main(["compress", str(ours), str(back), *common, "--export", "lite3r", "--plan", "lite3r"]) == 2
    assert main(["compress", str(ours), str(back), *common, "--export", "lite3r"]) == 2
    said = capsys.readouterr().err
    assert "leave --plan and --scheme out" in said and "exists; use --overwrite" in said
    assert main(["compress", str(ours), str(tmp_path / "back.bin"), *common, "--export", "lite3r"]) == 2
    assert "expected a name that ends in .pt" in capsys.readouterr().err


def test_heads_are_left_out_and_missing_smoothing_is_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with patch.dict(Vggt.SIZES, {"vggt": Vggt.SMALLEST}):
        student = prepare(Vggt(Vggt.SMALLEST), {"steps": [
            {"target": "every attention layer", "mechanism": "sla"},
            {"quantize": "w4a16", "target": "every linear", "except": ["named *.attn.*"]},
        ]})  # fmt: skip
        save_model(student, tmp_path / "student.safetensors")
    exported = export_file("vggt", tmp_path / "student.safetensors", tmp_path / "out.pt", "lite3r")
    assert exported.notes[-1] == "left out: point_head and track_head"
    written = torch.load(tmp_path / "out.pt", weights_only=True)["model"]
    expected = prepare(Vggt(TINY), "lite3r-w4a16")
    assert written.keys() == {released_name(name) for name in expected.KEY_MAP.write(expected.state_dict())}
    smooth = [value for name, value in written.items() if name.endswith(".smooth")]
    assert smooth and all(bool((value == 1).all()) for value in smooth)
    model = lean3r.load("vggt", weights=tmp_path / "out.pt", plan="lite3r-w4a16")
    with pytest.raises(UsageError, match="have no point head"):
        assert isinstance(model, Vggt)
        model.point_maps(model.encode(Views(torch.rand(1, 1, 3, 28, 28))))


def test_what_lacks_the_branches_is_not_exported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(Vggt(TINY), path)
    with pytest.raises(UsageError, match=r"has no linear branches \(it is dense\); train it by a lite3r plan"):
        export_file("vggt", path, tmp_path / "out.pt", "lite3r")
    save_model(compress(Vggt(TINY), "sla"), path)
    with pytest.raises(UsageError, match=r"lacks \d+ tensors \(aggregator\.patch_embed\.blocks\.0\.attn\."):
        export_file("vggt", path, tmp_path / "out.pt", "lite3r")
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(("name", "plan"), [("vggt", "lite3r"), ("da3-large", "lite3r-w4a8")])
def test_full_size_files_are_told_by_their_keys(name: str, plan: str, tmp_path: Path) -> None:
    with patch.dict(Vggt.SIZES, {"vggt": replace(type(TINY)(), point_head=False, track_head=False)}):
        model = prepare(without_memory(MODELS.get(name)), plan)
    shapes = {released_name(k): v.shape for k, v in model.KEY_MAP.write(model.state_dict()).items()}
    path = tmp_path / "release.pt"
    # Views of one number: the file has every key and shape, and no size.
    torch.save({"model": {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}, "step": 1}, path)
    with patch.dict(Vggt.SIZES, {"vggt": type(TINY)()}):
        assert models_that_fit(open_weights(path)) == [name] and resolve_weights(str(path)) == (name, path)
        other = "da3-large" if name == "vggt" else "vggt"
        with pytest.raises(WeightsError, match=f"it fits {name}: use --model {name}"):
            lean3r.load(other, weights=path, plan=plan)


def test_speed3r_files_have_official_names_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pi3 = Pi3(Pi3Config(width=32, heads=2, depth=4, encoder_depth=1, grid=4, camera_width=16))
    student = from_pi3(pi3)
    ours, out = tmp_path / "ours.safetensors", tmp_path / "model.safetensors"
    with patch.dict(Speed3rPi3.SIZES, {"speed3r-pi3": student.config}):
        save_model(student.bfloat16(), ours)
        exported = export_file("speed3r-pi3", ours, out, "speed3r")
    stored = open_weights(out)
    assert exported.tensors == len(stored.shapes) and stored.metadata == {"format": "pt"}
    assert stored.shapes.keys() == student.KEY_MAP.write(student.state_dict()).keys()
    assert set(stored.dtypes.values()) == {torch.float32}
    assert any(name.startswith("global_decoder.0.attn.gate.0.") for name in stored.shapes)
    assert "register_token" not in stored.shapes
    save_model(compress(pi3, "gsa"), ours)
    with pytest.raises(UsageError, match=r"holds pi3, compressed as gsa .* has no register tokens"):
        export_file("pi3", ours, tmp_path / "other.safetensors", "speed3r")


EXPORT = r"""
import re, sys, torch
from pathlib import Path
from lean3r.models import MODELS
from lean3r.models.checkpoint import without_memory
from lean3r.models.writing import write_stream
from lean3r.pipeline.exchange import export_file
folder = Path(sys.argv[1])
model = without_memory(MODELS.get("speed3r-pi3"))
like = model.KEY_MAP.write(model.state_dict())
values = ((name, torch.randn(value.shape)) for name, value in like.items())
write_stream(folder / "ours.safetensors", like, values, {"model": "speed3r-pi3"})
export_file("speed3r-pi3", folder / "ours.safetensors", folder / "theirs.safetensors", "speed3r")
print(1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_speed3r_at_full_size_is_what_its_code_reads(tmp_path: Path, golden_dir: Path) -> None:
    """Every name, shape and number type of the released checkpoint, written in the memory of a few tensors."""
    path = golden_dir / "manifests" / "speed3r-pi3.json.gz"
    if not path.is_file():
        pytest.skip(f"no manifest {path}")
    found = subprocess.run([sys.executable, "-c", EXPORT, str(tmp_path)], check=True, capture_output=True, text=True)
    ours, theirs = (open_weights(tmp_path / f"{name}.safetensors") for name in ("ours", "theirs"))
    official = {
        key: (tuple(shape), dtype) for key, shape, dtype in json.loads(gzip.decompress(path.read_bytes()))["keys"]
    }
    kinds = {
        key: (tuple(shape), str(theirs.dtypes[key]).removeprefix("torch.")) for key, shape in theirs.shapes.items()
    }
    assert kinds == official and len(official) == 1245
    names = ("global_decoder.0.attn.gate.0.weight", "point_head.proj.weight")
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(ours.read(names), theirs.read(names), strict=True))
    print(f"peak {int(found.stdout) / 1e9:.2f} GB")
    assert int(found.stdout) < 1.5e9


def test_a_converted_file_keeps_its_training_step(trained: Backbone, tmp_path: Path) -> None:
    path, out = release(trained, tmp_path / "final.pt"), tmp_path / "ours.safetensors"
    compress_file("vggt", path, out, resolve_plan("lite3r"), trainable=True)
    assert open_weights(out).metadata["step"] == "113"


def test_a_student_stands_for_its_own_weights(tmp_path: Path) -> None:
    name, path = resolve_weights("nano-gsa-fp8")
    assert (name, path.name) == ("nano", "nano-gsa-fp8.safetensors")
    assert resolve_weights("nano-gsa-fp8", "nano") == (name, path)
    with pytest.raises(UsageError, match="IN is the model nano-gsa-fp8, --model says vggt"):
        resolve_weights("nano-gsa-fp8", "vggt")
    with pytest.raises(UsageError, match=r"is compressed already, as .*give the file from before"):
        compress_file(name, path, tmp_path / "again.safetensors", None)
