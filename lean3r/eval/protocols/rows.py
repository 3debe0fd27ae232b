"""The benchmarks, one constant a protocol; `lean3r.eval.protocols.BENCHMARKS` names them.

Where references disagree, a figure has a suffix for each of them (`auc30`, `auc30_pi3`, `auc30_da3`), and `notes` say
what is taken.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from lean3r.data.sampling.lite3r import HELD_OUT, Pairs
from lean3r.data.sets.scenes import SceneSet
from lean3r.eval.protocols.base import Benchmark
from lean3r.eval.protocols.cameras import focal_length, relative_poses, trajectory, two_views
from lean3r.eval.protocols.geometry import clouds, lite3r, one_scale, surfaces, video_depth
from lean3r.eval.protocols.items import (
    Item,
    NoiseItem,
    WorldItem,
    check_any,
    pair_item,
    random_views,
    spread_views,
    strided_views,
)
from lean3r.eval.protocols.pooling import pooling

SIDE = 518
WORLD_SIZES = ((240, 240), (208, 272), (272, 208), (192, 288))  # height, width: in turn
WORLD_SCENES = 40
ALL = 100_000
LATENCY_RUNS = 3
LISTS = (
    "The papers' own lists of frames differ: these are drawn by seed 42 and the scene's name, in random order; "
    "--views-from takes a list. auc and rra, rta are VGGT's; _pi3 and _da3 are those of Pi3 and Depth Anything 3."
)


def category(scene: str) -> str:
    """The part of a scene's name before the first slash: CO3D's category, or a place of 7-Scenes."""
    return scene.partition("/")[0]


def room(item: str) -> str:
    """The room of ScanNet's scene0707_00/15-585, scene0707: it may have several scans, and each several pairs."""
    return item.partition("/")[0].partition("_")[0]


RE10K = Benchmark(
    title="RealEstate10K, relative pose of 10 views",
    data="realestate10k",
    papers="Speed3R T2, T5; Pi3; VGGT",
    measures=(relative_poses(),),
    pool=pooling("pairs"),
    count=10,
    views=random_views,
    notes=LISTS,
    resolution=SIDE,
)
CO3DV2 = replace(
    RE10K,
    title="CO3Dv2, relative pose of 10 views",
    data="co3dv2",
    papers="Speed3R T2; VGGT (mean over categories, as here); Pi3 (all pairs)",
    pool=pooling("groups"),
    group_of=category,
)
SCANNET1500 = Benchmark(
    title="ScanNet-1500, relative pose of pairs",
    data="scannet1500",
    papers="Speed3R T1; VGGT; SuperGlue",
    measures=(two_views,),
    pool=pooling("pairs"),
    count=2,
    views=spread_views,
    scene_of=room,
    notes="auc_exact are areas by trapezoids, as in SuperGlue; a failed pose counts 180 degrees.",
    resolution=SIDE,
)
TANKS = Benchmark(
    title="Tanks and Temples, relative pose of up to 300 views",
    data="tanks",
    papers="Speed3R T3, T5, T7",
    measures=(relative_poses(),),
    pool=pooling("scenes"),
    count=300,
    views=spread_views,
    notes="Scenes with more views are thinned at equal steps; Speed3R says 'about 300' and no more.",
    resolution=SIDE,
)
DTU64_POSE = replace(
    TANKS, title="DTU-64, relative pose", data="dtu64", papers="Depth Anything 3; SAF3R", count=64, notes=""
)
ETH3D_POSE = replace(
    TANKS,
    title="ETH3D, relative pose and cloud",
    data="eth3d",
    papers="Depth Anything 3; SAF3R",
    measures=(relative_poses(), clouds(0.25, 0.0390625)),
    count=100,
    notes="The cloud is placed by the cameras (Umeyama); the papers fuse it by TSDF after RANSAC.",
)

SINTEL_SHOTS = (
    *("alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2", "market_5", "market_6"),
    *("shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3"),
)
SINTEL_TRAJECTORY = Benchmark(
    title="Sintel, trajectory",
    data="sintel",
    papers="MonST3R; CUT3R; Pi3",
    measures=(trajectory,),
    pool=pooling(),
    count=ALL,
    views=strided_views,
    scenes=tuple(f"final/{shot}" for shot in SINTEL_SHOTS),
    notes="The 14 sequences of MonST3R. ate_origin is FastVGGT's alignment, which also fixes the first pose.",
    resolution=SIDE,
)
TUM_TRAJECTORY = replace(
    SINTEL_TRAJECTORY,
    title="TUM-dynamics, trajectory of 90 frames",
    data="tum",
    count=90,
    views=partial(strided_views, stride=3),
    scenes=("freiburg3_sitting_*", "freiburg3_walking_*"),
    notes="Every third frame, at most 90, as in MonST3R.",
)
SCANNET_TRAJECTORY = replace(
    TUM_TRAJECTORY, title="ScanNet, trajectory of 90 frames", data="scannet", scenes=None, scene_of=room
)
BONN_TRAJECTORY = replace(
    SINTEL_TRAJECTORY,
    title="Bonn, trajectory of 110 frames",
    data="bonn",
    count=110,
    views=partial(strided_views, first=30),
    scenes=None,
    notes="Frames 30 to 139, as MonST3R takes for depth.",
)
KITTI_TRAJECTORY = replace(
    SINTEL_TRAJECTORY,
    title="KITTI odometry, trajectory",
    data="kitti",
    papers="VGGT-Long; Depth Anything 3 streaming",
    scenes=None,
    notes="All frames; kitti-trajectory@100 takes the first 100.",
)

SINTEL_DEPTH = Benchmark(
    title="Sintel, video depth",
    data="sintel",
    papers="MonST3R; CUT3R; Pi3",
    measures=(video_depth("sintel"),),
    pool=pooling(weighted=True),
    count=ALL,
    views=strided_views,
    scenes=("final/*",),
    notes="No suffix: one scale; _shift: scale and shift by Adam as published; _metric: as predicted.",
    resolution=SIDE,
)
BONN_DEPTH = replace(
    SINTEL_DEPTH,
    title="Bonn, video depth of 110 frames",
    data="bonn",
    measures=(video_depth("bonn"),),
    count=110,
    views=partial(strided_views, first=30),
    scenes=tuple(f"rgbd_bonn_{name}" for name in ("balloon2", "crowd2", "crowd3", "person_tracking2", "synchronous")),
)
KITTI_DEPTH = replace(
    SINTEL_DEPTH,
    title="KITTI, video depth of 110 frames",
    data="kitti_depth",
    measures=(video_depth("kitti"),),
    count=110,
    scenes=None,
)

DTU_POINTS = Benchmark(
    title="DTU, point maps of every fifth view",
    data="dtu",
    papers="Speed3R T4; Pi3",
    measures=(surfaces(0.1),),  # 100 mm: the set is read in metres
    pool=pooling(),
    count=ALL,
    views=partial(strided_views, stride=5),
    notes="In metres; the papers print millimetres. Normals by 30 neighbours, as Open3D's default.",
    resolution=SIDE,
)
ETH3D_POINTS = replace(DTU_POINTS, title="ETH3D, point maps of every fifth view", data="eth3d", notes="In metres.")
SEVENSCENES_TESTS = {
    "chess": (3, 5),
    "fire": (3, 4),
    "heads": (1,),
    "office": (2, 6, 7, 9),
    "pumpkin": (1, 7),
    "redkitchen": (3, 4, 6, 12, 14),
    "stairs": (1, 4),
}
SEVENSCENES = replace(
    ETH3D_POINTS,
    title="7-Scenes, point maps, sparse",
    data="sevenscenes",
    papers="Pi3; CUT3R; Spann3R; GoToHunt",
    views=partial(strided_views, stride=200),
    scenes=tuple(f"{room}/seq-{number:02}" for room, numbers in SEVENSCENES_TESTS.items() for number in numbers),
    scene_of=category,  # chess of chess/seq-03
    notes="In metres. The sequences of the set's TestSplit.txt.",
)
SEVENSCENES_DENSE = replace(SEVENSCENES, title="7-Scenes, point maps, dense", views=partial(strided_views, stride=40))
NRGBD = replace(
    SEVENSCENES,
    title="NRGBD, point maps, sparse",
    data="nrgbd",
    views=partial(strided_views, stride=500),
    scenes=None,
    scene_of=None,
    notes="In metres.",
)
NRGBD_DENSE = replace(NRGBD, title="NRGBD, point maps, dense", views=partial(strided_views, stride=100))


def _pairs(scenes: SceneSet | None, views: int, released: bool) -> list[Item]:
    assert scenes is not None
    pairs = Pairs([scenes], part="all" if released else "test", order=None, as_released=released)
    drawn = [pairs.draw(number, views) for number in range(min(HELD_OUT, len(pairs)))]
    check_any([(pairs.places[place][1], chosen) for place, chosen in drawn], scenes, views)
    return [pair_item(pairs, place, chosen, SIDE) for place, chosen in drawn]


LITE3R_BLENDEDMVS = Benchmark(
    title="Lite3R's evaluation on BlendedMVS, scenes that its recipes leave out",
    data="blendedmvs",
    papers="Lite3R T1, T3, T4",
    measures=(lite3r("vggt"),),
    pool=pooling(),
    count=2,
    items=partial(_pairs, released=False),
    notes="Two views, squares of 518 px, at most 32 scenes. Points are placed by predicted poses and intrinsics.",
    resolution=SIDE,
)
LITE3R_BLENDEDMVS_DA3 = replace(
    LITE3R_BLENDEDMVS,
    title="Lite3R's evaluation of Depth Anything 3 on BlendedMVS, with its poses the right way round",
    measures=(lite3r("da3"),),
    notes="As lite3r-blendedmvs, but points are placed by true intrinsics.",
)
LITE3R_BLENDEDMVS_RELEASED = replace(
    LITE3R_BLENDEDMVS,
    title="Lite3R's evaluation on BlendedMVS as released",
    items=partial(_pairs, released=True),
    notes="As released: the test scenes are training scenes, and the farthest depth is misread.",
)
LITE3R_BLENDEDMVS_DA3_RELEASED = replace(
    LITE3R_BLENDEDMVS_RELEASED,
    title="Lite3R's evaluation of Depth Anything 3 on BlendedMVS as released",
    measures=(lite3r("da3-as-released"),),
    notes="As released: poses are taken for their inverses, and the test scenes are training scenes.",
)
LITE3R_DTU64 = replace(
    LITE3R_BLENDEDMVS,
    title="Lite3R's evaluation on DTU64, scenes that its recipes leave out",
    data="dtu64",
    papers="Lite3R T2",
    notes="Two views, squares of 518 px; poses only, as the set has no depth.",
)
LITE3R_DTU64_RELEASED = replace(
    LITE3R_DTU64, title="Lite3R's evaluation on DTU64 as released", items=partial(_pairs, released=True)
)

OWN = (relative_poses(small_baselines=True), one_scale, focal_length)


def _world(scenes: SceneSet | None, views: int) -> list[Item]:
    names = tuple(f"view_{number:03d}" for number in range(views))
    return [
        WorldItem(id=f"{index:04d}", names=names, index=index, height=height, width=width)
        for index in range(WORLD_SCENES)
        for height, width in [WORLD_SIZES[index % len(WORLD_SIZES)]]
    ]


SYNTHETIC = Benchmark(
    title="Synthetic world, scenes that no recipe trains on",
    data="synthetic",
    papers="lean3r",
    measures=OWN,
    pool=pooling("pairs"),
    count=8,
    items=_world,
    notes="Pairs nearer than 5 % of the mean depth are scored by rotation only; allpairs includes their directions.",
)
COLMAP = Benchmark(
    title="A COLMAP folder",
    data="colmap",
    papers="any photos with a COLMAP model",
    measures=(relative_poses(), one_scale, focal_length),
    pool=pooling("scenes"),
    count=ALL,
    views=spread_views,
    notes="Depth is that of COLMAP's points. colmap@8 takes 8 views at equal steps.",
)


def _noise(scenes: SceneSet | None, views: int) -> list[Item]:
    names = tuple(f"view_{number:04d}" for number in range(views))
    return [NoiseItem(id=f"run-{n}", names=names, seed=n, height=336, width=504) for n in range(LATENCY_RUNS)]


LATENCY = Benchmark(
    title="Seconds of the network, pictures of 336 x 504 px",
    data="synthetic",
    papers="Speed3R, Figure 4",
    measures=(),
    pool=pooling(),
    count=32,
    items=_noise,
    notes="Smooth noise; the median of 3 runs counts. `lean3r bench` compares programs in one run.",
    resolution=504,
)
