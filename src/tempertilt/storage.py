"""Where tempertilt keeps what can be made again, and how it writes files: whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import secrets
import shutil
import socket
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from tempertilt.errors import TemperTiltError

log = logging.getLogger("tempertilt")

UNFINISHED = ".unfinished-"
DAY = 86400.0


def cache_dir() -> Path:
    """The cache: `$TEMPERTILT_CACHE`, else `$XDG_CACHE_HOME/tempertilt`, else `~/.cache/tempertilt` (not created here)."""
    if named := os.environ.get("TEMPERTILT_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tempertilt"


def make_dir(path: Path) -> Path:
    """Create `path` with its parents; `TemperTiltError` if it is a file or cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise TemperTiltError(
            f"cannot write in the directory {str(path)!r}: {error.strerror or error}. Name another one."
        ) from error
    return path


@contextmanager
def output_directory(path: Path) -> Iterator[None]:
    """Make `path`, and take it away again if it was not there before and an error leaves it empty."""
    if path.exists() and not path.is_dir():
        raise TemperTiltError(f"--output-dir {str(path)!r} is a file; name a directory")
    existed = path.is_dir()
    make_dir(path)
    try:
        yield
    except BaseException:
        if not existed and not any(path.iterdir()):
            path.rmdir()
        raise


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step. Its mode follows the umask.

    A process that is killed leaves `path` as it was; its temporary file is removed by `remove_unfinished`.

    Raises:
        TemperTiltError: the file can't be written (a full disk, no permission); the old one stays.
    """
    temporary = _unfinished(path.parent, path.name)
    try:
        with writing(path):
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode
            write(temporary)
            _settle(temporary, mode)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_whole(path, write)


def stored(path: Path) -> Path | None:
    """The file `path`, or the compressed one beside it (`path` with .gz); None where neither is there."""
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def read_stored(path: Path) -> bytes:
    """The content of the file `path`, or of the compressed one beside it.

    Raises:
        OSError: neither is there, it cannot be read, or it is not whole.
    """
    file = stored(path) or path
    content = file.read_bytes()
    if file.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error) as error:
        raise OSError(f"{str(file)!r} is not a whole gzip file: {error}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, what keeps a file from being written becomes a `TemperTiltError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise TemperTiltError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise TemperTiltError(f"cannot write {str(path)!r}: {str(error).rpartition('I/O error: ')[2]}") from error


@contextmanager
def work_directory(target: Path, name: str) -> Iterator[Path]:
    """A new folder in the directory `target`, which is made if it does not exist, to be filled inside. An error removes it.

    The files get the modes of this process's umask and are through to the disk at the end. The folder of a killed process is
    removed by `remove_unfinished`.

    Raises:
        TemperTiltError: the files can't be written.
    """
    work = _unfinished(make_dir(target), name)
    with writing(target / name):
        work.mkdir()
        try:
            probe = work / ".mode"
            probe.touch()
            mode = probe.stat().st_mode
            probe.unlink()
            yield work
            for path in work.iterdir():
                _settle(path, mode)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


def move_files(work: Path, target: Path, *last: str) -> None:
    """Put the files of a work directory in place in `target`, those named `last` at the end and in that order.

    Where one can't be put in place, the work directory stays, with what is not in place yet.
    """
    for path in sorted(work.iterdir(), key=lambda path: last.index(path.name) if path.name in last else -1):
        with writing(target / path.name):
            path.replace(target / path.name)
    shutil.rmtree(work, ignore_errors=True)


def replace_directory(work: Path, target: Path) -> None:
    """Put a work directory in place as the directory `target`, whose old content goes."""
    with writing(target):
        if target.exists():
            target.rename(old := _unfinished(target.parent, target.name))
            work.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            work.rename(target)


def _settle(path: Path, mode: int) -> None:
    path.chmod(stat.S_IMODE(mode))
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _unfinished(parent: Path, name: str) -> Path:
    """A new name in `parent` that says which process writes it."""
    return parent / f"{UNFINISHED}{_machine()}-{os.getpid()}-{secrets.token_hex(6)}-{name}"


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """A directory to write into, which takes the place of `target` at the end; after an error all is as it was."""
    with work_directory(target.parent, target.name) as work:
        yield work
    replace_directory(work, target)
    remove_unfinished(target.parent)


@contextmanager
def locked(target: Path, action: str) -> Iterator[None]:
    """Hold a lock beside `target`, which ends with the process. Where another process has it, say so in one line and wait.

    Args:
        action: what the lock is held for, as in "converting the model".
    """
    lock = _lock_of(target)
    with writing(Path(lock.lock_file)):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("another process is %s: waiting for it", action)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def when_unlocked(target: Path) -> Iterator[bool]:
    """Hold the lock of `locked` if it is free; whether it is."""
    lock = _lock_of(target)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock_of(target: Path) -> FileLock:
    return FileLock(make_dir(target.parent) / f".{target.name}.lock", mode=0o666)


def remove_directory(path: Path) -> None:
    """Delete a directory with all that is in it; nothing where there is none. `TemperTiltError` if something must stay."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise TemperTiltError(f"cannot delete {error.filename or str(path)!r}: {error.strerror or error}") from error


def is_readable(path: Path) -> bool:
    """Whether a file is there.

    Raises:
        TemperTiltError: it is there, but must not or cannot be read. It is not damaged for that.
    """
    try:
        with path.open("rb"):
            return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise TemperTiltError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def remove_unfinished(directory: Path) -> None:
    """Remove the temporary files and directories that a killed process left in `directory`.

    What a process of this machine that still runs is writing stays, and what one of another machine has written in the last day.
    """
    for leftover in directory.glob(f"{UNFINISHED}*"):
        if _being_written(leftover):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with suppress(OSError):  # another user's
                leftover.unlink()


def _being_written(path: Path) -> bool:
    machine, _, rest = path.name.removeprefix(UNFINISHED).partition("-")
    process = rest.partition("-")[0]
    if not process.isdigit():
        return False
    try:
        if machine != _machine():
            return time.time() - path.stat().st_mtime < DAY
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return int(process) != os.getpid()


def _machine() -> str:
    """A short name of this machine, letters and digits."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def file_sha256(*parts: Path) -> str:
    """SHA-256 of a file, or of the parts of one in their order, hex."""
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
