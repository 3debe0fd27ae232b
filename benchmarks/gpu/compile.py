"""What does the compiler make of each Triton kernel? Registers, spills and shared memory, without a GPU.

    python benchmarks/gpu/compile.py [--cards 80 89 90 100] [--types bfloat16 ...] [--operators NAME ...]
                                     [--shapes backbones|edges|all] [--no-loops] [--out DIR]

The operators run on tensors without values (`calls.py`), every launch is caught with the configurations that the
autotuner would try, and each of them is compiled for each card by the Triton that is installed. Writes compiled.json;
exit code 1 when a launch does not fit into a card. Must not run under TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from calls import OPERATORS  # noqa: E402
from common import RESULTS  # noqa: E402

# Compute capability: bytes of shared memory that a block may have.
CARDS = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
TENSOR_MEMORY = 512  # columns, where a card has it
TYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Card:
    """Stands in for Triton's driver: a GPU of some compute capability that is never asked to run anything."""

    capability: int

    @property
    def utils(self) -> Card:
        """Triton asks `driver.utils` for the properties of a device."""
        return self

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Of these, the kernels ask for one."""
        return {"max_shared_mem": CARDS[self.capability]}

    def get_current_device(self) -> int:
        """Triton keeps what it compiled by this number."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """Any."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.capability, 32)


@dataclass(frozen=True)
class Launch:
    """One kernel as an operator launches it, and one configuration; none where the kernel has a single one."""

    kernel: JITFunction
    args: tuple
    constants: dict
    config: triton.Config | None

    def compile(self):
        """Triton's compiled kernel, and the log of ptxas, empty where the same was compiled before."""
        log = io.StringIO()
        chosen = self.config.all_kwargs() if self.config else {}
        with redirect_stdout(log):
            compiled = self.kernel.run(*self.args, grid=None, warmup=True, **self.constants, **chosen)
        return compiled, log.getvalue()


@dataclass(frozen=True)
class Variant:
    """What one launch comes to: bytes that a thread spills, instructions in each innermost loop."""

    operator: str
    call: str
    kernel: str
    config: str
    card: int
    type: str
    registers: int
    spills: int
    shared: int
    loops: tuple[int, ...]

    @property
    def fits(self) -> bool:
        """Whether the card takes it."""
        return self.shared <= CARDS[self.card]


def launches(run: Callable[[], object]) -> list[Launch]:
    """All that `run` would launch, in order; the results of kernels hold nothing."""
    found: list[Launch] = []

    def single(kernel: JITFunction, *args: object, grid: object, warmup: bool, **constants: object) -> None:
        found.append(Launch(kernel, args, constants, None))

    def tuned(tuner: Autotuner, *args: object, grid: object, warmup: bool, **constants: object) -> None:
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        found.extend(Launch(tuner.fn, args, constants, config) for config in tuner.prune_configs(constants))

    with mock.patch.object(JITFunction, "run", single), mock.patch.object(Autotuner, "run", tuned):
        run()
    return found


def variants(operator: str, card: int, kind: str, shapes: str, with_loops: bool = True) -> Iterator[Variant]:
    """Each different compiled kernel of an operator on a card, in one type, once."""
    triton.runtime.driver.set_active(Card(card))  # type: ignore[arg-type]
    for call in OPERATORS[operator](getattr(torch, kind)):
        if shapes not in (call.shapes, "all"):
            continue
        for launch in launches(call.run):
            compiled, log = launch.compile()
            if log:
                assert getattr(compiled.metadata, "tmem_size", 0) <= TENSOR_MEMORY
                yield Variant(
                    *(operator, call.name, launch.kernel.__name__, _named(launch.config), card, kind),
                    registers=int(re.findall(r"Used (\d+) registers", log)[0]),
                    spills=int(re.findall(r"(\d+) bytes spill stores", log)[0]),
                    shared=compiled.metadata.shared,
                    loops=loops(compiled.asm["cubin"]) if with_loops else (),
                )


def _named(config: triton.Config | None) -> str:
    if config is None:
        return ""
    return " ".join(f"{name}={value}" for name, value in config.all_kwargs().items() if value is not None)


def disassembled(cubin: bytes) -> str:
    """Machine code as text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        return subprocess.run([tool, "-sass", file.name], check=True, capture_output=True, text=True).stdout


def loops_of(text: str) -> list[tuple[int, int]]:
    """Addresses of the first and the last instruction of each loop, in the order of the program."""
    branches = re.findall(
        r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?BRA(?:\.\S+)? (?:!?U?P\d+, )*`?\(?0x([0-9a-f]+)", text
    )
    return sorted((int(to, 16), int(at, 16)) for at, to in branches if int(to, 16) < int(at, 16))


def loops(cubin: bytes) -> tuple[int, ...]:
    """Instructions in each innermost loop, in the order of the program."""
    found = loops_of(disassembled(cubin))
    inner = [(a, b) for a, b in found if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in found)]
    return tuple((end - start) // 16 + 1 for start, end in inner)


def main() -> int:
    """Compile, print a line each, write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", nargs="+", type=int, choices=CARDS, default=list(CARDS), help="compute capabilities")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    parser.add_argument("--shapes", choices=("backbones", "edges", "all"), default="backbones")
    parser.add_argument("--no-loops", action="store_true", help="do not look into loops, which takes half of the time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of compiled.json")
    args = parser.parse_args()
    triton.knobs.nvidia.dump_ptxas_log = True
    compiled: list[Variant] = []
    with tempfile.TemporaryDirectory() as cache:  # what is cached elsewhere has no log
        triton.knobs.cache.dir = cache
        for operator in args.operators:
            for kind in args.types:
                for card in args.cards:
                    for variant in variants(operator, card, kind, args.shapes, not args.no_loops):
                        compiled.append(variant)
                        print(*asdict(variant).values(), "" if variant.fits else "DOES NOT FIT", flush=True)
    rows = [json.dumps(asdict(variant)) for variant in compiled]
    head = json.dumps({"command": " ".join(sys.argv), "triton": triton.__version__, "shared_limits": CARDS})
    args.out.mkdir(parents=True, exist_ok=True)
    text = f'{head[:-1]}, "variants": [\n' + ",\n".join(rows) + "\n]}\n"
    (args.out / "compiled.json").write_text(text)
    return int(not all(variant.fits for variant in compiled))


if __name__ == "__main__":
    sys.exit(main())
