"""Files that somebody made to harm, or by mistake: clear errors, and no more memory than they are worth."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data import tiny
from safetensors.torch import save_file

from lean3r.cli.main import run
from lean3r.compress.plan import CompressionPlan
from lean3r.data import DATASETS
from lean3r.data.sets.formats.files import inside, read_array, read_gzip
from lean3r.data.sets.formats.transforms import read_transforms
from lean3r.errors import InputError, LeanError, UsageError, WeightsError
from lean3r.inputs.cameras import read_given
from lean3r.json_text import MAX_DEPTH, parse_json
from lean3r.models.sources import find_weights
from lean3r.models.weight_files import open_weights
from lean3r.refine.scale import Distance
from lean3r.train.checkpoints.shards import damage
from lean3r.train.checkpoints.state import load_checkpoint, save_checkpoint
from lean3r.train.config import TrainConfig


@pytest.mark.parametrize("depth", [MAX_DEPTH + 2, 900, 200_000])
def test_deep_json_is_refused_everywhere(depth: int, tmp_path: Path) -> None:
    text = '{"frames": ' + "[" * depth + "]" * depth + "}"
    with pytest.raises(ValueError, match="nested deeper than 64 levels"):
        parse_json(text)
    for name in ("cameras.json", "transforms.json", "model.safetensors.index.json"):
        (tmp_path / name).write_text(text)
    reads: dict[type[LeanError], Any] = {}
    for kind, read in (
        (InputError, lambda: read_given(tmp_path / "cameras.json")),
        (InputError, lambda: read_transforms(tmp_path / "transforms.json")),
        (WeightsError, lambda: open_weights(tmp_path)),
        (UsageError, lambda: CompressionPlan.from_json(text)),
        (UsageError, lambda: TrainConfig.from_json(text)),
    ):
        reads[kind] = read
        with pytest.raises(kind):
            read()


def test_json_of_usual_depth_is_read() -> None:
    depth = MAX_DEPTH
    assert parse_json("[" * depth + "]" * depth) and parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cameras.json").write_text('{"fx": 500, "fy": 500, "cx": 320, "cy": 180, "fx": 900}')
    with pytest.raises(InputError, match="'fx' twice"):
        read_given(tmp_path / "cameras.json")
    assert parse_json('[{"a": 1}, {"a": {"a": 2}}]') == [{"a": 1}, {"a": {"a": 2}}]


@pytest.mark.parametrize(
    "shard", ["model.safetensors.index.json", "../a.safetensors", "/tmp/a.safetensors", "", 3, None]
)
def test_index_that_names_itself_or_other_places(shard: object, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    for path in (index, find_weights(folder)):
        with pytest.raises(WeightsError, match=r"names the shard|is not an index of shards"):
            open_weights(path)


@pytest.mark.parametrize(
    "table",
    [
        {1: torch.ones(2)},
        {("a",): torch.ones(2)},
        {"a": torch.ones(2, 2).to_sparse()},
        {"a": torch.ones(2, 2).to_sparse_csr()},
        {"a": torch.ones(2, device="meta")},
    ],
    ids=["integer key", "tuple key", "sparse", "sparse rows", "without values"],
)
def test_tables_that_are_not_weights(table: dict, tmp_path: Path) -> None:
    torch.save(table, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"names a tensor|in a form that lean3r cannot read|has Python objects"):
        open_weights(tmp_path / "model.pt")


def test_damaged_torch_files_of_both_forms(tmp_path: Path) -> None:
    for new_form in (True, False):
        path = tmp_path / f"{new_form}.pt"
        torch.save({"weight": torch.ones(8, 8)}, path, _use_new_zipfile_serialization=new_form)
        content = path.read_bytes()
        for at in range(0, min(len(content), 600), 3):
            path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
            try:
                open_weights(path)
            except WeightsError:
                continue


def test_packed_torch_file_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
        archive.writestr("archive/version", "3")
    assert path.stat().st_size < 100_000
    with pytest.raises(WeightsError, match="damaged, truncated or not a torch checkpoint"):
        open_weights(path)


def test_invalid_angles_of_view(tmp_path: Path) -> None:
    frame = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}
    for angle in (0, 1e-320, "wide", None, [1]):
        content = {"camera_angle_x": angle, "w": 64, "h": 48, "frames": [frame]}
        (tmp_path / "transforms.json").write_text(json.dumps(content))
        with pytest.raises(InputError):
            read_given(tmp_path)


@pytest.mark.parametrize("change", [{"w": 2**50}, {"h": -1}, {"fl_x": 0}, {"fl_x": float("nan")}, {"k1": float("inf")}])
def test_absurd_lenses_of_data_sets(change: dict, tmp_path: Path) -> None:
    frame = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}
    content = {"fl_x": 80.0, "fl_y": 80.0, "cx": 32, "cy": 24, "w": 64, "h": 48, "frames": [frame], **change}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"is not a transforms\.json of nerfstudio"):
        read_transforms(tmp_path / "transforms.json")


@pytest.mark.parametrize("at", [0, 5, 12, 40, -8])
def test_damaged_annotations(at: int, tmp_path: Path) -> None:
    """Each byte of a gzip stream matters: its errors are of several kinds."""
    tiny.write("co3dv2", tmp_path)
    path = tmp_path / "apple" / "frame_annotations.jgz"
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    kind: Any = DATASETS.get("co3dv2")
    try:
        kind(tmp_path).scene(0)
    except InputError as error:
        assert "frame_annotations.jgz" in str(error)
    assert isinstance(kind.problems(tmp_path), list)


def test_annotations_that_unpack_to_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "frame_annotations.jgz"
    path.write_bytes(gzip.compress(bytes(40_000_000)))
    with pytest.raises(InputError, match="unpacks to more than"):
        read_gzip(path)


def test_arrays_that_claim_more_than_they_hold() -> None:
    file = io.BytesIO()
    np.save(file, np.ones((2, 2)))
    file = io.BytesIO(file.getvalue().replace(b"(2, 2)", b"(9**9,)".replace(b"9**9", b"9999")))
    with pytest.raises(ValueError, match="ends before that"):
        read_array(file)


@pytest.mark.parametrize("name", ["../x.png", "/etc/hostname", "a/../../x.png", "a\\..\\..\\x.png", "x\0y"])
def test_names_that_lead_out_of_a_data_set(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outside"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/b..c.png") == tmp_path / "a" / "b..c.png"


def test_index_of_shards_that_leads_elsewhere(tmp_path: Path) -> None:
    tiny.write("shards", tmp_path)
    kind: Any = DATASETS.get("shards")
    index = json.loads((tmp_path / "index.json").read_text())
    for change in (
        {"shard": "../x.tar"},
        {"members": None},
        {"views": "many"},
        {"members": {"cameras.json": [-5, 10**18]}},
    ):
        rows = [{**row, **change} for row in index["scenes"]]
        (tmp_path / "index.json").write_text(json.dumps({**index, "scenes": rows}))
        with pytest.raises(InputError):
            kind(tmp_path).view(0, 0)
        assert isinstance(kind.problems(tmp_path), list)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02}q\x00.", b"\x80\x04junk", bytes(5000)])
def test_newest_checkpoint_that_cannot_be_read(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    (tmp_path / "step-000000002.pt").write_bytes(content)
    assert (load_checkpoint(tmp_path) or {})["step"] == 1
    assert "step-000000002.pt is damaged and is skipped" in capsys.readouterr().err


def test_newest_checkpoint_that_holds_no_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    torch.save([1, 2], tmp_path / "step-000000002.pt")
    (tmp_path / "step-000000003").mkdir()
    (tmp_path / "step-000000003" / "check_sums.json").write_text("[]")
    (tmp_path / "step-000000004").mkdir()
    (tmp_path / "step-000000004" / "check_sums.json").write_text("{}")
    assert (load_checkpoint(tmp_path) or {})["step"] == 1
    assert capsys.readouterr().err.count("is skipped") == 3


def sealed(folder: Path, table: bytes) -> Path:
    """A checkpoint folder whose check sums are right, whatever its table holds."""
    folder.mkdir()
    (folder / ".metadata").write_bytes(table)
    (folder / "values.json").write_text("{}")
    sums = {path.name: [path.stat().st_size, zlib.crc32(path.read_bytes())] for path in folder.iterdir()}
    (folder / "check_sums.json").write_text(json.dumps(sums))
    return folder


def test_table_of_a_checkpoint_folder_executes_nothing(tmp_path: Path) -> None:
    for number, name in enumerate(("os\nmkdir", "torch.distributed.checkpoint.filesystem\nos")):
        table = f"c{name}\n(V{tmp_path / 'made'}\ntR.".encode()
        assert "the table refers to" in damage(sealed(tmp_path / str(number), table))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("number", ["1e300", "1e-300", "nan", "-1", "inf"])
def test_absurd_distances(number: str) -> None:
    with pytest.raises(UsageError, match="from 1e-06 to 1e\\+09"):
        Distance.parse(f"a.jpg,b.jpg={number}")


@pytest.mark.parametrize("seed", ["9" * 30, "-1", str(2**32)])
@pytest.mark.parametrize("command", [["reconstruct", "x", "-o", "y"], ["train", "nano", "--dry-run"]])
def test_absurd_seeds(
    command: list[str], seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").touch()  # inputs that are not there are told first
    code = run([*command, "--seed", seed])
    assert code == UsageError.exit_code and "--seed is" in capsys.readouterr().err
