"""Scenes with known geometry: data sets on disk, the synthetic world, and the sampling of batches."""

from lean3r.registry import Registry

DATASETS = Registry(
    "data set",
    {
        "synthetic": "lean3r.data.world.synthetic:SyntheticWorld",
        "colmap": "lean3r.data.sets.colmap:ColmapFolder",
        "realestate10k": "lean3r.data.sets.realestate10k:RealEstate10K",
        "scannet1500": "lean3r.data.sets.scannet1500:ScanNet1500",  # first: ScanNet's folders are in it
        "scannet": "lean3r.data.sets.scannet:ScanNet",
        "dtu": "lean3r.data.sets.dtu:DTU",
        "dtu64": "lean3r.data.sets.dtu64:Dtu64",
        "blendedmvs": "lean3r.data.sets.blendedmvs:BlendedMVS",
        "vkitti2": "lean3r.data.sets.vkitti2:VirtualKitti2",
        "wildrgbd": "lean3r.data.sets.wildrgbd:WildRgbd",
        "arkitscenes": "lean3r.data.sets.arkitscenes:ArkitScenes",
        "dl3dv": "lean3r.data.sets.dl3dv:Dl3dv",
        "co3dv2": "lean3r.data.sets.co3dv2:Co3dv2",
        "hypersim": "lean3r.data.sets.hypersim:Hypersim",
        "scannetpp": "lean3r.data.sets.scannetpp:ScanNetpp",
        "eth3d": "lean3r.data.sets.eth3d:Eth3d",
        "tanks": "lean3r.data.sets.tanks:Tanks",
        "sevenscenes": "lean3r.data.sets.sevenscenes:SevenScenes",
        "nrgbd": "lean3r.data.sets.nrgbd:Nrgbd",
        "tum": "lean3r.data.sets.tum:Tum",
        "bonn": "lean3r.data.sets.bonn:Bonn",
        "sintel": "lean3r.data.sets.sintel:Sintel",
        "kitti": "lean3r.data.sets.kitti:Kitti",
        "kitti_depth": "lean3r.data.sets.kitti_depth:KittiDepth",
        "shards": "lean3r.data.sets.shards:Shards",
    },
)
"""The synthetic world makes batches (`batch`); every other entry is a SceneSet (data/sets/scenes.py) of a folder."""
