"""The shipped golden cases are what the script makes, run wherever lean3r is checked out, and notice what is broken."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lingbot_cases
import lingbot_windows
import pytest
import torch.nn.functional as F
from attention_cases import free, gsa, select
from backbone_cases import LIMIT, load_synthetic, measure
from golden_numbers import SHIPPED, golden_folder
from lite3r_cases import schedules, trace
from pack import members

from lean3r.attention import coarse_fine
from lean3r.attention.sla import SLA
from lean3r.stream import cache as stream_cache

GROWN = 1.001  # what a broken part returns, over what it should


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped")
    with tarfile.open(SHIPPED) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_without_the_golden_folder_the_shipped_cases_run(tmp_path: Path) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    command += [str(here), f"--ignore={__file__}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here.parents[1])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) >= 70


def test_a_folder_that_is_not_there_is_refused(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytestconfig.option, "golden", "nowhere")
    with pytest.raises(pytest.UsageError, match="--golden DIR"):
        golden_folder(pytestconfig)


def test_the_archive_is_what_the_script_makes(golden_dir: Path, shipped: Path) -> None:
    if not (golden_dir / "metrics" / "README.md").is_file():
        pytest.skip("the whole golden folder is not here")
    made = dict(members(golden_dir))
    found = {path.relative_to(shipped).as_posix(): path.read_bytes() for path in shipped.rglob("*") if path.is_file()}
    assert found == made


def backbone(case: str) -> Callable[[Path], None]:
    """The check of a backbone's case."""

    def check(folder: Path) -> None:
        found = measure(folder / "backbones" / f"{case}.json", load_synthetic(folder))
        worst = {name: error for name, error in found.errors.items() if not error <= found.limits.get(name, LIMIT)}
        assert worst == {}

    return check


def lingbot(case: str) -> Callable[[Path], None]:
    """The check of a stream of LingBot-Map."""

    def check(folder: Path) -> None:
        found = lingbot_cases.measure(folder / "lingbot" / f"{case}.json", load_synthetic(folder))
        assert not found.missing
        assert {name: share for name, share in found.shares.items() if not share <= 1} == {}

    return check


def grown(function: Callable) -> Callable:
    """The function, with every floating-point tensor that it returns too large."""

    def broken(*args, **kwargs):
        found = function(*args, **kwargs)
        if isinstance(found, tuple):
            return tuple(value * GROWN for value in found)
        return found * GROWN

    return broken


CHECKS: dict[str, Callable[[Path], None]] = {
    **{
        name: backbone(name)
        for name in ("vggt_tiny_v1_square", "pi3_tiny_v2_wide", "pi3x_tiny_v3_pose_ray", "da3_tiny_v3_cam",
                     "da3giantlike_tiny_v3", "da3mono_tiny_v1", "da3nested_tiny_v3")
    },
    **{name: lingbot(f"lb_{name}") for name in ("stream_evict", "stream_keyframe", "flow", "window")},
    "speed3r": lambda folder: gsa.decoder(folder / "attention/speed3r_pi3_block_topk.npz", "reference"),
    "select": lambda folder: select.topk(folder / "attention/k_topk_10.npz", "reference"),
    "merge": lambda folder: free.fastvggt(folder / "attention/fastvggt_merge_norand.npz", "reference"),
    "lite3r": lambda folder: trace.check_trace(folder / "lite3r/trace_fp8.npz"),
    "schedules": lambda folder: schedules.check_schedules(folder / "lite3r/schedules.npz"),
}  # fmt: skip
DENSE = (F, "scaled_dot_product_attention", grown)
BROKEN = {
    **{name: DENSE for name in CHECKS if "tiny" in name},
    "stream_evict": DENSE,
    "stream_keyframe": (lingbot_cases, "CachePolicy", lambda kind: lambda **how: kind(**how | {"window": 3})),
    "flow": (stream_cache, "mean_motion_px", lambda f: lambda *how: f(*how, stride=7)),
    "window": (lingbot_windows, "quaternion_from_matrix", grown),
    "speed3r": (gsa, "Gsa", lambda kind: partial(kind, top_k=31)),
    "select": (select, "block_select", lambda f: lambda *qkv, **how: f(*(GROWN * t for t in qkv[:3]), *qkv[3:], **how)),
    "merge": (free, "unmerge", grown),
    "lite3r": (SLA, "branches", grown),
    "schedules": (schedules, "gamma", grown),
}
"""Check -> where the function is that is broken, its name, and how."""


@pytest.mark.parametrize("name", CHECKS)
def test_a_broken_part_fails(name: str, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CHECKS[name](shipped)
    owner, attribute, how = BROKEN[name]
    monkeypatch.setattr(owner, attribute, how(getattr(owner, attribute)))
    with pytest.raises(AssertionError):
        CHECKS[name](shipped)


def test_gates_of_speed3r_that_are_off_fail(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse_fine, "_mix", grown(coarse_fine._mix))
    with pytest.raises(AssertionError):
        CHECKS["speed3r"](shipped)
