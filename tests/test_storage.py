"""Files that are written whole or not at all, and found compressed."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from support.pair import Pair
from tempertilt.errors import TemperTiltError
from tempertilt.storage import (
    UNFINISHED,
    cache_dir,
    file_sha256,
    is_readable,
    locked,
    make_dir,
    move_files,
    output_directory,
    read_stored,
    remove_directory,
    remove_unfinished,
    replace_directory,
    stored,
    when_unlocked,
    work_directory,
    write_text,
    write_whole,
)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("TEMPERTILT_CACHE", "/mine")
    assert cache_dir() == Path("/mine")
    monkeypatch.delenv("TEMPERTILT_CACHE")
    assert cache_dir() == Path("/x/tempertilt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_dir() == Path("/home/somebody/.cache/tempertilt")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old ä")

    def half(temporary: Path) -> None:
        temporary.write_text("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(TemperTiltError, match=r"cannot write .*a\.txt.*No space left"):
        write_whole(path, half)
    assert path.read_text(encoding="utf-8") == "old ä" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_met_by_safetensors_is_one_sentence(tmp_path: Path) -> None:
    def full(_: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(TemperTiltError, match=r"^cannot write '.*a\.safetensors': No space left on device \(os error 28\)$"):
        write_whole(tmp_path / "a.safetensors", full)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_modes_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    def private(path: Path) -> None:
        save_file({"a": torch.zeros(2)}, path)
        path.chmod(0o600)

    before = os.umask(umask)
    try:
        write_whole(tmp_path / "one.safetensors", private)
        with work_directory(tmp_path, "folder") as work:
            private(work / "two.safetensors")
            (work / "three").touch()
        replace_directory(work, tmp_path / "folder")
    finally:
        os.umask(before)
    files = [tmp_path / "one.safetensors", tmp_path / "folder" / "two.safetensors", tmp_path / "folder" / "three"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [mode] * 3


def test_a_work_directory_goes_with_an_error_and_its_files_go_in_place_in_order(tmp_path: Path) -> None:
    with pytest.raises(KeyError), work_directory(tmp_path / "out", "c") as work:
        (work / "a").touch()
        raise KeyError
    assert not list((tmp_path / "out").iterdir())
    with work_directory(tmp_path / "out", "c") as work:
        for name in "abcd":
            (work / name).write_text("new")
    (tmp_path / "out" / "b").mkdir()  # so that a file can't take its place
    with pytest.raises(TemperTiltError, match=r"cannot write '.*out/b'"):
        move_files(work, tmp_path / "out", "d", "b", "a")
    assert sorted(path.name for path in work.iterdir()) == ["a", "b"], "those that are not in place are kept"
    (tmp_path / "out" / "b").rmdir()
    move_files(work, tmp_path / "out", "b", "a")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "c", "d"]


def test_a_directory_takes_the_place_of_another(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with work_directory(tmp_path, "folder") as work:
            (work / text).write_text(text)
        replace_directory(work, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    pair = Pair()

    def work() -> bool:
        with locked(tmp_path / "thing", "making the thing"):
            if not (tmp_path / "thing").exists():
                pair.hold()
                (tmp_path / "thing").touch()
        return True

    assert pair.run(work) == ([True, True], 1)


def test_a_file_that_must_not_be_read_is_an_error(tmp_path: Path, unreadable: Callable[[Path], None]) -> None:
    assert not is_readable(tmp_path / "a")
    (tmp_path / "a").touch()
    assert is_readable(tmp_path / "a")
    unreadable(tmp_path / "a")
    with pytest.raises(TemperTiltError, match=r"cannot read .*a': Permission denied"):
        is_readable(tmp_path / "a")


def test_leftovers_of_killed_processes_are_removed_and_those_of_running_ones_stay(tmp_path: Path) -> None:
    names: list[str] = []

    def look(temporary: Path) -> None:
        temporary.write_text("x")
        names.append(temporary.name)

    write_whole(tmp_path / "a", look)
    machine = names[0].removeprefix(UNFINISHED).partition("-")[0]
    dead = 2**22 + 1  # above the largest process number
    leftovers = {
        f"{UNFINISHED}{machine}-{dead}-aa-a": False,
        f"{UNFINISHED}{machine}-{os.getppid()}-aa-a": True,
        f"{UNFINISHED}{machine}-{os.getpid()}-aa-a": False,
        f"{UNFINISHED}elsewhere-1-aa-a": True,
        f"{UNFINISHED}nonsense": False,
    }
    for name in leftovers:
        (tmp_path / name).touch()
    (tmp_path / f"{UNFINISHED}{machine}-{dead}-bb-folder").mkdir()
    old = tmp_path / f"{UNFINISHED}elsewhere-2-aa-a"
    old.touch()
    two_days_ago = time.time() - 2 * 86400
    os.utime(old, (two_days_ago, two_days_ago))
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a", *(name for name, stays in leftovers.items() if stays)}


def test_directories_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TemperTiltError, match="cannot write in the directory"):
        make_dir(tmp_path / "file" / "inside")
    assert make_dir(tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())


def test_an_output_directory_goes_where_an_error_leaves_it_empty(tmp_path: Path) -> None:
    with pytest.raises(KeyError), output_directory(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()
    with pytest.raises(KeyError), output_directory(tmp_path / "half"):
        (tmp_path / "half" / "result").touch()
        raise KeyError
    assert (tmp_path / "half" / "result").is_file()
    with pytest.raises(TemperTiltError, match="is a file; name a directory"), output_directory(tmp_path / "half" / "result"):
        pass


def test_a_file_is_found_and_read_compressed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert stored(path) is None
    with pytest.raises(FileNotFoundError):
        read_stored(path)
    path.with_name("a.json.gz").write_bytes(gzip.compress(b"packed"))
    assert stored(path) == path.with_name("a.json.gz") and read_stored(path) == b"packed" == read_stored(tmp_path / "a.json.gz")
    path.write_bytes(b"plain")
    assert stored(path) == path and read_stored(path) == b"plain"


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"nothing", lambda data: data[:12] + b"\0" + data[13:]])
def test_a_damaged_compressed_file_is_an_error(tmp_path: Path, damage: object) -> None:
    (tmp_path / "a.gz").write_bytes(damage(gzip.compress(b"packed" * 50)))  # type: ignore[operator]
    with pytest.raises(OSError):
        read_stored(tmp_path / "a")


def test_checksums(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5_000_000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"x" * 5_000_000).hexdigest()


def test_a_lock_that_is_held_is_not_free(tmp_path: Path) -> None:
    with locked(tmp_path / "a", "writing"), when_unlocked(tmp_path / "a") as free, when_unlocked(tmp_path / "b") as other:
        assert (free, other) == (False, True)
    with when_unlocked(tmp_path / "a") as free:
        assert free


def test_a_directory_is_removed_or_said_to_stay(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    remove_directory(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    remove_directory(tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(TemperTiltError, match=r"cannot delete .*file'"):
        remove_directory(tmp_path / "file")
