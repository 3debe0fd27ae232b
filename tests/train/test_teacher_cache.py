"""The cache of a teacher's outputs: same bits, bounded, shared, and no harm from a full disk or a kill."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lean3r.errors import UsageError
from lean3r.train import teacher_cache
from lean3r.train.teacher_cache import TeacherCache

OUTPUT = 4112  # bytes of a file

WRITER = """
import sys, time, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from train.test_teacher_cache import pictures, teacher
from lean3r.train.teacher_cache import TeacherCache
cache = TeacherCache(Path(sys.argv[1]), float(sys.argv[2]), teacher(1.0))
net = teacher(1.0)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3]), int(sys.argv[4])):
    cache.recall((pictures(number),), lambda: {{"twice": net(pictures(number))}})
"""


def teacher(weight: float) -> nn.Linear:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, weight)
    return net


def pictures(number: int) -> Tensor:
    return torch.rand(1000, 1, generator=torch.Generator().manual_seed(number))


class Asked:
    """A teacher that counts how often it runs."""

    def __init__(self, folder: Path, limit: float = 1e9, weight: float = 1.0, about: str = ""):
        self.net, self.times = teacher(weight), 0
        self.cache = TeacherCache(folder, limit, self.net, about)

    def __call__(self, number: int, mask: Tensor | None = None) -> Tensor:
        def ask() -> dict[str, Tensor]:
            self.times += 1
            return {"twice": self.net(pictures(number))}

        times = self.times
        found, was_cached = self.cache.recall((pictures(number), mask), ask)
        assert was_cached == (times == self.times)
        assert torch.equal(found["twice"], self.net(pictures(number)))
        return found["twice"]


def outputs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*.safetensors"))


def test_a_teacher_runs_once_for_the_same_pictures(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    for number in (1, 2, 1, 2, 1):
        asked(number)
    again = Asked(tmp_path)
    again(1)
    assert asked.times == 2 and again.times == 0
    again(1, mask=torch.ones(1000, 1, dtype=torch.bool))
    with torch.autocast("cpu", torch.bfloat16):
        again(1)
    assert again.times == 2, "a mask and another number type are other outputs"


def test_other_teachers_are_kept_apart(tmp_path: Path) -> None:
    Asked(tmp_path)(1)
    for other in (Asked(tmp_path, weight=1.0001), Asked(tmp_path, about="depth")):
        other(1)
        assert other.times == 1
    assert len(outputs(tmp_path)) == 3 and len(list(tmp_path.glob("????????????????"))) == 3


def test_the_cache_stays_within_its_limit_and_keeps_what_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Asked(tmp_path, weight=3.0)(0)
    asked = Asked(tmp_path, limit=3.5 * OUTPUT)
    for _ in range(3):
        for number in range(6):
            asked(number)
    held = len(outputs(tmp_path)) - 1
    assert {path.stat().st_size for path in outputs(tmp_path)} == {OUTPUT}
    assert held == 2 and sum(path.stat().st_size for path in outputs(tmp_path)) <= 3.5 * OUTPUT
    assert asked.times == 3 * 6 - 2 * held
    (said,) = caplog.messages
    assert "nothing more goes into the teacher cache" in said and "of other teachers" in said


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
def test_a_damaged_file_is_written_again(
    damage: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Asked(tmp_path)(1)
    (path,) = outputs(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage is None else damage)
    asked = Asked(tmp_path)
    asked(1)
    asked(1)
    assert asked.times == 1 and path.read_bytes() == content and f"{path} is damaged" in caplog.text


def test_a_full_disk_stops_the_writing_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Asked(tmp_path)
    asked(1)

    def full(path: Path, write: object) -> None:
        path.with_name("half").write_bytes(b"half")
        path.with_name("half").unlink()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache, "write_atomically", full)
        for number in (2, 3, 1, 2):
            asked(number)
    assert asked.times == 4 and len(outputs(tmp_path)) == 1
    assert len(caplog.messages) == 1 and "No space left on device" in caplog.text and "Training goes on" in caplog.text

    nearly = os.statvfs(tmp_path)
    monkeypatch.setattr(teacher_cache, "RESERVE_SHARE", 1.0)
    monkeypatch.setattr(teacher_cache, "RESERVE_BYTES", nearly.f_frsize * nearly.f_blocks)
    careful = Asked(tmp_path)
    careful(2)
    assert len(outputs(tmp_path)) == 1 and "nearly full" in caplog.messages[-1]


def test_several_processes_write_at_once_and_one_is_killed(tmp_path: Path) -> None:
    """Overlapping pictures, a limit that they reach together, and a writer that ends without a goodbye."""
    program = WRITER.format(tests=str(Path(__file__).parents[1]))
    limit, spans = 20.5 * OUTPUT, ((0, 40), (20, 60), (40, 80))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), str(limit), *map(str, span)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for span in spans
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    writers[0].send_signal(signal.SIGKILL)
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers[1:]] == [0, 0]
    assert len(outputs(tmp_path)) >= 10 and sum(path.stat().st_size for path in outputs(tmp_path)) <= limit
    (folder,) = {path.parent.parent for path in outputs(tmp_path)}
    (leftover := folder / "00" / ".some.safetensors.7.partial").parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"half")
    asked = Asked(tmp_path)
    assert not leftover.exists()
    for number in range(80):
        asked(number)
    assert asked.times <= 80 - 10


def test_an_unusable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"teacher cache.*name another folder"):
        Asked(tmp_path / "file")
