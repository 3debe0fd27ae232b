"""Every file of the shared folder of bad checkpoints is refused in one line that names the problem; none runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from lean3r.cli.main import main
from lean3r.errors import WeightsError
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import load_weights, read_tensors, save_weights
from lean3r.models.nano import Nano

EXPECTED = {
    "contains_nan.safetensors": r"encoder\.\w+ has NaN or infinite values",
    "executes_code.pt": "never executes pickles",
    "executes_code_legacy.pkl": "never executes pickles",
    "header_too_long.safetensors": "header claims 1,152,921,504,606,846,976 bytes",
    "lfs_pointer.safetensors": "is a Git LFS pointer.*download the real file",
    "overlapping_offsets.safetensors": "damaged or truncated",
    "truncated.pt": "damaged, truncated or not a torch checkpoint",
    "truncated.safetensors": "damaged or truncated",
    "wrong_key_names.safetensors": r"missing: encoder\.weight; unexpected: encoder\.wieght",
    "wrong_shape.safetensors": r"shapes: encoder\.weight is \[16, 9\], expected \[16, 8\]",
}


class Small(Backbone):
    """The model that the sound file of the folder belongs to."""

    name = "small"

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 16)


@pytest.fixture
def folder(data_dir: Path) -> Path:
    return data_dir / "bad_inputs" / "checkpoints"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh temporary folder of the process: where a pickle that ran would leave its mark."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return place


def test_every_file_has_an_expectation(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*EXPECTED, "small_valid.safetensors"}


@pytest.mark.parametrize("name", EXPECTED)
def test_refused(name: str, folder: Path, temporary: Path) -> None:
    model = Small()
    with pytest.raises(WeightsError, match=EXPECTED[name]) as caught:
        load_weights(model, folder / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not list(temporary.iterdir()), "a pickle was executed"


def test_the_intact_file_loads_and_is_refused_by_another_model(folder: Path) -> None:
    path, model = folder / "small_valid.safetensors", Small()
    load_weights(model, path)
    assert torch.equal(model.encoder.weight, load_file(path)["encoder.weight"])
    with pytest.raises(WeightsError, match=r"does not fit nano \(0 of \d+ names found\); missing: .*; unexpected: enc"):
        load_weights(Nano(), path)


@pytest.mark.parametrize("name", ["executes_code.pt", "truncated.safetensors", "small_valid.safetensors"])
def test_command_line_ends_with_6(name: str, folder: Path, tmp_path: Path, temporary: Path, capsys) -> None:
    out, photo = tmp_path / "out", tmp_path / "photo.png"
    Image.new("RGB", (64, 48)).save(photo)
    code = main(["reconstruct", str(photo), "-o", str(out), "--weights", str(folder / name)])
    said = capsys.readouterr().err.splitlines()
    assert code == 6 and said[-1].startswith("error: ") and name in said[-1] and "Traceback" not in "".join(said)
    assert not out.exists() and not list(temporary.iterdir())


def test_nano_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path, model, other = tmp_path / "nano.safetensors", Nano(), Nano()
    save_weights(model.state_dict(), path, {"model": "nano", "note": "mine"})
    assert load_weights(other, path) == {"model": "nano", "note": "mine"}
    tensors, metadata = read_tensors(path)
    assert metadata["note"] == "mine" and tensors.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value) and torch.equal(tensors[name], value)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["nano.safetensors"]
