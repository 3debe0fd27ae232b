"""Where scenes with known geometry come from: sets of files on disk, the synthetic world, and how they are sampled."""

from lean3r.registry import Registry

DATASETS = Registry(
    "data set",
    {
        "synthetic": "lean3r.data.synthetic:SyntheticWorld",
        "colmap": "lean3r.data.colmap:ColmapFolder",
        "realestate10k": "lean3r.data.realestate10k:RealEstate10K",
        "scannet": "lean3r.data.scannet:ScanNet",
        "dtu": "lean3r.data.dtu:DTU",
        "blendedmvs": "lean3r.data.blendedmvs:BlendedMVS",
        "vkitti2": "lean3r.data.vkitti2:VirtualKitti2",
        "wildrgbd": "lean3r.data.wildrgbd:WildRgbd",
        "arkitscenes": "lean3r.data.arkitscenes:ArkitScenes",
        "dl3dv": "lean3r.data.dl3dv:Dl3dv",
        "co3dv2": "lean3r.data.co3dv2:Co3dv2",
        "hypersim": "lean3r.data.hypersim:Hypersim",
        "scannetpp": "lean3r.data.scannetpp:ScanNetpp",
        "shards": "lean3r.data.shards:Shards",
    },
)
"""The synthetic world makes batches (`batch`); every other row is a SceneSet (lean3r/data/scenes.py) of a folder."""
