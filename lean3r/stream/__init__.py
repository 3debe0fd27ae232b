"""Streams: a picture at a time in, a pose at a time out, in bounded memory.

for frame in lean3r.stream(model, "walk.mp4", "out"):
    print(frame.index, frame.cam_from_world, sorted(frame.flags))
"""

from lean3r.registry import Registry

__all__ = ["ENGINES"]

ENGINES = Registry(
    "engine",
    {
        "windows": "lean3r.stream.windows:WindowEngine",
        "cache": "lean3r.stream.cached:CachedEngine",
    },
)
"""How a backbone reconstructs a stream: the rows that `Backbone.STREAMS` names."""
