"""Reconstruct a video: frames are evenly spaced and named after their number. The command line does the same:
`lean3r reconstruct clip.mp4 --frames 6 -o out`.
"""

import argparse
from pathlib import Path

import av

import lean3r
from lean3r.data.world.synthetic import SyntheticWorld

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("examples_out/04"))
parser.add_argument("--weights", type=Path, help="weights other than those that come with nano")


def film(path: Path, frames: int = 12, height: int = 144, width: int = 192) -> None:
    """Write a short video of a synthetic room."""
    world = SyntheticWorld(height, width, frames, room=1, arena=0, facade=0, terrain=0)
    pictures = (world.batch(4, 1).images[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as file:
        stream = file.add_stream("mpeg4", rate=6)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def main() -> None:
    """Film a room, reconstruct six frames."""
    options = parser.parse_args()
    clip = options.out / "clip.mp4"
    film(clip)
    model = lean3r.load("nano", weights=options.weights)
    scene = lean3r.reconstruct(model, clip, frames=lean3r.FrameChoice(frames=6), resolution=128)
    room = lean3r.export(scene, options.out / "room", ["cameras", "glb", "preview"], overwrite=True)
    print("frames:", ", ".join(scene.names))
    print(f"{len(scene.points.xyz):,} points; look at {room / 'preview.jpg'}")


if __name__ == "__main__":
    main()
