"""Is anything lost, or left behind, when a command is killed at any moment?

    python benchmarks/kills.py [--kills N] [--terms N] [--only NAME ...]

Each command is started repeatedly and ended after a random share of its usual time (half of the moments are in the
last fifth, where results are put in place): N times by SIGKILL, then by SIGTERM. Each time, pictures, data
and notes must be unchanged, and the target must be absent, the complete older result, or a complete new one. Then the
command runs again, undisturbed, and must succeed: the result is complete, for `train` and `distill` with --resume
bit-equal to that of a run that was never stopped, and nothing is left beside the target or in the temporary folder.
Runs are forked from a process that has imported everything, so that the signals arrive during their work; training
curves, which take longer than everything else, are not drawn. Writes benchmarks/results/kills.json after each kill, and
continues from there if it is started again (--anew: from the beginning); exit 1 if something was lost. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, hardware, write_result
from PIL import Image
from safetensors.torch import load_file

from lean3r.cli.main import main as lean3r
from lean3r.data.world.showroom import phone_photos
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.train.checkpoints.state import lock_folder
from lean3r.train.logs import watch
from lean3r.train.recipes import HELD_OUT_SEED

SMALL = ("--resolution", "96", "-q")
FEW = ("--steps", "2", "--batch", "2", "--views", "2", "--processes", "1", "--checkpoint-every", "1")
QUICK = (*FEW, "--validate-every", "0")
NOTES = "a note of the user's"
WARM = (
    *("lean3r.pipeline.load", "lean3r.pipeline.reconstruct", "lean3r.pipeline.save", "lean3r.pipeline.transcode"),
    *("lean3r.models.nano", "lean3r.compress.sparsify", "lean3r.train.loop", "lean3r.train.recipes.distilled"),
    *(
        "lean3r.refine.run",
        "lean3r.export.manifest",
        "lean3r.colmap_library",
        "lean3r.data.sets.shards",
        "lean3r.data.sets.roots",
    ),
    *(
        "tyro",
        "skimage.measure",
        "matplotlib.pyplot",
        "tensorboard",
        "torch.utils.tensorboard",
        "torch._dynamo",
    ),
    *(f"lean3r.export.{name}" for name in ("colmap", "glb", "ply", "npz", "depth", "preview", "cameras", "mesh")),
)


@dataclass(frozen=True)
class Job:
    """A command; `target` is what it makes, `old` whether an older result with a note in it is there before, `resumes`
    whether it goes on with --resume, `weights` where these then are, and `worlds` the seeds of its synthetic worlds."""

    command: tuple[str, ...]
    target: str = "out"
    old: bool = False
    resumes: bool = False
    weights: str = ""
    worlds: tuple[int, ...] = ()


JOBS = {
    "reconstruct": Job(("reconstruct", "photos", "-o", "out", "--refine", "off", *SMALL)),
    "reconstruct --overwrite, refined, with a mesh": Job(
        ("reconstruct", "photos", "-o", "out", "--overwrite", "--refine", "on", "--mesh", *SMALL), old=True
    ),
    "train": Job(
        ("train", "nano", "-o", "out", *QUICK),
        resumes=True,
        weights="out/nano.safetensors",
        worlds=(7, 8, 9, HELD_OUT_SEED),
    ),
    "distill": Job(
        ("distill", "--recipe", "nano-gsa-fp8", "-o", "out", *QUICK),
        resumes=True,
        weights="out/nano-gsa-fp8.safetensors",
    ),
    "compress": Job(("compress", "nano", "out.safetensors", "--plan", "fp8", "-q"), "out.safetensors"),
    "data pack": Job(("data", "pack", "set", "-o", "out", "-q")),
}


def main() -> None:
    """Kill, check, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--terms", type=int, default=5)
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS))
    given = parser.parse_args()
    torch.set_num_threads(1)  # forked processes have no threads of the one before
    for module in WARM:
        import_module(module)
    watch.draw_curves = lambda *_: None  # takes longer than the runs
    if given.anew:
        save({name: None for name in given.only})
    rows = {name: measure(name, given.kills, given.terms) for name in given.only}
    if any(row["problems"] for row in rows.values()):
        raise SystemExit(1)


def save(rows: dict[str, dict | None]) -> dict[str, dict]:
    """Put rows into the result, or take them out (None), and return what it then has."""
    path = RESULTS / "kills.json"
    with lock_folder(Path(tempfile.gettempdir(), "kills-lock")):  # other commands may be measured at the same time
        kept = (json.loads(path.read_text())["rows"] if path.exists() else {}) | rows
        kept = {name: kept[name] for name in JOBS if kept.get(name)}
        write_result("kills", {"hardware": hardware(), "rows": kept})
    return kept


def measure(name: str, kills: int, terms: int) -> dict:
    """One command, ended so many times by each signal; kills already in the result count."""
    job, row = JOBS[name], save({}).get(name, {"problems": []})
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        work = Path(folder)
        prepare(work, job)
        for seed in job.worlds:
            SyntheticWorld(16, 16, 2, seed=seed).batch(0, 1)  # so that its textures are made once
        usual, code = timed(work, job)
        assert code == 0, (work / "log.txt").read_text()
        reference = load_file(work / job.weights) if job.weights else {}
        for number, count in ((signal.SIGKILL, kills), (signal.SIGTERM, terms)):
            seen = Counter(row.get(number.name, {}))
            while seen["ended"] < count:
                rng = random.Random(f"{name}/{number}/{seen['ended']}/{seen['had finished']}")
                share = rng.uniform(0.8, 1.05) if rng.random() < 0.5 else rng.random()
                taken, problems = once(work, job, number, share * usual, reference, seen)
                usual = usual if job.resumes else (3 * usual + taken) / 4  # how busy the machine is changes
                problems = [f"{number.name} {seen['ended']}: {problem}" for problem in problems]
                row |= {"seconds": round(usual, 2), number.name: dict(seen)}
                row["problems"] += problems
                save({name: row})
        print(name, json.dumps(row), flush=True)
    return row


def once(
    work: Path, job: Job, number: int, after_s: float, reference: dict[str, torch.Tensor], seen: Counter[str]
) -> tuple[float, list[str]]:
    """One run that is ended, and the one after it: seconds of an undisturbed one, and the problems."""
    fresh(work, job)
    before = {**contents(work / "photos"), **contents(work / "set")}
    began = time.perf_counter()
    code = run(work, job, number, after_s)
    if code == 0:
        seen["had finished"] += 1
        return time.perf_counter() - began, []
    seen["ended"] += 1
    # By SIGTERM -15 where it came before the command had begun, which a shell shows as 143, too.
    said = [] if code == -number or (number, code) == (signal.SIGTERM, 143) else [f"exit code {code}"]
    said += lost(work, job, before)
    state = state_of(work, job)
    seen[state] += 1
    said += [f"at the target: {state}"] if state.startswith("half") else []
    seen["left for the next run"] += bool(leftovers(work, job))
    if number == signal.SIGTERM:
        said += [f"SIGTERM left {name}" for name in leftovers(work, job)]
    if (work / job.target).exists() and not job.old and not job.resumes:
        (work / job.target).rename(work / "before")
    taken, code = timed(work, job, resume=job.resumes)
    if code:
        return taken, [*said, f"the next run ended with {code}: {last_line(work)}"]
    said += lost(work, job, before)
    said += [] if state_of(work, job) == "new" else [f"after the next run: {state_of(work, job)}"]
    said += [f"left over: {name}" for name in leftovers(work, job)]
    if reference:
        again = load_file(work / job.weights)
        equal = again.keys() == reference.keys() and all(same(again[k], v) for k, v in reference.items())
        seen["resumed bit-equal"] += equal
        said += [] if equal else ["the resumed run differs"]
    return taken, said


def prepare(work: Path, job: Job) -> None:
    """The files of the user: pictures, a data set, notes."""
    (work / "tmp").mkdir()
    truth = phone_photos(work / "photos", 4, height=240, width=320)
    (work / "photos" / "truth.npz").unlink()
    for scene in range(3):  # as a nerfstudio set
        folder = work / "set" / f"scene_{scene}"
        (folder / "images").mkdir(parents=True)
        k, frames = truth.intrinsics[0, 0], []
        for view, pose in enumerate(truth.cam_from_world[0].double().numpy()):
            name = f"images/{view}.jpg"
            Image.fromarray((truth.images[0, view] * 255).byte().permute(1, 2, 0).numpy()).save(folder / name)
            frames.append(
                {"file_path": name, "transform_matrix": (np.linalg.inv(pose) @ np.diag([1, -1, -1, 1])).tolist()}
            )
        camera = {"fl_x": float(k[0, 0]), "fl_y": float(k[1, 1]), "cx": float(k[0, 2]), "cy": float(k[1, 2])}
        (folder / "transforms.json").write_text(json.dumps({"w": 320, "h": 240, **camera, "frames": frames}))
    fresh(work, job, first=True)


def fresh(work: Path, job: Job, first: bool = False) -> None:
    """The target as it is before a run: nothing, or an older result with a note in it."""
    (work / "notes.txt").write_text(NOTES)
    shutil.rmtree(work / "before", ignore_errors=True)
    (work / "before").unlink(missing_ok=True) if (work / "before").is_file() else None
    if not job.old:
        target = work / job.target
        target.unlink(missing_ok=True) if target.is_file() else shutil.rmtree(target, ignore_errors=True)
    elif first:
        assert run(work, job) == 0, (work / "log.txt").read_text()
        (work / "out" / "notes.txt").write_text(NOTES)


def run(work: Path, job: Job, number: int = 0, after_s: float = 0.0, resume: bool = False) -> int:
    """The exit code of the command, ended by a signal after so many seconds if there is one."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            os.chdir(work)
            log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ["TMPDIR"] = tempfile.tempdir = str(work / "tmp")
            code = lean3r([*job.command, *(["--resume"] if resume else [])])
            sys.stderr.flush()
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if number:
        time.sleep(after_s)
        os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def timed(work: Path, job: Job, resume: bool = False) -> tuple[float, int]:
    """Seconds of an undisturbed run, and its exit code."""
    begun = time.perf_counter()
    code = run(work, job, resume=resume)
    return time.perf_counter() - begun, code


def lost(work: Path, job: Job, before: dict[str, str]) -> list[str]:
    """Files of the user that were lost or changed."""
    notes = [work / "notes.txt", *([work / "out" / "notes.txt"] if job.old else [])]
    gone = [f"lost {path.relative_to(work)}" for path in notes if not path.exists() or path.read_text() != NOTES]
    now = {**contents(work / "photos"), **contents(work / "set")}
    return gone + [f"changed: {name}" for name in before.keys() | now.keys() if before.get(name) != now.get(name)]


def state_of(work: Path, job: Job) -> str:
    """What is at the target: "nothing", "new" (a whole result), or "half ..."; a run's folder while it trains is "a run
    to resume"."""
    target = work / job.target
    if not target.exists():
        return "nothing"
    try:
        if job.resumes:
            if not (work / job.weights).exists():
                return "a run to resume"
            load_file(work / job.weights)
        elif target.is_file():
            load_file(target)
        elif (target / "index.json").exists():
            index = json.loads((target / "index.json").read_text())
            missing = [s for s in index["shards"] if not (target / (s if isinstance(s, str) else s["file"])).exists()]
            return f"half: no {missing}" if missing else "new"
        else:
            listed = set(json.loads((target / "manifest.json").read_text())["files"])
            there = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()} - {"notes.txt"}
            np.load(target / "predictions.npz")["depth"]
            return "new" if listed == there else f"half: {sorted(listed ^ there)}"
    except Exception as error:
        return f"half: {type(error).__name__} {error}"
    return "new"


def leftovers(work: Path, job: Job) -> list[str]:
    """Names beside the target, in it, and in the temporary folder that should not be there."""
    known = {"photos", "set", "tmp", "notes.txt", "log.txt", "before", job.target}
    names = [p.name for p in work.iterdir() if p.name not in known]
    names += [p.name for p in (work / "tmp").iterdir() if p.name.startswith(("lean3r", ".lean3r"))]
    if (work / job.target).is_dir():
        inside = (work / job.target).rglob(".*")
        names += [p.relative_to(work).as_posix() for p in inside if p.name != ".lock"]
    return names


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files in a folder by their names."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same bytes."""
    one, other = (x.contiguous().reshape(-1).view(torch.uint8) for x in (one, other))
    return torch.equal(one, other)


def last_line(work: Path) -> str:
    """The last line that the command printed."""
    return ((work / "log.txt").read_text().strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    main()
