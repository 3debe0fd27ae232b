"""ckpt_* and manifest-*: files that the release wrote, what a reader must obtain from them, and files that it reads."""

from __future__ import annotations

import gzip
import json
import lzma
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lite3r_tiny import STAGE_1, as_usual_size, build, pictures
from torch import Tensor

import lean3r
from lean3r.compress import compress, prepare, resolve_plan
from lean3r.compress.distill import attention_outputs
from lean3r.compress.fp8_linear import Rounded
from lean3r.compress.linears import sites_of
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import load_weights, place, without_memory
from lean3r.models.lite3r import released_name
from lean3r.models.weight_files import open_weights
from lean3r.pipeline.exchange import export_file
from lean3r.pipeline.transcode import compress_file
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.students import only_trains
from lean3r.types import Views
from lite3r_cases import Golden, compare
from lite3r_cases.training import check_train

FILES = {"stage1_file": "stage1", "fp8_file": "fp8_qat_1ep"}
NOISES, FLOOR, ROUNDED = 20, 2e-5, 2e-3
TRAINS = TrainConfig("trains", 0, (Stage(1, 14, 14, (2,), 2, train=("mechanisms",)),), OptimConfig())


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A temporary copy of a .xz file without that suffix."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / path.name.removesuffix(".xz")
        out.write_bytes(lzma.decompress(path.read_bytes()))
        yield out


def check(path: Path) -> None:
    """A file, what a reader must obtain from it, or the run that wrote it."""
    checks = {"_reader.npz": check_reader, "_train.npz": check_train, ".pt.xz": check_file}
    next(each for ending, each in checks.items() if path.name.endswith(ending))(path)


def check_reader(path: Path) -> None:
    """The outputs of each file in each mode, prepared and, of the rounded ones, deployed."""
    golden = Golden(path)
    case, stem = golden.settings, path.name.removesuffix("_reader.npz")
    modes = sorted({name.rpartition(".")[0] for name in golden.arrays if not name.startswith("in.")})
    views = Views(pictures(case, golden["in.images_u8"]))
    for mode in modes:
        file, _, form = mode.partition(".")
        keep = 0.2 if form.endswith("_keep02") else case["keep_ratio"]
        rounded = STAGE_1[case["kind"]] if file == "stage1_file" else "lite3r"
        plan = f"{rounded if form == 'rounded' else 'lite3r:rounding=none'}"
        plan += f"{',' if ':' in plan else ':'}keep={keep}"
        name = FILES[file]
        with unpacked(path.with_name(f"{stem}_{name}.pt.xz")) as weights:
            dense = build(case)
            model = (prepare if form == "rounded" else compress)(dense, plan)
            load_weights(model, weights)
            compare_outputs(golden, mode, outputs(model, views), case)
            with as_usual_size(case) as usual:
                deployed = lean3r.load(usual, weights=weights, plan=plan, dtype="float32", device="cpu")
            compare_outputs(golden, mode, outputs(deployed, views), case)
            for message, counts in case["expected"]["load_messages"].items():
                wrapping, _, which = message.partition(":")
                if {"s1": "stage1", "s2": "fp8_qat_1ep"}[which] == name:
                    assert difference(case, wrapping, weights) == counts, message


def outputs(model: Backbone, views: Views) -> dict[str, Tensor]:
    """Under their golden names."""
    with torch.no_grad(), attention_outputs(model) as mixed:
        found: dict[str, Tensor] = model.outputs(model.encode(views))  # type: ignore[operator]
    if model.name == "vggt":
        iterations = sorted(name for name in found if name.startswith("pose_enc_iter"))
        found |= {"pose_enc_list": torch.stack([found[i] for i in iterations]), "depth": found["depth"][..., 0]}
    return found | {"attention_outputs": torch.cat([each.flatten() for each in mixed])}


def compare_outputs(golden: Golden, mode: str, found: Mapping[str, Tensor], case: Mapping[str, Any]) -> None:
    for name, expected in golden.arrays.items():
        if name.startswith("in.") or name.rpartition(".")[0] != mode:
            continue
        noise = NOISES * case["noise"].get(name, 0.0) / float(np.abs(expected).max())
        limit = max(ROUNDED if mode.endswith(".rounded") else FLOOR, noise)
        compare(found[name.rpartition(".")[2]], expected, limit, name)


def difference(case: Mapping[str, Any], wrapping: str, weights: Path) -> list[int]:
    """[names that a model lacks in a file, names of the file that it has no use for]."""
    plan = {"none": "lite3r:rounding=none", "fp8": "lite3r", "w4": STAGE_1[case["kind"]]}[wrapping]
    model = compress(build(case), plan) if wrapping == "none" else prepare(build(case), plan)
    stored, own = open_weights(weights), model.state_dict()
    source = place(stored, model.KEY_MAP)
    return [
        len(own.keys() - source.keys()),
        len([name for name in stored.shapes if model.KEY_MAP.ours(name) not in own]),
    ]


def check_file(path: Path) -> None:
    """Release -> ours -> release, bit by bit; and the same straight away."""
    stem = path.name.removesuffix(".pt.xz")
    which = next(name for name in FILES.values() if stem.endswith(f"_{name}"))
    case = json.loads(path.with_name(f"{stem.removesuffix(which)}reader.json").read_text())
    plan = resolve_plan("lite3r" if which == "fp8_qat_1ep" else STAGE_1[case["kind"]])
    with unpacked(path) as weights, as_usual_size(case) as name:
        ours, back, straight = (weights.with_name(n) for n in ("ours.safetensors", "back.pt", "straight.pt"))
        compress_file(name, weights, ours, plan, trainable=True)
        export_file(name, ours, back, "lite3r")
        export_file(name, weights, straight, "lite3r")
        expected, *found = (torch.load(p, weights_only=True) for p in (weights, back, straight))
        model = prepare(build(case), plan)
        load_weights(model, ours)
    for payload in found:
        assert payload.keys() == expected.keys()
        assert (payload["step"], payload["extra"], payload["optim"]) == (expected["step"], expected["extra"], None)
        assert payload["model"].keys() == expected["model"].keys()
        for key, value in expected["model"].items():
            other = payload["model"][key]
            assert other.dtype == value.dtype and torch.equal(other.view(torch.int32), value.view(torch.int32)), key
        assert storages(payload["model"]) == storages(expected["model"])


def storages(tensors: Mapping[str, Tensor]) -> set[frozenset[str]]:
    """Names that share memory."""
    groups: dict[int, set[str]] = {}
    for name, value in tensors.items():
        groups.setdefault(value.data_ptr(), set()).add(name)
    return {frozenset(names) for names in groups.values()}


def check_manifest(path: Path) -> None:
    """Names, shapes, trained parameters, rounded layers and counts of a full-size model."""
    manifest = json.loads(gzip.decompress(path.read_bytes()))
    official = {key: (tuple(shape), dtype) for key, shape, dtype in manifest["keys"]}
    kind = "vggt" if "aggregator.camera_token" in official else "da3"
    smooth = any(key.endswith(".smooth") for key in official)
    kind_name = {"vggt": "vggt", "da3": "da3-large"}[kind]
    dense = without_memory(lambda: MODELS.get(kind_name).for_names(official))
    model = prepare(dense, STAGE_1[kind] if smooth else "lite3r")
    keys = model.KEY_MAP

    def released(ours: str) -> str:
        name = keys.official(ours)
        assert name is not None
        return released_name(name)

    own = {
        released(name): (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for name, v in model.state_dict().items()
    }
    assert own == official and len(own) == manifest["entries"]
    assert model.parameter_count == manifest["parameters"]
    assert sum(v.numel() for v in model.state_dict().values()) == manifest["state_elements"]
    assert sum(isinstance(m, Rounded) for m in model.modules()) == manifest["rounded_linear_count"]
    assert {released(f"{site.name}.x").removesuffix(".x") for site in sites_of(model)} == set(manifest["sla_modules"])
    only_trains(model, TRAINS)
    trained = {released(name): p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(trained) == sorted(manifest["trained_names"])
    assert sum(trained.values()) == manifest["trained_numbers"]
    tied = {tuple(released_name(name) for name in group) for group in keys.tied if len(group) > 1}
    assert tied == {tuple(group) for group in manifest["tied"]}


CASES = {"ckpt_": check, "manifest-lite3r-": check_manifest}
