"""Options of jobs: those of the command line, checked before a job is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from lean3r.errors import InputError, UsageError
from lean3r.inputs import pictures
from lean3r.inputs.views import MAX_RESOLUTION, network_size
from lean3r.options import as_record
from lean3r.pipeline.options import RunOptions
from lean3r.serve import checking
from lean3r.serve.request import Request, describe
from serve.conftest import picture


def test_options_of_a_job_are_those_of_the_command_line() -> None:
    given = {
        "max-views": "3",
        "mesh": "true",
        "image_factors": "2,4",
        "intrinsics": [1, 2, 3, 4],
        "depth_size": "original",
    }
    record = as_record(*Request.of(given, ["nano"]).groups.values())
    wanted = {"max_views": 3, "mesh": True, "image_factors": [2, 4], "intrinsics": "1,2,3,4", "depth_size": "original"}
    assert {name: record[name] for name in wanted} == wanted
    for bad in ({"plan": "/etc/plan.json"}, {"device": "cuda"}, {"positions": "x"}, {"mesh": "perhaps"}, {"up": "q"},
                {"scale": "a"}, {"fps": "2", "every": "3"}, {"format": "depth", "dense": "off"}, {"loops": 10**6},
                {"image_factors": [1, [2]]}, {"max_views": {}}, {"intrinsics": [1, 2]},
                {"plan": "gsa:a=/x"}):  # fmt: skip
        with pytest.raises(UsageError):
            Request.of(bad, ["nano"])


def test_no_option_is_described_as_a_file_of_the_machine() -> None:
    about = {option["name"]: option for option in describe(["nano"])}
    assert not [name for name, one in about.items() if "FILE" in (one["value"] or "")]
    assert "upload" in about["intrinsics"]["help"]


def test_helps_name_the_fields_of_the_page_not_options_of_the_command_line() -> None:
    helps = {option["name"]: option["help"] for option in describe(["nano"])}
    assert not [text for text in helps.values() if "--" in text]
    assert helps["image_factors"].startswith("With 'undistort': also write")
    assert helps["known"].startswith("What to use of the known cameras; both")


def test_what_names_pictures_is_checked_against_those_that_run_and_reads_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands of pictures only max_views are taken; a distance between two of them needs none decoded."""
    names = [f"{number}.jpg" for number in range(5)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(picture(seed=number))
    monkeypatch.chdir(tmp_path)
    known = {"max_views": 2, "intrinsics": "50,50,32,24"}
    read: list[str] = []
    decode = pictures.decode_picture
    monkeypatch.setattr(pictures, "decode_picture", lambda f, name, s: (read.append(name), decode(f, name, s))[1])
    checking._check(names, Request.of({"max_views": 2, "scale": "0.jpg,4.jpg=1"}, ["nano"]))
    assert read == []
    with pytest.raises(InputError, match=r"'1\.jpg' matches no picture"):
        checking._check(names, Request.of({"max_views": 2, "scale": "0.jpg,1.jpg=1"}, ["nano"]))
    checking._check(names, Request.of(known, ["nano"]))
    assert sorted(read) == ["0.jpg", "4.jpg"]


def test_sizes_that_no_offered_network_takes_are_refused() -> None:
    """The limits are those of network_size, whose module loads torch."""
    for model, least in (("nano-gsa-fp8", 48), ("vggt", 42)):
        for side in (least, MAX_RESOLUTION):
            asked = Request.of({"resolution": side, "model": model}, ["nano", model])
            assert asked[RunOptions].resolution == side and network_size(4, 3, side, least // 3)
        for side in (least - 1, MAX_RESOLUTION + 1):
            with pytest.raises(UsageError, match=f"resolution is {side}; expected {least} to {MAX_RESOLUTION} pixels"):
                Request.of({"resolution": side, "model": model}, ["nano", model])
            with pytest.raises(UsageError):
                network_size(4, 3, side, least // 3)
    assert Request.of({"resolution": 42}, ["nano", "vggt"])[RunOptions].resolution == 42, "auto may be any of them"
