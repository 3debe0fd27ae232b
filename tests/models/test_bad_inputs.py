"""Every model of the table, at a tiny size, answers bad input in one way: a clear refusal, or a finite result."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contracts.tiny import tiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from lean3r.compress import compress
from lean3r.errors import InputError, UsageError, WeightsError
from lean3r.models import MODELS, checkpoint
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import load_weights, save_model, without_memory
from lean3r.pipeline.load import load
from lean3r.types import Known, Prediction, Views

each_model = pytest.mark.parametrize("name", list(MODELS))


def predict(model: Backbone, images: Tensor) -> Prediction:
    with torch.inference_mode():
        return model(Views(images))


def empty(name: str) -> Backbone:
    """The tiny model's structure, without values."""
    kind = MODELS.get(name)
    with torch.device("meta"):
        return kind(kind.SMALLEST)


@each_model
def test_pictures_that_no_model_accepts(name: str) -> None:
    model, side = tiny(name), 4 * tiny(name).patch
    for shape, said in (
        ((1, 0, 3, side, side), "0 views"),
        ((0, 2, 3, side, side), "0 scenes"),
        ((1, 2, 3, side + 2, side), f"{side}x{side + 2} pixels, expected sides that are multiples of {model.patch}"),
        ((1, 2, 3, side, side - 1), f"{side - 1}x{side} pixels"),
        ((1, 2, 3, side, 0), f"0x{side} pixels"),
        ((1, 2, 1, side, side), r"expected \[scenes, views, 3, height, width\]"),
        ((2, 3, side, side), r"expected \[scenes, views, 3, height, width\]"),
    ):
        with pytest.raises(UsageError, match=said):
            predict(model, torch.zeros(shape))


@each_model
def test_pictures_in_another_number_type_than_the_network(name: str) -> None:
    model, side = tiny(name), 4 * tiny(name).patch
    with pytest.raises(UsageError, match=r"torch.float16, expected torch.float32.*dtype=\"bfloat16\""):
        predict(model, torch.zeros(1, 2, 3, side, side).half())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_nano_in_codes_runs_cast_as_a_whole(kind: torch.dtype) -> None:
    model = compress(copy.deepcopy(tiny("nano")), "fp8").to(kind)
    assert predict(model, torch.rand(1, 2, 3, 32, 32).to(kind)).depth.isfinite().all()


@each_model
def test_masks_pixels_and_known_cameras_that_no_model_accepts(name: str) -> None:
    model, side = tiny(name), 3 * tiny(name).patch
    images = torch.rand(1, 2, 3, side, side)
    mask = torch.ones(1, 2, side, side, dtype=torch.bool)
    alone = mask.clone()
    alone[0, 1] = False
    pose = torch.eye(4).expand(1, 2, 4, 4).clone()
    lens = torch.tensor([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1]]).expand(1, 2, 3, 3).clone()
    lost, flat = pose.clone(), lens.clone()
    lost[0, 1, 0, 3] = float("nan")
    flat[0, 0, 0, 0] = 0.0
    refused: list[tuple[Views, type[Exception], str]] = [
        (Views((images * 255).byte()), UsageError, "pixels of type torch.uint8"),
        (Views(images, mask[:, :1]), UsageError, r"mask of shape \[1, 1, .*; expected \[1, 2,"),
        (Views(images, mask.float()), UsageError, "mask of shape .* torch.float32; expected .* torch.bool"),
        (Views(images, alone), InputError, "view 1 is all padding"),
        (
            Views(images, known=Known(lens[:, :1], pose)),
            UsageError,
            r"intrinsics of shape \[1, 1, 3, 3\], expected",
        ),
        (
            Views(images, known=Known(lens, pose[..., :3, :])),
            UsageError,
            r"cam_from_world of shape \[1, 2, 3, 4\]",
        ),
        (Views(images, known=Known(lens, lost)), InputError, "known poses of view 1 are not valid"),
        (Views(images, known=Known(flat, pose)), InputError, "known intrinsics of view 0 are not valid"),
    ]
    with torch.inference_mode():
        for views, kind, said in refused:
            with pytest.raises(kind, match=said):
                model(views)
        with pytest.raises(UsageError, match=r"got Tensor, expected lean3r\.Views"):
            model(images)
        has = torch.tensor([[True, False]])
        found = model(Views(images, known=Known(lens, lost, has_intrinsics=has, has_pose=has)))
    assert bool(found.cam_from_world.isfinite().all()), "what does not count is not looked at"


def test_chunks_have_a_size() -> None:
    model = tiny("da3nested-giant-large")
    whole = predict(model, torch.ones(1, 3, 3, 42, 42))
    with pytest.raises(UsageError, match="chunks of 0 bytes"):
        model.set_chunk_bytes(0)
    usual = model.chunk_bytes
    model.set_chunk_bytes(1)
    parts = [part for part in model.modules() if isinstance(part, Backbone)]
    assert len(parts) == 3 and all(part.frames_at_once(1 << 20) == 1 for part in parts)
    found = predict(model, torch.ones(1, 3, 3, 42, 42))
    few = model.summary(6, 42, 56).activation_bytes
    model.set_chunk_bytes(usual)
    torch.testing.assert_close(found.cam_from_world, whole.cam_from_world, rtol=1e-3, atol=1e-3)
    assert few < 0.8 * model.summary(6, 42, 56).activation_bytes


@each_model
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_nan_pixel_is_refused_naming_its_view(name: str, value: float) -> None:
    model = tiny(name)
    images = torch.rand(1, 3, 3, 3 * model.patch, 4 * model.patch)
    images[0, 1, 2, 5, 7] = value
    with pytest.raises(InputError, match="view 1 has NaN or infinite pixels"):
        predict(model, images)


@each_model
@pytest.mark.parametrize("kind", ["repeated", "black", "white"])
def test_views_without_any_difference_give_finite_results(name: str, kind: str) -> None:
    model = tiny(name)
    one = torch.rand(1, 1, 3, 3 * model.patch, 4 * model.patch, generator=torch.Generator().manual_seed(0))
    images = {"repeated": one, "black": torch.zeros_like(one), "white": torch.ones_like(one)}[kind]
    found = predict(model, images.expand(-1, 4, -1, -1, -1))
    for value in (found.cam_from_world, found.intrinsics, found.depth, found.conf):
        assert value is not None and bool(value.isfinite().all())
    assert found.depth is not None and bool((found.depth > 0).all())


@each_model
def test_checkpoints_that_do_not_fit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No full-size model is like a tiny one, and building them all takes seconds.
    monkeypatch.setattr("lean3r.models.checkpoint.models_that_fit", lambda *_, **__: [])
    model, path = tiny(name), tmp_path / "model.safetensors"
    save_model(model, path)
    tensors = load_file(path)
    first = next(key for key, value in tensors.items() if value.dim() > 1)
    whole = path.read_bytes()

    def refused(said: str) -> None:
        with pytest.raises(WeightsError, match=said) as caught:
            load_weights(empty(name), path)
        assert str(path.parent) in str(caught.value) and "\n" not in str(caught.value)

    path.write_bytes(whole[:-100])
    refused("damaged or truncated")
    save_file({**tensors, first: tensors[first][:-1].clone()}, path)
    refused(r"shapes: \S+ is \[.*\], expected \[")
    save_file({key: value for key, value in tensors.items() if key != first}, path)
    refused(r"missing: ")
    save_file({**tensors, "stranger": torch.ones(1)}, path)
    refused("unexpected: stranger")


@each_model
def test_half_of_the_shards(name: str, tmp_path: Path) -> None:
    model, path = tiny(name), tmp_path / "model.safetensors"
    save_model(model, path)
    tensors = load_file(path)
    path.unlink()
    table = {key: f"part-{1 + place % 2}.safetensors" for place, key in enumerate(tensors)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    save_file(
        {key: tensors[key] for key in tensors if table[key].startswith("part-1")}, tmp_path / "part-1.safetensors"
    )
    with pytest.raises(WeightsError, match=r"needs 2 shards, 1 missing beside it: part-2\.safetensors"):
        load_weights(empty(name), index)
    (tmp_path / "part-2.safetensors").write_bytes((tmp_path / "part-1.safetensors").read_bytes()[:-50])
    with pytest.raises(WeightsError, match=r"part-2\.safetensors is damaged or truncated"):
        load_weights(empty(name), index)


SOURCES = {"pi3": "vggt", "da3-small": "nano"}
"""Model -> the one that is asked to read its official, full-size keys."""


@pytest.mark.parametrize("name", SOURCES)
def test_a_model_is_recognised_by_its_keys(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        official = MODELS.get(name)()
        asked = MODELS.get(SOURCES[name])()
    state = official.KEY_MAP.write(official.state_dict())
    path = tmp_path / "model.pt"
    # Views of one number: the file has every key and shape of the official checkpoint, and no size.
    torch.save({key: torch.zeros(1).expand(value.shape) for key, value in state.items()}, path)
    built = []

    def note(build: Callable[[], Backbone]) -> Backbone:
        model = without_memory(build)
        built.append(model.name)
        return model

    monkeypatch.setattr(checkpoint, "without_memory", note)
    with pytest.raises(WeightsError, match=rf"names found\); it fits .*{name}: use --model {name}"):
        load_weights(asked, path)
    telltale = {n for n in MODELS if MODELS.get(n).TELLTALE is not None}
    assert set(built) & telltale <= {name}, "models are built that a look at one name rules out"


@pytest.mark.parametrize(
    ("wrong", "near"), [("vgt", "vggt"), ("da3-larg", "da3-large"), ("pi-3", "pi3"), ("nno", "nano")]
)
def test_an_unknown_name_suggests_the_nearest_ones(wrong: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"unknown model '{wrong}'\. Perhaps you meant .*\b{near}\b"):
        load(wrong)
