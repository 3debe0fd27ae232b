"""Files that `lean3r export-model` writes, run by the programs that they are for, and what it refuses."""

from __future__ import annotations

import errno
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.tiny import tiny
from docs.inputs import photos
from docs.pages import steps_of
from torch import Tensor, nn

import lean3r.deploy.export as exports
from lean3r.compress import compress
from lean3r.compress.fp8_linear import QuantLinear
from lean3r.compress.presets import fp8, gsa, of_scheme, sla
from lean3r.deploy import export_model
from lean3r.deploy.graph import FEWEST_VIEWS, Limits, check_exportable, limits_of, outputs_of, whole_activations
from lean3r.deploy.onnx_file import runner, write_onnx
from lean3r.errors import MissingExtraError, UsageError
from lean3r.models.base import Backbone
from lean3r.models.nano import Nano
from lean3r.models.no_network import NoNetwork
from lean3r.scratch import LOCK
from lean3r.types import Prediction, Views


@pytest.fixture(scope="module")
def nano() -> Nano:
    """nano with one round: all of its layers but the feedback, and the least to record."""
    torch.manual_seed(0)
    return Nano(replace(Nano.SMALLEST, pairs=1)).eval()


def test_onnx_and_pt2_files_compute_what_the_model_does(
    nano: Nano, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    nano.train()
    program = exports.trace(nano, limits_of(nano))
    monkeypatch.setattr(exports, "trace", lambda *call: program)  # recorded once, for both
    left = tmp_path / "lean3r-export-abcdefgh"  # of a run that was killed
    left.mkdir()
    (left / LOCK).touch()
    written = {ending: export_model(nano, tmp_path / f"nano[1]{ending}") for ending in (".onnx", ".pt2")}
    assert all(part.training for part in nano.modules()), "its training goes on"
    nano.eval()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nano[1].onnx", "nano[1].pt2"]
    for exported in written.values():
        assert exported.differences is not None and max(exported.differences.values()) < 1e-4
        assert exported.axes["depth"] == [1, "views", "height", "width"] and exported.limits["views"] == 49
        assert json.loads(json.dumps(exported.as_dict()))["bytes"] == exported.path.stat().st_size
    file = onnx.load(tmp_path / "nano[1].onnx")
    assert {node.domain for node in file.graph.node} == {""} and written[".onnx"].details["opset"] >= 18
    assert json.loads(file.metadata_props[0].value)["limits"]["multiple"] == 16

    monkeypatch.chdir(tmp_path)
    for ending, exported in written.items():
        exported.path.rename(tmp_path / f"nano{ending}")  # as the page calls it
    photos(tmp_path / "photos")
    blocks = [step.text for step in steps_of("docs/how-to/deploy-models.md") if step.kind == "python"]
    names: dict[str, Any] = {}
    for block in blocks:
        if "aoti" not in block:
            exec(block, names)
    assert np.load("scene.npz")["depth"].shape == (1, 3, 208, 272), "photos of 4:3 at the usual resolution"

    images = torch.rand(1, 4, 3, 48, 160)
    with torch.no_grad():
        expected = outputs_of(nano(Views(images)))
        of_torch = names["program"](images)  # the files as the page has loaded them, which takes its time
    of_onnx = names["session"].run(list(expected), {"images": images.numpy()})
    for (name, value), other in zip(expected.items(), of_onnx, strict=True):
        torch.testing.assert_close(of_torch[name], value, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(other), value, rtol=1e-4, atol=1e-4)


class Bright(Backbone):
    """Depth is the brightness, times a factor, and no camera moves."""

    name, licence, patch, resolution = "bright", "Apache-2.0", 16, 240

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, views: Views, reference: int | None = None) -> Prediction:
        pose = torch.eye(4).expand(1, views.images.shape[1], 4, 4)
        return Prediction(pose, pose[..., :3, :3], self.factor * views.images.mean(2), None)


def test_a_file_that_differs_from_its_model_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Bright(1.0)
    program = exports.trace(model, replace(limits_of(model), fewest=FEWEST_VIEWS))
    monkeypatch.setattr(exports, "trace", lambda *call: program)
    with pytest.raises(exports.DifferentError, match=r"differs from the model by more than 0\.0001 \(depth [\d.]+e-04"):
        export_model(Bright(1.0005), tmp_path / "bright.pt2")
    with pytest.raises(exports.DifferentError, match=r"\(depth inf\)"):  # NaN is in no order with other numbers
        export_model(Bright(math.nan), tmp_path / "bright.pt2")
    assert not list(tmp_path.iterdir())
    found = export_model(Bright(1.00005), tmp_path / "bright.pt2").differences
    assert found is not None and 1e-5 < found["depth"] < 1e-4 and found["cam_from_world"] == 0
    with pytest.raises(AssertionError, match=r"Guard failed: images\.size\(\)\[1\] >= 2"):
        torch.export.load(tmp_path / "bright.pt2").module()(torch.rand(1, 1, 3, 48, 48))
    unguarded = torch.export.load(tmp_path / "bright.pt2").module(check_guards=False)
    with pytest.raises(RuntimeError, match="takes 2 to 1024 views, sides multiples of 16 from 48 to 4096"):
        unguarded(torch.rand(1, 1, 3, 48, 48))


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True])
def test_sparse_student_is_exported(many: bool, nano: Nano, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    student = compress(nano, gsa(dense_below=0, top_k=4) + fp8())
    exported = export_model(student, tmp_path / "student.onnx", many_views=many)
    assert exported.differences is not None and max(exported.differences.values()) < 1e-4
    assert exported.limits["fewest_views"] == (50 if many else 1) and exported.limits["least"] == 5 * 16
    assert all(part.scheme_name == "fp8" for part in student.modules() if isinstance(part, QuantLinear))


def test_a_replaced_file_takes_its_weights_along(nano: Nano, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    program = torch.export.export(Named(nn.Sequential(nn.Flatten(3), nn.GELU())), (torch.rand(1, 2, 3, 4, 4),))
    monkeypatch.setattr(exports, "trace", lambda *call: program)
    monkeypatch.setattr(exports, "compare", lambda *call: {"depth": 0.0})
    file, weights = tmp_path / "nano.onnx", tmp_path / "nano.onnx.data"
    for there in (False, True):
        weights.write_bytes(b"weights")
        export_model(nano, file, overwrite=there)
        assert weights.exists() is not there, "what no file refers to may be somebody's"


@pytest.mark.slow
def test_compiled_package_refuses_other_sizes(tmp_path: Path) -> None:
    """It has no other check: of 60 views it computed what nano makes of 49 and fewer."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("there is no compiler")
    export_model(Bright(1.0), tmp_path / "bright.aoti.pt2")
    run = torch._inductor.aoti_load_package(str(tmp_path / "bright.aoti.pt2"))
    for views, height, width in ((1, 48, 48), (1025, 48, 48), (2, 32, 48), (2, 48, 4112)):
        with pytest.raises(RuntimeError, match="takes 2 to 1024 views, sides multiples of 16 from 48 to 4096"):
            run(torch.rand(1, views, 3, height, width))


@pytest.mark.slow
def test_compiled_package_computes_what_the_graph_does(tmp_path: Path) -> None:
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("there is no compiler")
    model = nn.Sequential(nn.Flatten(3), nn.Linear(48, 4), nn.GELU())
    sizes = ({1: torch.export.Dim("views", min=2, max=9)},)
    program = torch.export.export(Named(model), (torch.rand(1, 2, 3, 6, 8),), dynamic_shapes=sizes)
    _, run = exports._write(".aoti.pt2", program, tmp_path / "model.aoti.pt2", {}, Limits(2, 9, 1))
    assert run is not None and (tmp_path / "model.aoti.pt2").is_file()
    images = torch.rand(1, 5, 3, 6, 8)
    torch.testing.assert_close(run(images)["depth"], model(images))


class Named(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"depth": self.model(images)}


def test_onnx_refuses_what_its_graph_is_not_for(tmp_path: Path) -> None:
    """Runtimes know no limits: beyond 49 views, nano's graph ran and gave depth that is not nano's."""
    onnxruntime = pytest.importorskip("onnxruntime")
    sizes = ({1: torch.export.Dim("views", min=2, max=99), **{axis: torch.export.Dim.DYNAMIC for axis in (3, 4)}},)
    model = Named(nn.GELU())
    program = torch.export.export(model, (torch.rand(1, 3, 3, 4, 8),), dynamic_shapes=sizes)
    write_onnx(program, tmp_path / "gelu.onnx", {}, Limits(2, 5, 2))
    session = onnxruntime.InferenceSession(tmp_path / "gelu.onnx")
    for views, height, width in ((2, 6, 6), (5, 8, 512), (4, 512, 6)):
        images = torch.rand(1, views, 3, height, width)
        (found,) = session.run(["depth"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(images)["depth"])
    for views, height, width in ((1, 6, 6), (6, 6, 6), (4, 4, 6), (4, 6, 514), (4, 6, 7)):
        with pytest.raises(Exception, match="takes 2 to 5 views, sides multiples of 2 from 6 to 512"):
            session.run(["depth"], {"images": np.zeros((1, views, 3, height, width), np.float32)})


class Svd(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.linalg.svdvals(images)


def test_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    program = torch.export.export(Svd(), (torch.rand(1, 2, 3, 4, 4),))
    with pytest.raises(UsageError, match=r"ONNX has no operator for aten\..*svd.*\.pt2") as caught:
        write_onnx(program, tmp_path / "svd.onnx", {})
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_bad_calls_are_told_before_any_work(nano: Nano, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "trace", lambda *call: pytest.fail("recorded"))
    (tmp_path / "old.pt2").write_bytes(b"")
    for name, said in (
        ("nano.tflite", r"ends in \.onnx"),
        ("old.pt2", "exists; use --overwrite"),
        ("nowhere/nano.pt2", "does not exist"),
    ):
        with pytest.raises(UsageError, match=said):
            export_model(nano, tmp_path / name)

    def refused(*call: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch, pytest.raises(UsageError, match=r"cannot write .*new\.pt2: Permission denied"):
        patch.setattr(exports, "temporary_folder", refused)
        export_model(nano, tmp_path / "new.pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"lean3r\[onnx\]"):
        export_model(nano, tmp_path / "nano.onnx")


@pytest.mark.parametrize("scheme", ["fp8", "w4a16", "w4a8"])
def test_exported_layers_round_their_weights_only(scheme: str, nano: Nano) -> None:
    """A file of w4a16 was refused as a bug: no two programs round activations alike."""
    rounded = compress(nano, of_scheme(scheme))
    layers = [part for part in rounded.modules() if isinstance(part, QuantLinear)]
    x = torch.rand(2, 32)
    before = [layer.scheme for layer in layers]
    with whole_activations(rounded):
        assert layers and all(layer.scheme.activation(x) is x for layer in layers)
    assert [layer.scheme for layer in layers] == before and not torch.equal(before[0].activation(x), x)


def test_models_that_make_no_graph_are_refused(nano: Nano) -> None:
    with pytest.raises(UsageError, match="no network"):
        check_exportable(NoNetwork())
    with pytest.raises(UsageError, match="SLA attention cannot be exported: its lists"):
        check_exportable(compress(nano, sla(dense_below=0)))
    with pytest.raises(UsageError, match=r"below 3,072 tokens this model attends densely"):
        check_exportable(compress(nano, "gsa"))
    with pytest.raises(UsageError, match="one graph for all numbers of views"):
        limits_of(tiny("vggt"), many=True)
    with pytest.raises(UsageError, match="bfloat16"):
        check_exportable(Nano(nano.config).to(torch.bfloat16))


class Coded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(128, 128).to(torch.float8_e4m3fn))

    def forward(self, images: Tensor) -> Tensor:
        return images @ self.weight.float()  # type: ignore[operator]


def test_weights_of_8_bits_stay_so(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    torch.manual_seed(0)
    model, images = Coded(), torch.rand(1, 2, 3, 8, 128)
    found = write_onnx(torch.export.export(model, (images,)), tmp_path / "coded.onnx", {})
    stored = {weight.data_type for weight in onnx.load(tmp_path / "coded.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in stored and found["opset"] >= 19
    run = runner(tmp_path / "coded.onnx")
    assert run is not None
    torch.testing.assert_close(run(images)["depth"], model(images))
