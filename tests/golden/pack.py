"""Make the archive of golden cases that lean3r ships: the smallest of most kinds, large outputs with fewer values.

    python tests/golden/pack.py --golden DIR [-o tests/golden/shipped.tar.xz]

DIR is the whole folder (`README.md` beside this file says what it is). Inputs stay whole, pictures of backbones are
left out (they follow from their seed); of outputs at most 48 values stay, as they are: same numbers, same dtype. The
archive has no times or owners, so that equal folders give equal archives.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from thin import thinned

HERE = Path(__file__).parent
SHIPPED = HERE / "shipped.tar.xz"
MOST = 48  # values of an output
WHOLE = ("manifests/*[!y].json.gz", "lite3r/schedules.*", "lite3r/trace_fp8.*", "lite3r/trace_w4a16.*",
         "lite3r/loss_vggt_thresholds.*", "lite3r/loss_vggt_nan.*",
         "attention/kd_loss_mismatch.npz", "attention/speed3r_loss_nonormal.npz")  # fmt: skip
BACKBONES = ("vggt_tiny_v1_square", "vggt_tiny_v2_wide", "pi3_tiny_v2_wide", "pi3x_tiny_v2_wide",
             "pi3x_tiny_v3_pose_ray", "da3_tiny_v2_wide", "da3_tiny_v3_cam", "da3_tiny_v4_tall", "da3giantlike_tiny_v3",
             "da3mono_tiny_v1", "da3nested_tiny_v3")  # fmt: skip
LINGBOT = ("lb_stream_evict", "lb_stream_keyframe", "lb_flow", "lb_window")
THINNED = {
    "speed3r_pi3_block_batch": "final grad_hidden grad_gate_weight",
    "speed3r_pi3_block_small": "final mid grad_hidden grad_gate_weight",
    "speed3r_pi3_block_topk": "final mid grad_hidden grad_gate_weight",
    "k_topk_10": "out grad_q grad_k grad_v",
    "fastvggt_merge_norand": "q_merged k_merged v_merged attn_merged out",
    "fp8_linear_k37": "out grad_x grad_weight x_quant w_quant",
}
"""File of attention/ -> its outputs."""
CASES = {
    "auc_from_errors": "ties with_nan with_inf_failures integers_on_bin_edges",
    "two_view_pose": "*",
    "relpose_pairwise": "two_views random_poses",
    "trajectory": "three_views",
    "fastvggt_style": "traj_noise_sim3",
    "video_depth": "odd_even_median integer_ratios_on_delta_edges one_frame_2d aggregate",
    "lite3r": "pose_noise cloud_few_points cloud_empty_pred",
    "point_maps": "cloud_on_threshold cloud_empty_pred umeyama_only",
}
"""File of metrics/ -> its cases."""


def members(golden: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file of the archive."""
    yield "README.md", (HERE / "README.md").read_bytes()
    yield "synthetic_weights.py", (golden / "synthetic_weights.py").read_bytes()
    for pattern in WHOLE:
        for path in golden.glob(pattern):
            yield path.relative_to(golden).as_posix(), stored(np.load(path)) if path.suffix == ".npz" else plain(path)
    for name in BACKBONES:
        yield from backbone(golden / "backbones" / f"{name}.json")
    for name in LINGBOT:
        yield from lingbot(golden / "lingbot" / f"{name}.json")
    for name, outputs in THINNED.items():
        yield f"attention/{name}.npz", attention(golden / "attention" / f"{name}.npz", outputs.split())
    for name, cases in CASES.items():
        arrays = np.load(golden / "metrics" / f"{name}.npz")
        wanted = [k for k in arrays if cases == "*" or "." not in k or k.partition(".")[0] in cases.split()]
        yield f"metrics/{name}.npz", stored({k: arrays[k] for k in wanted})


def backbone(path: Path) -> Iterator[tuple[str, bytes]]:
    """The JSON and the arrays of a case, without its pictures."""
    case, arrays = json.loads(path.read_text()), dict(np.load(path.with_suffix(".npz")))
    del arrays["in.images"]
    for name in [name for name in arrays if not name.startswith("in.")]:
        entry = case["arrays"][name]
        arrays[name], stride = thinned(arrays[name], MOST)
        case["arrays"][name] = {"shape": entry["shape"], "stored": "flat", "stride": stride * entry["stride"]}
    yield f"backbones/{path.name}", json.dumps(case, indent=1).encode()
    yield f"backbones/{path.stem}.npz", stored(arrays)


def lingbot(path: Path) -> Iterator[tuple[str, bytes]]:
    """The JSON and the arrays of a case of LingBot-Map, without its pictures."""
    case, arrays = json.loads(path.read_text()), dict(np.load(path.with_suffix(".npz")))
    for name in [name for name in arrays if name.startswith(("in.", "sdpa_backend."))]:
        del arrays[name], case["arrays"][name]
    for name in [name for name in arrays if not name.endswith("intrinsics")]:
        entry = case["arrays"][name]
        arrays[name], stride = thinned(arrays[name], MOST)
        entry |= {"stored": "flat", "stride": stride * entry.get("stride", 1)}
    case = {name: value for name, value in case.items() if not name.startswith(("sdpa_backend", "one_masked_pass"))}
    yield f"lingbot/{path.name}", json.dumps(case, indent=1).encode()
    yield f"lingbot/{path.stem}.npz", stored(arrays)


def attention(path: Path, outputs: list[str]) -> bytes:
    """The arrays of a case, its outputs thinned."""
    arrays = dict(np.load(path))
    for name in outputs:
        shape = arrays[name].shape
        arrays[name], stride = thinned(arrays[name], MOST)
        arrays[f"{name}.whole"] = np.array([stride, *shape])
    return stored(arrays)


def stored(arrays) -> bytes:
    """An .npz without compression, which is the archive's part."""
    out = io.BytesIO()
    np.savez(out, **dict(arrays))
    return out.getvalue()


def plain(path: Path) -> bytes:
    """A file as it is; of .gz the content, without compression."""
    content = path.read_bytes()
    return gzip.compress(gzip.decompress(content), 0, mtime=0) if path.suffix == ".gz" else content


def pack(golden: Path) -> bytes:
    """The archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(members(golden)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return lzma.compress(out.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    """Pack and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, required=True, metavar="DIR")
    parser.add_argument("-o", "--out", type=Path, default=SHIPPED, metavar="FILE")
    options = parser.parse_args()
    options.out.write_bytes(pack(options.golden))
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
