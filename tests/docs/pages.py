"""The pages and their blocks; what of them runs elsewhere, each with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))]
KINDS = {"bash": "shell", "python": "python", "json": "json", "text": "text"}

NEW_FILE = re.compile(r"here `([\w/]+\.py)`")
NEW_LINE = re.compile(r"in `([A-Z_]+)`,\s+`([\w/]+\.py)`[^`]*:\s+`([^`]+)`")


@dataclass(frozen=True)
class Step:
    """One thing that the reader of a page does: `kind` is shell (one command), python, json, text, file (write `text`
    to `path`) or row (add the line `text` to `table` in `path`)."""

    page: str
    line: int
    kind: str
    text: str
    path: str = ""
    table: str = ""

    @property
    def plain(self) -> str:
        """A command without its comment, the first line of anything else."""
        if self.kind != "shell":
            return self.text.split("\n")[0]
        return re.sub(r"\s+", " ", re.sub(r"\s# .*", "", self.text)).strip()


def steps_of(page: str) -> list[Step]:
    """Everything to be done on a page, from top to bottom. Indented blocks are shell."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    steps, prose, i = [], "", 0
    while i < len(lines):
        start, kind = i, None
        if lines[i].startswith("```"):
            kind = KINDS[lines[i][3:]]
            i = lines.index("```", i + 1)
            body = lines[start + 1 : i]
        elif lines[i].startswith("    ") and not lines[i - 1].strip():
            kind = "shell"
            while i + 1 < len(lines) and (lines[i + 1].startswith("    ") or not lines[i + 1]):
                i += 1
            body = [line[4:] for line in lines[start : i + 1]]
        if kind is None:
            prose += lines[i] + "\n"
        else:
            steps += [Step(page, start, "row", m[3], m[2], m[1]) for m in NEW_LINE.finditer(prose)]
            named = NEW_FILE.search(prose.strip().split("\n\n")[-1])
            prose = ""
            if kind == "shell":
                joined = "\n".join(body).replace("\\\n", " ").split("\n")
                steps += [Step(page, start + 1, kind, command) for command in joined if command.strip()]
            elif kind == "python" and named:
                steps.append(Step(page, start + 1, "file", "\n".join(body) + "\n", named[1]))
            else:
                steps.append(Step(page, start + 1, kind, "\n".join(body)))
        i += 1
    return steps + [Step(page, i, "row", m[3], m[2], m[1]) for m in NEW_LINE.finditer(prose)]


DOWNLOADS = "downloads packages or programs"
PROGRAM = "needs a program of others"
GPUS = "needs GPUs and data sets"
SETS = "needs a data set; tests/eval runs it on tiny copies"
FIGURES = "makes the figures of the page: minutes to hours"
SUITE = "is the suite that this test belongs to"
REPEATED = "runs in another page"
GIGABYTES = "needs gigabytes of memory"
WHOLE = "needs the whole folder of golden numbers"
TORCHRUN = "tests/cli/test_together_command.py runs it with nano"
CLUSTER = "needs a cluster of that size; tests/pipeline/test_cluster.py runs it on a small one"
ENGINE = "needs a container engine"
SYSTEM = "changes the system"
GRAPHS = "takes minutes to record; tests/deploy/test_export_model.py runs it on a small nano"
PEERS = "needs the official programs, which the lines above download"

ELSEWHERE: dict[str, dict[str, str]] = {
    "README.md": {
        "python3 -m venv .venv && . .venv/bin/activate": DOWNLOADS,
        "git clone <this repository> lean3r && cd lean3r": DOWNLOADS,
        "lean3r view out": "runs until Ctrl-C",
        "lean3r batch scenes/ -o results": REPEATED,
        "lean3r serve": "runs until Ctrl-C",
        "lean3r export-model nano nano.onnx": GRAPHS,
        "make test": SUITE,
        "pip install 'lean3r[mesh]'": DOWNLOADS,
        "pip install torch --index-url https://download.pytorch.org/whl/cpu": DOWNLOADS,
        "pip install .": DOWNLOADS,
    },
    "docs/attention.md": {
        "python benchmarks/costs.py layer": FIGURES,
        "python benchmarks/costs.py network": FIGURES,
        "python benchmarks/costs.py network --models pi3 --views 32,64 --resolution 168x224 --resume": FIGURES,
    },
    "docs/how-to/adapters.md": {
        "pip install 'lean3r[train]'": DOWNLOADS,
        "python benchmarks/adapters.py": FIGURES,
    },
    "docs/how-to/benchmark.md": {
        "lean3r bench --models nano,vggt --plans dense,gsa,gsa-fp8 --views 2..64 --against official "
        "--peer vggt=./vggt -o cost.json": GIGABYTES,
        "lean3r bench --models nano --plans dense,gsa --views 8,32 --whole photos/ --refine off -o whole.json": FIGURES,
        "lean3r bench --layer 16x64,4x32 --plans dense,gsa,gsa:special=pooled --views 2..256 -o layer.json": FIGURES,
    },
    "docs/how-to/batch.md": {
        "pip install 'lean3r[cluster]'": DOWNLOADS,
        "lean3r batch scenes/ -o results --engine ray --cpus 4": CLUSTER,
    },
    "docs/how-to/deploy.md": {
        "docker build -f deploy/Dockerfile --target cpu -t lean3r:cpu .": ENGINE,
        "docker build -f deploy/Dockerfile --target cuda -t lean3r:cuda .": ENGINE,
        'docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" lean3r:cpu reconstruct photos/ -o out': ENGINE,
        '(umask 077; python3 -c "import secrets; print(secrets.token_urlsafe(32))" > deploy/token.txt)': ENGINE,
        "sudo chown 10001 deploy/token.txt": ENGINE,
        "docker compose -f deploy/compose.yaml --profile cpu up -d": ENGINE,
        "docker compose -f deploy/compose.yaml --profile cuda up -d": ENGINE,
        "sudo python3 -m venv /opt/lean3r && sudo /opt/lean3r/bin/pip install torch==2.13.0 '.[serve]'": DOWNLOADS,
        "sudo install -D -m 600 deploy/token.txt /etc/lean3r/token": SYSTEM,
        "sudo install -m 644 deploy/lean3r.service /etc/systemd/system/": SYSTEM,
        "sudo systemctl enable --now lean3r": SYSTEM,
        'sbatch --array=0-7 deploy/batch.slurm scenes/ results --options="--refine off"': "needs Slurm",
    },
    "docs/how-to/deploy-models.md": {
        "lean3r export-model nano nano.onnx": GRAPHS,
        "lean3r export-model nano nano.pt2": GRAPHS,
        "lean3r export-model nano nano.aoti.pt2": GRAPHS,
        "lean3r export-model nano-gsa-fp8 many.onnx --many-views": GRAPHS,
        "import json": GRAPHS,
        "import torch": GRAPHS,
    },
    "docs/how-to/distil.md": {
        "torchrun --nproc-per-node 8 -m lean3r distill --recipe speed3r-pi3 --device cuda -o runs/speed3r-pi3 "
        "--data co3dv2=/data/co3dv2 --data scannetpp=/data/scannetpp --data arkitscenes=/data/arkitscenes "
        "--data dl3dv=/data/dl3dv --data hypersim=/data/hypersim --data wildrgbd=/data/wildrgbd "
        "--data vkitti2=/data/vkitti2": GPUS,
        "torchrun --nproc-per-node 8 -m lean3r distill --recipe lite3r-vggt --device cuda -o runs/lite3r-vggt "
        "--accumulate 1 --data blendedmvs=/data/BlendedMVS --data dtu=/data/dtu": GPUS,
        "lean3r distill --recipe speed3r-pi3 --student hf:weining17/Speed3R_Pi3 -o runs/continued "
        "--data dl3dv=/data/dl3dv": GPUS,
        "lean3r distill --recipe speed3r-pi3 --device cuda -o runs/cached --data dl3dv=/data/dl3dv "
        "--repeat 800 --teacher-cache /fast/teacher --teacher-cache-gb 2000": GPUS,
        "lean3r distill --teacher speed3r-pi3 --student-plan fp8 -o runs/rounded --data dl3dv=/data/dl3dv": GPUS,
        "from lean3r.data.sampling.lite3r import Pairs": GPUS,
    },
    "docs/how-to/evaluate.md": {
        "lean3r evaluate eth3d --model vggt --root ETH3D/ -o vggt-eth3d/": SETS,
        "lean3r evaluate re10k co3dv2 --model pi3 --plan gsa --root realestate10k=RE10K/ --root co3dv2=CO3D/ "
        "-o pi3-gsa/": SETS,
        "lean3r evaluate colmap@8 --root scenes/ -o nano-8/": SETS,
        "lean3r evaluate lite3r-table1 --model vggt --plan sla-fp8 --root BlendedMVS/ -o run-t1/": SETS,
        "lean3r evaluate speed3r-table2 --model pi3 --plan gsa --root realestate10k=RE10K/ --root co3dv2=CO3D/ "
        "-o run-t2/": SETS,
    },
    "docs/how-to/into-colmap-and-splatting.md": {
        "colmap gui --import_path out/sparse/0 --database_path out/database.db --image_path photos": PROGRAM,
        "python simple_trainer.py default --data_dir out --result_dir results": PROGRAM,
        "python train.py -s out": PROGRAM,
        "ns-train splatfacto --data out": PROGRAM,
    },
    "docs/how-to/many-cards.md": {
        "torchrun --nproc-per-node 2 -m lean3r reconstruct photos/ -o out --model vggt --parallel": TORCHRUN,
        "torchrun --nnodes 2 --node-rank 0 --master-addr HOST --nproc-per-node 4 -m lean3r reconstruct photos/ -o out "
        "--model vggt --parallel": GPUS,
        "import lean3r": TORCHRUN,
    },
    "docs/how-to/mesh.md": {"pip install 'lean3r[mesh]'": DOWNLOADS},
    "docs/how-to/own-weights-and-training.md": {
        "pip install '.[train]'": DOWNLOADS,
        "torchrun --nproc-per-node 8 -m lean3r distill --recipe speed3r-pi3 --device cuda ...": GPUS,
    },
    "docs/how-to/parity.md": {
        "python3 -m venv peers": DOWNLOADS,
        "peers/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu": DOWNLOADS,
        "peers/bin/pip install -e '.[parity]' pytest": DOWNLOADS,
        "peers/bin/pip install --no-deps depth-anything-3==0.1.1": DOWNLOADS,
        "peers/bin/python -m pytest -m parity tests/parity -rs": PEERS,
        "git clone https://github.com/facebookresearch/vggt": DOWNLOADS,
        "git clone https://github.com/yyfz/Pi3": DOWNLOADS,
        'peers/bin/python -m pytest -m parity tests/parity -k "vggt or pi3" -rs '
        "--peer vggt=./vggt --peer pi3=./Pi3": PEERS,
        "peers/bin/python benchmarks/costs.py peers --peer vggt=./vggt --peer pi3=./Pi3 -o peers.json": PEERS,
    },
    "docs/how-to/survey.md": {
        "pip install 'lean3r[geo]'": DOWNLOADS,
    },
    "docs/how-to/third-party.md": {
        "pip install --no-deps depth-anything-3": DOWNLOADS,
        "pip install addict einops omegaconf": DOWNLOADS,
    }
    | ({} if find_spec("depth_anything_3") else {"from depth_anything_3.cfg import create_object, load_config": PEERS}),
    "docs/models.md": {
        "python benchmarks/costs.py peers -o peers.json": FIGURES,
        "python benchmarks/costs.py peers -o amx.json --models vggt,pi3 --views 8 --repeats 2 --threads 1 "
        "--peer vggt=CLONE --peer pi3=CLONE": PEERS,
    },
    "docs/nano.md": {
        "python benchmarks/looped.py": FIGURES,
        "python benchmarks/nano_stream.py --train --minutes 45": FIGURES,
        "python benchmarks/nano_stream.py --weights nano-stream.safetensors": FIGURES,
        "python benchmarks/accuracy.py": FIGURES,
    },
    "docs/parity.md": {
        "python -m pytest tests/golden": SUITE,
        "python tests/golden/pack.py --golden golden -o golden.tar.xz": WHOLE,
        "python benchmarks/parity_table.py --golden golden": GIGABYTES,
        "python benchmarks/parity_parts.py --golden golden": WHOLE,
        "python -m pytest -m slow tests/golden --golden golden": GIGABYTES,
    },
    "docs/how-to/serve.md": {
        "pip install 'lean3r[serve]'": DOWNLOADS,
        "lean3r serve": "runs until Ctrl-C",
        "lean3r serve --token auto --names scan.example": "runs until Ctrl-C",
        "lean3r serve --engine ray --workers 4 --cpus 4": CLUSTER,
    },
    "docs/how-to/trust.md": {"python benchmarks/certainty.py": FIGURES},
    "docs/how-to/view.md": {
        "lean3r view out": "runs until Ctrl-C",
        "lean3r reconstruct photos/ -o out --overwrite --view": "runs until Ctrl-C",
    },
    "docs/how-to/stream.md": {
        "lean3r stream camera:0 -o walk": "there is no camera",
    },
    "docs/how-to/web-page.md": {
        "lean3r export-model nano nano.onnx": "tests/deploy writes it; minutes",
        "lean3r export-page nano.onnx -o site": DOWNLOADS,
        "python -m http.server -d site 8000": "runs until Ctrl-C",
        "lean3r export-page nano.onnx -o site --overwrite --runtime node_modules/onnxruntime-web/dist": DOWNLOADS,
    },
    "docs/quickstart.md": {
        "make demo": REPEATED,
        "python3 -m venv .venv && . .venv/bin/activate": DOWNLOADS,
        "pip install torch --index-url https://download.pytorch.org/whl/cpu": DOWNLOADS,
        "pip install .": DOWNLOADS,
    },
}
"""Page -> command (without its comment), or first line of a Python block -> why it is not run here."""
