"""Lines that outlive the process that wrote them."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from airflow_provider_gradient.datasets import AppendLog, DatasetError

LINES = st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b" ") + b"\n"), max_size=20)


def lines_of(path: UPath) -> list[bytes]:
    with AppendLog(path) as log:
        return [line for _, line in log.lines()]


@pytest.fixture(params=["local", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    return UPath(
        {"local": str(tmp_path / "new"), "memory": f"memory://{tmp_path.name}"}[request.param], "log"
    )


@given(lines=LINES, more=LINES, cut=st.integers(0, 700))
def test_wherever_a_kill_cut_the_file_its_whole_lines_are_read_and_the_log_goes_on(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], more: list[bytes], cut: int
) -> None:
    file = tmp_path_factory.mktemp("logs") / "log"
    content = b"".join(lines)[:cut]
    file.write_bytes(content)
    whole = [line + b"\n" for line in content.split(b"\n")[:-1]]
    with AppendLog(file) as log:
        assert [line for _, line in log.lines()] == whole
        offsets = [log.append(line) for line in more]
        assert [log.read(offset) for offset in offsets] == more
    assert lines_of(UPath(file)) == whole + more


def test_lines_written_between_commits_are_there_again_on_any_file_system(path: UPath) -> None:
    with AppendLog(path) as log:
        for number in range(10):
            log.append(b"line %d\n" % number)
            if number % 3 == 0:
                log.commit()
        log.commit()
    with AppendLog(path) as log:
        log.append(b"line 10\n")
    assert lines_of(path) == [b"line %d\n" % number for number in range(11)]


def test_lines_are_read_between_others_that_are_appended_however_long_they_are(path: UPath) -> None:
    lines = [b"%d" % number * 10 ** (number % 6) + b"\n" for number in range(20)]
    with AppendLog(path) as log:
        offsets: list[int] = []
        for line in lines:
            offsets.append(log.append(line))
            assert log.read(offsets[-1]) == line
            assert log.read(offsets[0]) == lines[0]
        assert [log.read(offset) for offset in offsets] == lines


def test_a_cleared_log_is_empty_and_a_removed_one_leaves_nothing(path: UPath) -> None:
    with AppendLog(path) as log:
        log.append(b"old\n")
        log.commit()
        log.clear()
        log.append(b"new\n")
    assert lines_of(path) == [b"new\n"]
    with AppendLog(path) as log:
        log.remove()
    assert not path.parent.exists() or list(path.parent.rglob("*")) == []


def test_a_part_that_was_put_in_half_loses_its_torn_line_alone() -> None:
    path = UPath("memory://torn/log")
    with AppendLog(path) as log:
        log.append(b"first\n")
    (path / "00000001.jsonl").write_bytes(b"second\nthi")
    with AppendLog(path) as log:
        log.append(b"fourth\n")
    assert lines_of(path) == [b"first\n", b"second\n", b"fourth\n"]
    assert (path / "00000001.jsonl").read_bytes() == b"second\nthi"


def test_a_killed_process_loses_no_line_even_if_it_never_committed(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from airflow_provider_gradient.datasets import AppendLog
with AppendLog(sys.argv[1]) as log:
    for number in range(1000):
        log.append(b"line %d\\n" % number)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")])
    assert killed.returncode == -signal.SIGKILL
    assert len(lines_of(UPath(tmp_path / "log"))) == 1000


def test_a_full_disk_is_an_error_and_leaves_whole_lines(tmp_path: Path) -> None:
    code = """
import sys
from airflow_provider_gradient.datasets import AppendLog, DatasetError
with AppendLog(sys.argv[1]) as log:
    for _ in range(2):
        try:
            for _ in range(100):
                log.append(b"0123456789\\n")
        except DatasetError as error:
            print(error)
"""

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")],
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert run.stdout.count(f"can't write {tmp_path / 'log'}") == 2, run.stderr
    assert lines_of(UPath(tmp_path / "log")) == [b"0123456789\n"] * 9


def test_a_log_that_is_a_folder_on_the_local_disk_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="this is a folder"):
        AppendLog(tmp_path)
