"""A budget of memory: what it chooses and says, what stays the same, and what happens where memory runs out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from lean3r.cli.main import main
from lean3r.errors import OutOfMemoryError, UsageError
from lean3r.layers.linear import Linear
from lean3r.models.base import Backbone
from lean3r.models.da3 import Da3, Da3Config
from lean3r.models.execution import hold, weight_bytes
from lean3r.models.nano import Nano, NanoConfig
from lean3r.models.origin import Origin
from lean3r.models.pi3 import Pi3, Pi3Config
from lean3r.pipeline import lighten as lightening
from lean3r.pipeline.budget import MEASURES, Budget, fit, view_counts
from lean3r.pipeline.lighten import lighten
from lean3r.pipeline.load import load
from lean3r.pipeline.memory import Predictor, Setting, chunk_bytes, parse_memory, used_bytes
from lean3r.pipeline.predict import predict
from lean3r.pipeline.reconstruct import reconstruct
from lean3r.types import Views

CPU = torch.device("cpu")
START = Setting(40, 240, 320, 1 << 28, torch.float32)


class Formula(Predictor):
    """A predictor whose counts are a formula: 100 MB, a chunk of at most 80 MB, 8 bytes a pixel."""

    def __init__(self, model: Backbone):
        super().__init__(model, CPU, lambda: 0)

    def peak(self, setting: Setting) -> int:
        return 100_000_000 + min(setting.chunk_bytes, 80_000_000) + 8 * setting.pixels


@pytest.fixture(scope="module")
def nano() -> Backbone:
    torch.manual_seed(0)
    return Nano(NanoConfig(width=32, heads=2, pairs=2)).eval()


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("6GiB", 6 * 2**30), (" 500 mb", 500_000_000), ("1.5kB", 1500), ("12b", 12), (7, 7)],
)
def test_amounts_of_memory(text: str | int, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["8", "GB", "-1GB", "0GB", "8 apples", "", 0, -5, True, 1.5])
def test_invalid_amounts_of_memory_are_refused(text: str | int) -> None:
    with pytest.raises(UsageError, match="such as 8GB"):
        parse_memory(text)


def test_measures_are_taken_mildest_first(nano: Backbone) -> None:
    """Smaller and smaller budgets: nothing, chunks, resolution, views; every choice fits what it was made for."""
    found = [fit(Formula(nano), START, 240, Budget(size * 10**6)) for size in (300, 150, 120, 104, 101)]
    assert [f.is_exact for f in found] == [True, True, False, False, False]
    assert all(f.predicted <= f.budget.size for f in found)
    assert [bool(f.changes) for f in found] == [False, True, True, True, True]
    assert found[1].setting.chunk_bytes < START.chunk_bytes and found[1].setting.pixels == START.pixels
    assert found[2].resolution < 240 and found[2].setting.views == 40
    assert [f.setting.views < 40 for f in found] == [False, False, False, True, True]
    assert [f.setting.pixels for f in found] == sorted((f.setting.pixels for f in found), reverse=True)
    assert "same results" in str(found[1]) and "results change" in str(found[4]) and "views" in str(found[4])


@pytest.mark.parametrize("allow", MEASURES)
def test_only_allowed_measures_are_taken(nano: Backbone, allow: str) -> None:
    with pytest.raises(OutOfMemoryError, match=r"needs at least .* --memory ") as caught:
        fit(Formula(nano), START, 240, Budget(99 * 10**6, allow))  # type: ignore[arg-type]
    assert ("views" in str(caught.value).split("(")[0]) == (allow == "views")
    assert ("resolution" in str(caught.value).split("(")[0]) == (allow in ("resolution", "views"))


def test_what_was_given_by_name_stays(nano: Backbone) -> None:
    kept = fit(Formula(nano), START, 240, Budget(115 * 10**6), fixed=["resolution"])
    assert kept.resolution == 240 and kept.setting.views < 40
    with pytest.raises(OutOfMemoryError, match="resolution, views"):
        fit(Formula(nano), START, 240, Budget(115 * 10**6), fixed=["resolution", "views"])
    # The least that the error names is enough.
    least = 100_000_001 + 8 * START.pixels
    assert fit(Formula(nano), START, 240, Budget(least), fixed=["resolution", "views"]).is_exact


def test_view_counts_ascend_from_one() -> None:
    for views in (2, 3, 17, 1000):
        numbers = view_counts(views)
        assert numbers == sorted(set(numbers)) and numbers[0] == 1 and numbers[-1] < views and len(numbers) <= 16


def test_a_prediction_grows_with_the_run_and_leaves_the_model_alone(nano: Backbone) -> None:
    predictor = Predictor(nano, CPU, lambda: used_bytes(CPU))
    small, many, large = (
        predictor.peak(Setting(*shape, 1 << 28, torch.float32)) for shape in ((2, 96, 128), (9, 96, 128), (9, 192, 256))
    )
    assert used_bytes(CPU) < small < many < large
    assert nano.chunk_bytes == 1 << 28


def test_chunks_grow_with_the_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, expected in ((140 << 30, 140 << 26), (2 << 30, 1 << 28)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 1 << 40))
        assert chunk_bytes(torch.device("cuda", 1), 1 << 28) == expected
    assert chunk_bytes(torch.device("cpu"), 1 << 28) == 1 << 28


def test_chunks_change_nothing_but_memory() -> None:
    """The same result within rounding, from less memory, where many views go through encoder and heads."""
    torch.manual_seed(0)
    model = Da3(Da3Config(64, 6, 4, 2, (2, 3, 4, 5), features=16, channels=(8, 8, 8, 8), grid=4)).eval()
    views = Views(torch.rand(1, 6, 3, 56, 84))
    full = Predictor(model, CPU, lambda: 0).peak(Setting(6, 56, 84, 1 << 28, torch.float32))
    before = reconstruct(model, views)
    budget = Budget(used_bytes(CPU) + 10**9)
    after = reconstruct(model, views, memory=budget)
    assert after.info["memory"]["changes"] == [] and (after.depth == before.depth).all()
    model.set_chunk_bytes(1)
    try:
        chunked = reconstruct(model, views)
    finally:
        model.set_chunk_bytes(1 << 28)
    assert Predictor(model, CPU, lambda: 0).peak(Setting(6, 56, 84, 1, torch.float32)) < full
    assert abs(chunked.depth - before.depth).max() <= 1e-5 * before.depth.max()


def test_ready_views_are_never_changed(nano: Backbone) -> None:
    views = Views(torch.rand(1, 3, 3, 64, 96))
    with pytest.raises(OutOfMemoryError, match="not to be changed: resolution, views"):
        reconstruct(nano, views, memory="20MB")


@pytest.mark.parametrize("kind", ["pi3", "da3"])
def test_weights_held_in_half_give_the_same_bits(kind: str) -> None:
    torch.manual_seed(0)
    model: Backbone = (
        Pi3(Pi3Config(width=32, heads=2, encoder_depth=1, depth=4, grid=4, camera_width=16))
        if kind == "pi3"
        else Da3(Da3Config(64, 6, 4, 2, (2, 3, 4, 5), features=16, channels=(8, 8, 8, 8), grid=4))
    )
    model.eval()
    model.origin = Origin("", "", torch.bfloat16)
    views = Views(torch.rand(1, 2, 3, 56, 42))
    before, size = predict(model, views), weight_bytes(model)
    hold(model, torch.bfloat16)
    after = predict(model, views)
    assert weight_bytes(model) < 0.9 * size
    for name in ("depth", "conf", "cam_from_world", "intrinsics"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name


def test_weights_become_lighter_only_where_they_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightening, "used_bytes", lambda device: 0)

    def lighten_to(size: int, allow: str = "views", fixed: tuple = ()):
        with torch.device("meta"):
            model = Pi3(Pi3Config(width=512, heads=8, encoder_depth=2, depth=4, camera_width=64))
        budget = Budget(size, allow, views=2, resolution=70)  # type: ignore[arg-type]
        return lighten(model, budget, torch.device("cuda"), torch.float32, fixed)  # type: ignore[arg-type]

    plain = weight_bytes(lighten_to(10**9).model)
    enough = lighten_to(2 * plain)
    assert (enough.dtype, enough.changes, enough.is_exact) == (torch.float32, (), True)
    half = lighten_to(int(0.95 * plain), "dtype")
    assert half.dtype == torch.bfloat16 and not half.is_exact and weight_bytes(half.model) < 0.9 * plain
    for kept in (lighten_to(1, "exact"), lighten_to(1, fixed=("dtype", "plan"))):
        assert kept.dtype == torch.float32 and kept.changes == ()
    eight = lighten_to(1)
    assert eight.changes[-1] == "weights in 8 bits (plan fp8-weight)"
    assert weight_bytes(eight.model) < weight_bytes(half.model)


def test_a_model_is_loaded_light(monkeypatch: pytest.MonkeyPatch) -> None:
    # The weights of nano are next to nothing: rounding them is not worth it.
    assert all(p.dtype == torch.float32 for p in load("nano", device="cpu", memory=Budget(1)).parameters())
    monkeypatch.setattr(lightening, "WORTH", 2.0)
    asked = load("nano", device="cpu", memory=Budget(1, "dtype"))
    kept = load("nano", device="cpu", memory=Budget(1), dtype="float32", plan="dense")
    linears = [m for m in asked.get_submodule("trunk").modules() if type(m) is Linear]
    assert linears and all(m.weight.dtype == torch.bfloat16 for m in linears)
    assert all(p.dtype == torch.float32 for p in kept.parameters())
    scene = reconstruct(asked, Views(torch.rand(1, 2, 3, 64, 96)), memory="8GB")
    assert scene.info["memory"]["changes"] == ["bfloat16 products and weights"]
    assert not scene.info["memory"]["same_results"] and scene.info["memory"]["dtype"] == "bfloat16"


@pytest.fixture
def forgetful(nano: Backbone) -> Iterator[tuple[nn.Module, list[BaseException]]]:
    """A model that raises each of the listed errors once, and notes the chunks that it works on."""
    errors: list[BaseException] = []
    seen: list[int] = []

    def fail(*_: object) -> None:
        seen.append(nano.chunk_bytes)
        if errors:
            raise errors.pop(0)

    hook = nano.register_forward_pre_hook(fail)
    vars(nano)["seen"] = seen
    yield nano, errors
    hook.remove()
    del vars(nano)["seen"]


EXHAUSTED = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ..."),
]


@pytest.mark.parametrize("error", EXHAUSTED, ids=lambda error: type(error).__name__)
def test_a_run_out_of_memory_is_retried(forgetful, error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    model, errors = forgetful
    views = Views(torch.rand(1, 2, 3, 64, 96))
    expected = predict(model, views)
    errors.append(error)
    found = predict(model, views)
    assert found.depth is not None and expected.depth is not None
    assert torch.allclose(found.depth, expected.depth, rtol=1e-5)
    assert model.seen[-1] < model.seen[0] == model.chunk_bytes and len(model.seen) == 3
    assert "retrying with" in caplog.text


@pytest.mark.parametrize("error", EXHAUSTED, ids=lambda error: type(error).__name__)
def test_out_of_memory_twice_ends_with_advice(forgetful, error: BaseException) -> None:
    model, errors = forgetful
    errors += [error, error]
    with pytest.raises(OutOfMemoryError, match=r"4 views of 96x64 .* --max-views [123]\b") as caught:
        predict(model, Views(torch.rand(1, 4, 3, 64, 96)))
    assert caught.value.exit_code == 5 and model.chunk_bytes == 1 << 28


def test_advice_needs_no_memory_itself(forgetful) -> None:
    """Counting what would fit fails as well: halves are proposed."""
    model, errors = forgetful
    errors += [MemoryError()] * 9
    with pytest.raises(OutOfMemoryError, match="--max-views 2, --resolution"):
        predict(model, Views(torch.rand(1, 4, 3, 64, 96)))


def test_other_errors_are_not_tried_again(forgetful) -> None:
    model, errors = forgetful
    errors.append(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        predict(model, Views(torch.rand(1, 2, 3, 64, 96)))
    assert len(model.seen) == 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for index in range(3):
        pixels = torch.randint(0, 255, (48, 64, 3), dtype=torch.uint8, generator=torch.manual_seed(index)).numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_the_command_reports_its_choice(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert (
        main(["reconstruct", str(photos), "-o", str(out), "--memory", "9GB", "-f", "cameras", "--device", "cpu"]) == 0
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("memory")]
    assert any("budget 9.0 GB, predicted peak" in line and "same results" in line for line in lines)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["memory"]["budget_mb"] == 9000 and manifest["memory"]["views"] == 3
    assert 0 < manifest["memory"]["predicted_mb"] < 9000  # of the process of all tests before, too


@pytest.mark.parametrize(("memory", "code", "says"), [("8", 2, "such as 8GB"), ("20MB", 5, "needs at least")])
def test_the_command_refuses(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], memory: str, code: int, says: str
) -> None:
    out = tmp_path / "out"
    arguments = ["reconstruct", str(photos), "-o", str(out), "--memory", memory, "--device", "cpu"]
    assert main([*arguments, "--resolution", "96"]) == code
    assert says in capsys.readouterr().err and not out.exists()


def test_fewer_or_smaller_pictures_are_read(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget between what one small picture and what all of them need."""
    from lean3r.pipeline import budget as budgets

    model = load("nano", device="cpu")
    monkeypatch.setattr(budgets, "Predictor", lambda model, *_, **__: Formula(model))
    smaller = reconstruct(model, photos, memory=Budget(int(101e6)))
    assert smaller.images.shape[0] == 3 and smaller.info["memory"]["resolution"] < model.resolution
    assert smaller.info["config"]["resolution"] == smaller.info["memory"]["resolution"]
    fewer = reconstruct(model, photos, memory=Budget(int(101e6)), resolution=240)
    assert fewer.images.shape[0] < 3 and fewer.info["memory"]["views"] == fewer.images.shape[0]
