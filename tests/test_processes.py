"""Code that lies among the photos is never executed: not by the command, not by any process that it starts."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from refine import scenes

from lean3r import processes
from lean3r.processes import let_others_run, memory_bytes

NAMES = (
    "numpy",
    "torch",
    "pycolmap",
    "json",
    "pickle",
    "socket",
    "random",
    "multiprocessing",
    "threading",
    "sitecustomize",
)
PACKAGES = ("PIL", "lean3r", "av", "safetensors")
TRAP = "import pathlib\npathlib.Path(__file__).with_suffix('.RAN').touch()\nraise SystemExit('trapped ' + __file__)\n"
COMMAND = "import sys\nfrom lean3r.cli.main import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
GROUP = """
import sys
import torch
from lean3r.data.base import SceneBatch
from lean3r.data.loader import Prefetch
from lean3r.train.distributed import current_world, launch

def batch(step, stage, rank, size):
    eye = torch.eye(4).expand(1, 1, 4, 4)
    return SceneBatch(torch.full((1, 1, 3, 2, 2), float(step)), torch.ones(1, 1, 2, 2), eye[..., :3, :3], eye)

def work(count):
    with Prefetch(batch, 1, kind="processes") as batches:
        assert float(batches(3, None, 0, 1).images.mean()) == 3
    return sum(current_world().gather(1)) == count

if __name__ == "__main__":
    sys.exit(not launch(2, work, 2))
"""


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A folder of photos with modules beside them that leave a mark when they are imported."""
    folder = tmp_path / "photos"
    folder.mkdir()
    scenes.write(scenes.arc(3), folder)
    for name in NAMES:
        (folder / f"{name}.py").write_text(TRAP)
    for name in PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(TRAP)
    return folder


def run(here: Path, *command: str | Path) -> str:
    """What the command said on standard error; it must have ended well, and executed nothing that lies here."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=here, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert not list(here.rglob("*.RAN")), "code of the current folder ran"
    return done.stderr


def test_reconstruct_with_refinement_executes_no_file_of_the_current_folder(trapped: Path, tmp_path: Path) -> None:
    program = tmp_path / "lean3r"  # like the installed one: its own folder comes first, not the current one
    program.write_text(COMMAND)
    said = run(trapped, program, "reconstruct", ".", "-o", "../out", "--refine", "on", "-f", "cameras")
    assert "refine" in said and "refining process failed" not in said


def test_training_and_its_loaders_execute_no_file_of_the_current_folder(trapped: Path, tmp_path: Path) -> None:
    program = tmp_path / "group.py"
    program.write_text(GROUP)
    run(trapped, program)


def test_python_dash_m_trusts_the_current_folder_with_nothing_but_its_own_name(trapped: Path) -> None:
    (trapped / "lean3r" / "__init__.py").unlink()  # -m itself looks for lean3r here first, before we can object
    (trapped / "lean3r").rmdir()
    run(trapped, "-m", "lean3r", "reconstruct", ".", "-o", "../out", "--refine", "on", "-f", "cameras")


def test_modules_come_from_where_this_process_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, mine = tmp_path / "here", tmp_path / "mine"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", ["", str(here), ".", str(mine), *sys.path])
    assert processes.module_paths()[0] == str(mine) and str(here) not in processes.module_paths()
    home = Path(processes.__file__).parents[1]
    monkeypatch.chdir(home)
    assert processes.module_paths()[-1] == str(home), "lean3r itself is always found, after everything else"
    here.rmdir()
    here.mkdir()
    monkeypatch.chdir(here)
    here.rmdir()
    assert str(mine) in processes.module_paths(), "the current folder may be gone"


def test_the_environment_set_for_children_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    code = [sys.executable, "-c", "import sys; sys.exit(sys.flags.safe_path)"]
    for before, after in ((None, 0), ("1", 1)):
        monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
        if before:
            monkeypatch.setenv("PYTHONSAFEPATH", before)
        with processes.safely_started():
            assert subprocess.run(code).returncode == 1
        assert subprocess.run(code).returncode == after


def test_the_peak_of_memory_is_that_of_the_process_alone(tmp_path: Path) -> None:
    own = "from lean3r.processes import peak_memory_mb; print(peak_memory_mb())"
    starter = f"import subprocess, sys; big = b'x' * (400 << 20); subprocess.run([sys.executable, '-c', {own!r}])"
    printed = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True).stdout
    assert 5 < float(printed) < 300


@pytest.mark.skipif(
    "glibc" not in platform.libc_ver(), reason="other C libraries than glibc give memory back by themselves"
)
def test_freed_memory_goes_back_to_the_system() -> None:
    """Blocks of 100 kB lie in one heap, whose end is in use."""
    code = """
from lean3r.processes import give_memory_back, memory_status_mb
blocks = [b"x" * 100_000 for _ in range(3000)]
full, last = memory_status_mb("VmRSS"), blocks.pop()
del blocks
give_memory_back()
print(full - memory_status_mb("VmRSS"))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(printed) > 250


def test_short_work_is_done_while_a_child_works_and_no_longer_than_there_is_any() -> None:
    calls: list[int] = []

    def piece() -> bool:
        calls.append(1)
        return len(calls) < 3

    def child(code: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code])

    with processes.meanwhile(piece):
        assert processes.wait(child("import time; time.sleep(0.3); raise SystemExit(7)"), 60) == 7
    assert len(calls) == 3
    with processes.meanwhile(lambda: True):  # endless work ends with the child, or when time is up
        assert processes.wait(child(""), 60) == 0
        with pytest.raises(subprocess.TimeoutExpired):
            processes.wait(long := child("import time; time.sleep(60)"), 0.2)
        long.kill()
        long.wait()
    assert processes.wait(child(""), 60) == 0 and len(calls) == 3


@pytest.mark.skipif(not hasattr(os, "nice"), reason="this system has no priorities of this kind")
def test_a_process_that_gives_way_has_the_lowest_priority_and_so_has_its_session() -> None:
    code = "import os; from lean3r.processes import give_way; give_way(); print(os.nice(0)); "
    code += (
        "import pathlib; path = pathlib.Path('/proc/self/autogroup'); print(path.read_text() if path.exists() else '')"
    )
    for own_session in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", code], start_new_session=own_session, capture_output=True, text=True, check=True
        )
        priority, _, group = done.stdout.partition("\n")
        assert int(priority) == 19
        if own_session and "nice" in group:
            assert group.split()[-1] == "19"


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="nobody can be asked")
def test_the_memory_of_a_container_counts(tmp_path: Path) -> None:
    """A service believed in the machine's: its workers were killed by the kernel, time and again."""
    whole = memory_bytes(tmp_path)
    assert whole is not None and whole > 1 << 28
    for group in ("", "system.slice", "system.slice/lean3r.service"):
        (tmp_path / "sys/fs/cgroup" / group).mkdir(parents=True, exist_ok=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("1:name=systemd:/\n0::/system.slice/lean3r.service\n")
    (tmp_path / "sys/fs/cgroup/system.slice/lean3r.service/memory.max").write_text("max\n")
    assert memory_bytes(tmp_path) == whole
    (tmp_path / "sys/fs/cgroup/system.slice/memory.max").write_text("268435456\n")
    assert memory_bytes(tmp_path) == 1 << 28
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1048576\n")  # of a container, which sees itself as the root
    assert memory_bytes(tmp_path) == 1 << 20


@pytest.mark.parametrize("stated", [None, "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_waiting_threads_sleep_soon_unless_the_user_says_how_they_wait(
    monkeypatch: pytest.MonkeyPatch, stated: str | None
) -> None:
    environment = {stated: "7"} if stated else {}
    monkeypatch.setattr(os, "environ", environment)
    let_others_run()
    assert environment == ({stated: "7"} if stated else {"GOMP_SPINCOUNT": "10000"})
