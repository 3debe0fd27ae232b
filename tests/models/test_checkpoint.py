"""Checkpoints: official names both ways, one copy in memory, shards, and a clear refusal of everything else."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lean3r.errors import WeightsError
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import load_weights, read_tensors, save_model, without_memory
from lean3r.models.da3 import Da3, Da3Config
from lean3r.models.nano import Nano
from lean3r.models.pi3 import Pi3, Pi3Config

TINY_PI3 = Pi3Config(width=32, heads=2, depth=2, encoder_depth=1, grid=2, camera_width=16)
TINY_DA3 = Da3Config(64, 4, 4, 2, (1, 2, 3, 3), features=16, channels=(8, 8, 8, 8), grid=2)
TIED = "model.head.scratch.output_conv2_aux.{}.2.weight"

PEAK = r"""
import re, sys, torch
from pathlib import Path
from torch import nn
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import load_weights
class Toy(Backbone):
    name = "toy"
def empty(layers):
    with torch.device("meta"):
        model = Toy()
        for index in range(layers):
            model.add_module(str(index), nn.Linear(1024, 1024))
    return model
peak = lambda: 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))
dtype = None if sys.argv[3] == "None" else getattr(torch, sys.argv[3])
load_weights(empty(1), sys.argv[1], dtype)  # what is loaded once, code above all, does not count
before = peak()
model = empty(32)
load_weights(model, sys.argv[2], dtype)
print((peak() - before) / sum(p.nbytes for p in model.parameters()))
"""


def tiny(kind: str) -> Backbone:
    return Pi3(TINY_PI3) if kind == "pi3" else Da3(TINY_DA3)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Pi3, Path]:
    """A model and its checkpoint without metadata, as the official ones are."""
    model = Pi3(TINY_PI3)
    path = tmp_path / "model.safetensors"
    save_file(model.KEY_MAP.write(model.state_dict()), path)
    return model, path


def damage(path: Path, **changes: Tensor | None) -> None:
    """Rewrite a checkpoint with some tensors changed or, by None, removed."""
    tensors = {**load_file(path), **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


@pytest.mark.parametrize("kind", ["pi3", "da3"])
def test_official_names_both_ways(kind: str, tmp_path: Path) -> None:
    model, path = tiny(kind), tmp_path / "model.safetensors"
    save_model(model, path, {"note": "mine"})
    assert any(name.startswith({"pi3": "decoder.1.", "da3": "model.backbone."}[kind]) for name in load_file(path))
    with torch.device("meta"):
        other = tiny(kind)
    assert load_weights(other, path) == {"model": model.name, "note": "mine"}
    assert other.parameter_count == model.parameter_count
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("kept", [0, 2, 3])
def test_any_one_of_tied_names_is_enough(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = tiny("da3")
    save_model(model, path)
    marked = torch.full_like(load_file(path)[TIED.format(0)], 7.0)
    damage(path, **{TIED.format(i): marked if i == kept else None for i in range(4)})
    load_weights(model, path)
    assert bool((model.state_dict()["head.outputs_aux.3.2.weight"] == 7).all())


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_wrapped_models(wrapper: str, saved: tuple[Pi3, Path], tmp_path: Path) -> None:
    model, path = saved
    tensors = {wrapper + name: value for name, value in load_file(path).items()}
    parts = [dict(list(tensors.items())[:9]), dict(list(tensors.items())[9:])]
    torch.save({"state_dict": tensors}, tmp_path / "whole.pt")
    for number, part in enumerate(parts):
        save_file(part, tmp_path / f"{number}.safetensors")
    shards = {name: f"{number}.safetensors" for number, part in enumerate(parts) for name in part}
    (tmp_path / "all.index.json").write_text(json.dumps({"weight_map": shards}))
    for file in ("whole.pt", "all.index.json"):
        other = without_memory(lambda: Pi3(TINY_PI3))
        load_weights(other, tmp_path / file)
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_cast_while_reading_keeps_constants(saved: tuple[Pi3, Path]) -> None:
    model, path = saved
    with torch.device("meta"):
        half = Pi3(TINY_PI3)
    load_weights(half, path, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.image_mean.dtype == torch.float32
    weight = model.trunk.blocks[1].state_dict()["attn.qkv.weight"]
    assert torch.equal(half.trunk.blocks[1].state_dict()["attn.qkv.weight"], weight.bfloat16())


@pytest.mark.parametrize("suffix", ["pt", "pth"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_torch_files(suffix: str, zipped: bool, wrapper: str | None, saved: tuple[Pi3, Path], tmp_path: Path) -> None:
    tensors = load_file(saved[1])
    path = tmp_path / f"model.{suffix}"
    torch.save({wrapper: tensors} if wrapper else tensors, path, _use_new_zipfile_serialization=zipped)
    other = Pi3(TINY_PI3)
    load_weights(other, path)
    assert torch.equal(other.point_head.proj.weight, saved[0].point_head.proj.weight)


def test_parameters_of_our_own_are_kept(saved: tuple[Pi3, Path], caplog: pytest.LogCaptureFixture) -> None:
    model = Pi3(TINY_PI3)
    model.KEY_MAP = type(Pi3.KEY_MAP)(tuple((a, b) for a, b in Pi3.KEY_MAP.pairs if a) + named_parts(model))
    model.extra = nn.Linear(2, 2)
    before = model.extra.weight.clone()
    with caplog.at_level("INFO", "lean3r"):
        load_weights(model, saved[1])
    assert torch.equal(model.extra.weight, before)
    assert "initialised, not in the checkpoint: extra.weight, extra.bias" in caplog.text


def named_parts(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Identity pairs of everything but the trunk."""
    return tuple((name, name) for name in model.state_dict() if not name.startswith("trunk."))


class TestShards:
    @pytest.fixture
    def index(self, saved: tuple[Pi3, Path], tmp_path: Path) -> Path:
        tensors = load_file(saved[1])
        saved[1].unlink()
        table = {name: f"model-{1 + place % 3}-of-3.safetensors" for place, name in enumerate(tensors)}
        for shard in set(table.values()):
            save_file({name: tensors[name] for name in tensors if table[name] == shard}, tmp_path / shard)
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": table}))
        return path

    def test_index_or_its_folder(self, index: Path, saved: tuple[Pi3, Path]) -> None:
        for path in (index, index.parent):
            with torch.device("meta"):
                other = Pi3(TINY_PI3)
            load_weights(other, path)
            assert torch.equal(other.camera_head.fc_t.weight, saved[0].camera_head.fc_t.weight)

    def test_shard_missing(self, index: Path) -> None:
        (index.parent / "model-2-of-3.safetensors").unlink()
        with pytest.raises(WeightsError, match=r"needs 3 shards, 1 missing beside it: model-2-of-3\.safetensors"):
            load_weights(Pi3(TINY_PI3), index)

    def test_half_a_shard(self, index: Path) -> None:
        shard = index.parent / "model-3-of-3.safetensors"
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
        with pytest.raises(WeightsError, match=r"model-3-of-3\.safetensors is damaged or truncated"):
            load_weights(Pi3(TINY_PI3), index)

    def test_index_of_nothing(self, index: Path) -> None:
        index.write_text("{}")
        with pytest.raises(WeightsError, match="is not an index of shards"):
            load_weights(Pi3(TINY_PI3), index)


class TestRefusals:
    def refused(self, path: Path, said: str) -> None:
        with torch.device("meta"):
            model = Pi3(TINY_PI3)
        with pytest.raises(WeightsError, match=said) as caught:
            load_weights(model, path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    def test_names_and_shapes(self, saved: tuple[Pi3, Path]) -> None:
        _, path = saved
        damage(path, **{"decoder.0.norm1.weight": None, "decoder.9.x": torch.ones(1), "image_mean": torch.ones(3)})
        report = (
            r"\(\d+ of \d+ names found\); missing: decoder\.0\.norm1\.weight; unexpected: decoder\.9\.x; "
            r"shapes: image_mean is \[3\], expected \[1, 3, 1, 1\]"
        )
        self.refused(path, report)

    def test_the_model_that_fits_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "nano.safetensors"
        save_file(Nano().state_dict(), path)
        self.refused(path, "it fits nano: use --model nano")
        save_model(Nano(), path)
        self.refused(path, "has weights of 'nano', expected pi3. Use --model nano")
        save_file(Nano().state_dict(), path, {"model": "omega"})
        self.refused(path, "has weights of 'omega', expected pi3. This version of lean3r does not know that model")
        self.refused(path.rename(tmp_path / "nano.pt"), "is a safetensors file; give it a name that ends in .safetens")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values(self, saved: tuple[Pi3, Path], value: float) -> None:
        _, path = saved
        damage(path, **{"decoder.0.norm1.weight": torch.full((32,), value)})
        self.refused(path, r"decoder\.0\.norm1\.weight has NaN or infinite values")

    def test_numbers_that_are_no_weights(self, saved: tuple[Pi3, Path]) -> None:
        _, path = saved
        for dtype in (torch.int64, torch.bool):
            damage(path, **{"decoder.0.norm1.weight": torch.ones(32, dtype=dtype)})
            kind = str(dtype).removeprefix("torch.")
            self.refused(
                path, rf"1 weights of type {kind} \(decoder\.0\.norm1\.weight, \.\.\.\); expected floating-point"
            )

    def test_too_large_for_the_number_type(self, saved: tuple[Pi3, Path]) -> None:
        model, path = saved
        damage(path, **{"decoder.0.norm1.weight": torch.full((32,), 1e6)})
        with torch.device("meta"):
            model = Pi3(TINY_PI3)
        with pytest.raises(WeightsError, match=r"as float16\. .* number type with a wider range"):
            load_weights(model, path, torch.float16)

    def test_files_that_are_not_weights(self, saved: tuple[Pi3, Path], tmp_path: Path) -> None:
        whole = saved[1].read_bytes()
        pickled = tmp_path / "evil.pt"
        torch.save({"a": Path("x")}, pickled)
        self.refused(pickled, "never executes pickles")
        for name, content, said in (
            ("half.safetensors", whole[: len(whole) // 2], "damaged or truncated"),
            ("head.safetensors", whole[:100], "truncated: the header needs"),
            ("text.safetensors", b"hello, this is text" * 9, "not a safetensors file"),
            ("empty.safetensors", b"", "is empty"),
            ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
            ("half.pt", pickled.read_bytes()[:99], "damaged, truncated or not a torch checkpoint"),
        ):
            path = tmp_path / name
            path.write_bytes(content)
            self.refused(path, said)
        self.refused(tmp_path / "absent.pt", "no such weights file")
        self.refused(tmp_path, "has several weights files")

    def test_a_file_that_may_not_be_read(self, saved: tuple[Pi3, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        def closed(path: Path, *_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", closed)
        self.refused(saved[1], r"cannot be read \(Permission denied\)")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("form", "dtype"),
    [("safetensors", "None"), ("safetensors", "bfloat16"), ("pt", "bfloat16"), ("shards", "bfloat16")],
)
def test_peak_memory_is_one_copy(form: str, dtype: str, tmp_path: Path) -> None:
    """benchmarks/loading.py measures a real model."""
    paths = []
    for layers in (1, 32):
        shapes = [(f"{i}.{k}", s) for i in range(layers) for k, s in (("weight", (1024, 1024)), ("bias", (1024,)))]
        tensors = {key: torch.ones(shape) for key, shape in shapes}
        path = tmp_path / f"{layers}.{'pt' if form == 'pt' else 'safetensors'}"
        if form == "shards":
            table = {key: f"{layers}-{place % 3}.safetensors" for place, key in enumerate(tensors)}
            for shard in set(table.values()):
                save_file({key: tensors[key] for key in tensors if table[key] == shard}, tmp_path / shard)
            path = tmp_path / f"{layers}.safetensors.index.json"
            path.write_text(json.dumps({"weight_map": table}))
        elif form == "safetensors":
            save_file(tensors, path)
        else:
            torch.save(tensors, path)
        paths.append(str(path))
    command = [sys.executable, "-c", PEAK, *paths, dtype]
    ratio = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(form, dtype, ratio)
    assert ratio <= 1.15


@pytest.mark.parametrize("name", list(MODELS))
def test_shapes_are_the_same_without_memory(name: str) -> None:
    with torch.device("meta"):
        usual = MODELS.get(name)().state_dict()
    ours = without_memory(MODELS.get(name)).state_dict()
    assert all(value.is_meta for value in ours.values())
    assert {key: (v.shape, v.dtype) for key, v in ours.items()} == {key: (v.shape, v.dtype) for key, v in usual.items()}


@pytest.mark.parametrize("name", ["nano", "nano-gsa-fp8"])
def test_no_run_imports_a_compiler_or_its_algebra(name: str) -> None:
    code = (
        "import lean3r, sys, torch; from lean3r.pipeline.predict import predict\n"
        f"predict(lean3r.load('{name}', device='cpu'), lean3r.Views(torch.rand(1, 2, 3, 48, 48)))\n"
        "assert not {'torch._dynamo', 'sympy', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_read_tensors_copies(saved: tuple[Pi3, Path]) -> None:
    tensors, metadata = read_tensors(saved[1])
    saved[1].write_bytes(b"")
    assert metadata == {} and bool(torch.isfinite(tensors["image_mean"]).all())
