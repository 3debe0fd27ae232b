"""Run a golden case of LingBot-Map through the cache engine, and measure how far each of its arrays is."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from backbone_cases import fill
from lingbot_windows import Join, Window, join, join_all, spans, warp
from torch import Tensor

from lean3r.geometry.flow import mean_motion_px
from lean3r.geometry.pose import invert_pose
from lean3r.geometry.pose_encoding import decode_intrinsics, decode_pose
from lean3r.layers.frames import CachePolicy, FrameTable
from lean3r.layers.time_rope import rotate_pairs, time_angles
from lean3r.models.lingbot import LingbotConfig, LingbotMap
from lean3r.stream.cache import CacheResult, CacheStream
from lean3r.types import TokenLayout, Views

ONCE = " in one pass"
LEAST = 1e-5
NOISE = 10.0  # times the largest change when the official program sums in another order


def find_cases(golden: Path) -> list[Path]:
    """JSON files of the cases with arrays, by name."""
    return [p for p in sorted((golden / "lingbot").glob("lb_*.json")) if p.with_suffix(".npz").is_file()]


def is_full_size(case_file: Path) -> bool:
    """Whether the case is of the official size."""
    return "GCTStream" in json.loads(case_file.read_text()).get("constructor", {})


@dataclass(frozen=True)
class Found:
    """By array name: `shares`, the largest difference in units of its tolerance, and `errors`, the relative RMS; arrays
    that were not produced. Names that end with ONCE are those of the single pass."""

    shares: dict[str, float]
    errors: dict[str, float]
    missing: list[str]


def measure(case_file: Path, synthetic: ModuleType) -> Found:
    """Run a case; counts of the cache and decisions about keyframes are asserted."""
    case = json.loads(case_file.read_text())
    arrays = {name: torch.from_numpy(value) for name, value in np.load(case_file.with_suffix(".npz")).items()}
    if "constructor" in case:
        images = arrays.get("in.images_u8")
        found = run(case, pictures(case, synthetic) if images is None else images, synthetic)
    else:
        found = units(arrays, case)
    inputs = ("in.", "sdpa_backend.", "rope.in")
    wanted = [n for n in arrays if not n.startswith(inputs) and not n.endswith(".is_keyframe")]
    names = {name: name for name in wanted} | {name + ONCE: name for name in wanted if name + ONCE in found}
    made = {
        name: compare(found[name], arrays[of], case["arrays"][of], of) for name, of in names.items() if name in found
    }
    shares, errors = ({name: pair[k] for name, pair in made.items()} for k in (0, 1))
    return Found(shares, errors, [name for name in wanted if name not in found])


def pictures(case: Mapping[str, Any], synthetic: ModuleType) -> Tensor:
    """The pictures of a case [S, 3, H, W] uint8 by its seed, for files without them."""
    how = case["images"]
    images = synthetic.synthetic_images(how["seed"], how["views"], how["height"], how["width"])
    return torch.from_numpy(np.rint(255 * images).astype(np.uint8))


def run(case: Mapping[str, Any], images: Tensor, synthetic: ModuleType) -> dict[str, Tensor]:
    """All arrays of a network case."""
    call = {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", case["call"])}
    with torch.device("meta"):
        model = LingbotMap(config_of(case["constructor"]))
    fill(model, synthetic, case["weights"]["seed"])
    policy = policy_of(case["constructor"], call)
    if "inference_windowed" in case["call"]:
        return windowed(model, policy, images, call, case)
    recorder = Recorder(model, policy)
    results = recorder.stream(images)
    found = recorder.arrays()
    log = case["cache_after_each_call"]
    assert recorder.log == [{name: entry[name] for name in recorder.log[0]} for entry in log]
    if "cache_at_end" in case:
        assert recorder.at_end() == {name: case["cache_at_end"][name] for name in recorder.at_end()}
    if policy.motion_px is not None:
        later = results[policy.anchors :]
        assert [r.is_keyframe for r in later] == case["keyframe_after_first_call"]
        found["out.flow_magnitude"] = torch.tensor([r.motion_px for r in later])
    else:
        model.policy = policy
        table = FrameTable.of(policy, len(images))
        with torch.no_grad():
            tokens = model.encode(Views(images[None].float() / 255))
            depth, conf = model.depth_maps(tokens)
            once = {"pose_enc": model.pose_encodings(tokens)[-1], "depth": depth[..., None], "depth_conf": conf}
        found |= {f"out.{name}{ONCE}": value for name, value in once.items()}
        found |= {
            "mask.full": table.full,
            "mask.special_only": table.memory,
            "mask.time_index": table.times,
        }
    return found


def config_of(arguments: Mapping[str, Any]) -> LingbotConfig:
    """Our sizes of the constructor arguments of a case."""
    if "GCTStream" in arguments:
        return LingbotConfig()
    vit, trunk, head = arguments["vit"], arguments["aggregator"], arguments["depth_head"]
    assert arguments["camera_head"]["num_heads"] == trunk["num_heads"]
    return LingbotConfig(
        width=trunk["embed_dim"],
        heads=trunk["num_heads"],
        encoder_heads=vit["num_heads"],
        encoder_depth=vit["depth"],
        grid=vit["img_size"] // vit["patch_size"],
        pairs=trunk["depth"],
        keep=tuple(trunk["blocks_read_by_heads"]),
        features=head["features"],
        channels=tuple(head["out_channels"]),
        camera_depth=arguments["camera_head"]["trunk_depth"],
        time_rope=trunk["enable_3d_rope"],
    )


def policy_of(arguments: Mapping[str, Any], call: Mapping[str, float]) -> CachePolicy:
    """The policy of a case; room for a few frames only, so that buffers grow."""
    sizes = arguments.get("aggregator") or arguments["GCTStream"]
    assert sizes["kv_cache_scale_frames"] == call["num_scale_frames"]
    threshold = call.get("flow_threshold", 0.0)
    return CachePolicy(
        anchors=sizes["kv_cache_scale_frames"],
        window=sizes["kv_cache_sliding_window"],
        interval=int(call.get("keyframe_interval", 1)),
        motion_px=threshold or None,
        max_gap=int(call.get("max_non_keyframe_gap", 30)),
        camera_passes=arguments.get("camera_head", {}).get("num_iterations"),
        reserve=5,
        camera_keeps_all=threshold > 0,
    )


class Recorder:
    """A stream that also keeps what blocks and camera head give, and the cache's counts after each call."""

    def __init__(self, model: LingbotMap, policy: CachePolicy):
        self.model, self.policy = model, policy
        self.engine = CacheStream(model, policy)
        self.taps: dict[str, list[Tensor]] = {}
        self.passes: list[list[Tensor]] = []
        self.log: list[dict[str, int]] = []
        self.results: list[CacheResult] = []

    def stream(self, images: Tensor) -> list[CacheResult]:
        """Results of pictures [S, 3, H, W] uint8."""

        def keep(into: list) -> Callable[..., None]:
            return lambda _m, _i, out: into.append(out.flatten(0, 1).clone() if isinstance(out, Tensor) else out)

        hooks = [self.model.camera.register_forward_hook(keep(self.passes))]
        for index, block in enumerate(self.model.trunk.blocks):
            values = self.taps.setdefault(f"tok.{('frame', 'global')[index % 2]}_block_{index // 2:02d}", [])
            hooks.append(block.register_forward_hook(keep(values)))
        results: list[CacheResult] = []
        for image in images:
            before = self.engine.stored
            results += (found := self.engine.push(image.permute(1, 2, 0)))
            if found:
                self._note(before, len(found), found[-1].is_keyframe)
        results += (found := self.engine.finish())
        if found:
            self._note(0, len(found), True)
        for hook in hooks:
            hook.remove()
        self.results = results
        return results

    def _note(self, before: int, frames: int, keyframe: bool) -> None:
        """The counts after a call. The official log of motion keyframes is taken before the window drops a frame or a
        frame is dropped again."""
        counts = self.at_end()
        if self.policy.motion_px is not None and before:
            counts["frames_appended"] = counts["next_time_index"] = before + 1
            counts["special_tokens"] = 6 * (before + 1)
            counts["window_frames"] = min(before - self.policy.anchors, self.policy.window) + 1
            keyframe = True
        self.log.append(counts | {"frames_in_call": frames, "first_time_index": before, "stored": keyframe})

    def at_end(self) -> dict[str, int]:
        """The counts now."""
        assert self.engine._cache is not None
        stored, camera = self.engine.stored, self.engine._cache.camera.stored
        anchors = min(stored, self.policy.anchors)
        return {
            "frames_appended": stored,
            "anchor_frames": anchors,
            "window_frames": min(stored - anchors, self.policy.window),
            "special_tokens": 6 * stored,
            "next_time_index": stored,
            "camera_cached": camera,
        }

    def arrays(self) -> dict[str, Tensor]:
        """Arrays under their golden names."""
        assert self.engine._size is not None and self.engine._cache is not None
        passes = torch.stack([torch.cat(part, 1) for part in zip(*self.passes, strict=True)])
        depth, conf = (torch.stack([getattr(r, name) for r in self.results]) for name in ("depth", "conf"))
        frames = len(self.results)
        found = {name: torch.cat(values).unflatten(0, (frames, -1))[None] for name, values in self.taps.items()}
        found |= {
            "out.pose_enc_iterations": passes,
            "out.pose_enc": passes[-1],
            "out.depth": depth[None, ..., None],
            "out.depth_conf": conf[None],
            "out.camera_to_world": decode_pose(passes[-1])[..., :3, :],
            "out.intrinsics": decode_intrinsics(passes[-1], *self.engine._size),
        }
        cache = self.engine._cache.blocks
        for index in range(cache.sizes.layers):
            keys = cache.state()[f"{index}.data"]
            assert isinstance(keys, Tensor)
            special = keys[:, :, : 6 * cache.stored].unflatten(2, (-1, 6)).flip(2).flatten(2, 3)
            pages = keys[:, :, 6 * cache.stored :].unflatten(2, (-1, cache.sizes.page))
            order = [cache._slot(f) for f in range(cache.stored)][cache.sizes.anchors :][-cache.sizes.window :]
            anchors = range(min(cache.sizes.anchors, cache.stored))
            pages = pages[:, :, [*anchors, *order]].flatten(2, 3)
            k, v = torch.cat([pages, special], 2).transpose(1, 2)
            found |= {f"cache.k_block_{index:02d}": k, f"cache.v_block_{index:02d}": v}
        return found


def windowed(
    model: LingbotMap, policy: CachePolicy, images: Tensor, call: Mapping[str, float], case: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Arrays of the windowed mode: each window by itself, and all joined."""
    overlaps = {name: int(call[name]) for name in ("overlap_size", "overlap_keyframes") if name in call}
    found: dict[str, Tensor] = {}
    windows, log = [], []
    every, overlap = spans(len(images), policy.anchors, int(call["window_size"]), policy.interval or 1, **overlaps)
    assert [len(span) for span in every] == case["windows_frames"] and overlap == case["overlap_frames"]
    for number, span in enumerate(every):
        recorder = Recorder(model, policy)
        results = recorder.stream(images[span.start : span.stop])
        parts = recorder.arrays()
        kinds = tuple(0 if r.is_anchor else 1 if r.is_keyframe else 2 for r in results)
        window = Window(parts["out.pose_enc"][0], parts["out.depth"][0, ..., 0], parts["out.depth_conf"][0], kinds)
        windows.append(window)
        log += recorder.log
        found |= {f"win.{number}.{name}": value for name, value in _of(window).items()}
    assert log == [{name: entry[name] for name in log[0]} for entry in case["cache_after_each_call"]]
    joined, scales, transforms = join_all(windows, overlap)
    found |= {f"out.{name}": value for name, value in _of(joined).items()}
    return found | {"out.chunk_scales": scales[None], "out.chunk_transforms": transforms[None]}


def _of(window: Window) -> dict[str, Tensor]:
    kinds = torch.tensor(window.kinds)[None]
    maps = {"depth": window.depth[None, ..., None], "depth_conf": window.conf[None]}
    return {"pose_enc": window.encoding[None], "frame_type": kinds, **maps}


def units(arrays: Mapping[str, Tensor], case: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rotation, motion, decoding and joining by themselves."""
    note = case["arrays"]["rope.angles_cos"]["note"]
    rows, cols, *times = map(int, re.findall(r"(\d+)x(\d+) patches, .*time index (\d+) and (\d+)", note)[0])
    angles = time_angles(TokenLayout(2, 6, rows, cols), times, arrays["rope.in"].shape[-1]).flatten(0, 1)
    cos, sin = angles.cos(), angles.sin()
    found = {"rope.angles_cos": cos, "rope.angles_sin": sin}
    found["rope.out"] = rotate_pairs(arrays["rope.in"], cos.float(), sin.float())
    a, b = arrays["in.pose_a"], arrays["in.pose_b"]
    depth_a, depth_b = (arrays[f"in.depth_{n}"][0, ..., 0].float() for n in "ab")
    size = (depth_a.shape[1], depth_a.shape[2])
    found |= {"out.decoded_matrix": decode_pose(a)[..., :3, :], "out.decoded_intrinsics": decode_intrinsics(a, *size)}
    cameras = [(decode_intrinsics(x, *size)[0], invert_pose(decode_pose(x))[0]) for x in (a, b)]
    prefix = "out.flow_magnitude_stride"
    for stride in (int(name.removeprefix(prefix)) for name in arrays if name.startswith(prefix)):
        moved = [
            mean_motion_px(depth_b[i], *(part[i] for camera in cameras for part in camera), stride=stride)
            for i in range(len(depth_b))
        ]
        found[f"{prefix}{stride}"] = torch.tensor(moved)
    for name, overlap in case["align_overlap"].items():
        flags = arrays[f"align.{name}.is_keyframe"]
        kinds = [tuple(1 if flag else 2 for flag in row.tolist()) for row in flags]
        before, after = (Window(x[0], d, d, k) for x, d, k in zip((a, b), (depth_a, depth_b), kinds, strict=True))
        by: Join = join(before, after, overlap)
        moved_window = warp(after, by)
        parts = {"scale": by.scale, "rotation": by.rotation, "translation": by.translation}
        parts |= {"warped_pose_b": moved_window.encoding, "warped_depth_b": moved_window.depth[..., None]}
        found |= {f"align.{name}.{part}": value.reshape(1, *value.shape) for part, value in parts.items()}
        found[f"align.{name}.scale"] = by.scale.reshape(1)
    return found


def compare(ours: Tensor, golden: Tensor, entry: Mapping[str, Any], name: str) -> tuple[float, float]:
    """(largest difference over its tolerance, relative RMS). The tolerance is ten times the noise, at least LEAST of
    the largest value.

    Depth and confidence are compared by their logarithms, focal lengths by their inverse, integers exactly.
    """
    assert list(ours.shape) == entry["shape"], f"{name}: {list(ours.shape)}, expected {entry['shape']}"
    if entry["stored"] == "flat":
        ours = ours.flatten()[:: entry["stride"]]
    if not golden.is_floating_point():
        error = 0.0 if torch.equal(ours.to(golden.dtype), golden) else math.inf
        return error, error
    ours, golden = ours.double(), golden.double()
    assert torch.equal(ours.isnan(), golden.isnan()), name
    ours, golden = ours.nan_to_num(), golden.nan_to_num()
    noise, rounding = NOISE * (entry.get("reorder_noise_max") or 0.0), torch.zeros(())
    if name.endswith(("depth", "depth_conf")) and name.startswith(("out.", "win.")):
        # The noise is that of the value itself, of which the logarithm has a share.
        noise /= float(golden.abs().max())
        less = 1.0 if name.endswith("conf") else 0.0
        rounding = 2 * torch.finfo(torch.float32).eps * golden / (golden - less).clamp_min(1e-9)
        ours, golden = ((x - less).clamp_min(1e-9).log() for x in (ours, golden))
    elif name.endswith("intrinsics"):
        ours, golden = (1 / x[..., [0, 1], [0, 1]] for x in (ours, golden))
    difference = (ours - golden).abs()
    share = difference / (rounding + max(noise, LEAST * float(golden.abs().max())))
    return float(share.max()), float((difference.square().mean() / golden.square().mean()).sqrt())
