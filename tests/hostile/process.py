"""One command of tests/campaign.py as a process, and the folder it runs in."""

import contextlib
import ctypes
import hashlib
import os
import re
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from hostile.commands import COMMANDS, Around, Command, write_lines

ROOT = Path(__file__).resolve().parents[2]
NORMAL = Around()
EMPTY = "empty folder"
MOST_MEMORY = 6 * 2**30  # bytes that a command may take more than Python with torch has
READY = 3  # the pipe that is closed when a command begins


def set_up() -> Path:
    """A folder for all that the cases leave, and variables for all processes. Called before torch is imported."""
    home = Path(tempfile.mkdtemp(prefix="campaign-")).resolve()
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": "cpu",
        "HF_HOME": str(home / "hf"),
        "HF_DATASETS_CACHE": str(home / "rows"),
        "MPLCONFIGDIR": str(home / "mpl"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return home


class Run(NamedTuple):
    """What became of one process."""

    code: int | None  # None: it was still running when its time was over
    out: str
    error: str
    seconds: float
    alone: bool  # it left no process behind

    @property
    def text(self) -> str:
        return self.out + self.error


def run(command: Command, argv: list[str], place: Path, limit: float, around=NORMAL, real=False, stop_at=0.0) -> Run:
    """Run a command in a folder for at most `limit` seconds; after `stop_at` seconds it gets the signal `around.stop`.

    `real`: as a new Python; else as a fork of this one, which has torch already.
    """
    code, sent, texts = None, not stop_at, [b"", b""]
    pipes, ready = (os.pipe(), os.pipe()), os.pipe()  # no files: their size may be limited
    pid = _start(command, argv, place, around, real or around.real, (pipes[0][1], pipes[1][1], ready[1]))
    for end, other in (*pipes, ready):
        os.set_blocking(end, end == ready[0])
        os.close(other)
    os.read(ready[0], 1)  # until the command itself begins
    os.close(ready[0])
    began = time.time()

    def read():
        for number, (end, _) in enumerate(pipes):
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(end, 1 << 16):
                    texts[number] += piece

    while time.time() - began < limit:
        read()
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        if not sent and time.time() - began >= stop_at and (around.stop == signal.SIGKILL or _catches_signals(pid)):
            os.kill(pid, around.stop)
            sent = True
        time.sleep(0.005)
    seconds, alone = time.time() - began, _end_group(pid, code is None)
    if code is None:
        os.waitpid(pid, 0)
    read()
    for end, _ in pipes:
        os.close(end)
    return Run(code, *(text.decode(errors="replace") for text in texts), seconds, alone)


def _catches_signals(pid: int) -> bool:
    """Whether a command has taken over what stops it. Before its first lines, Ctrl-C is Python's own affair; behind its
    last, all is done. Of the two signals, SIGTERM tells: Python itself catches SIGINT. (Elsewhere than on Linux: True.)
    """
    status = Path(f"/proc/{pid}/status")
    caught = re.search(r"^SigCgt:\s*(\w+)", status.read_text(), re.MULTILINE) if status.exists() else None
    return caught is None or bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _start(command: Command, argv: list[str], place: Path, around: Around, real: bool, ends: tuple) -> int:
    """The process's id. `ends`: of pipes, for stdout, stderr, and the word that all is ready."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        os.chdir(place)
        _redirect(around.stdout, ends)
        _set_folder(place, around.folder)
        for name, value in {**command.env, **around.env}.items():
            os.environ[name] = value.replace("{here}", str(place))
        if around.obeys and os.geteuid() == 0:
            _obey_permissions()
        _cap_memory()
        if around.limit:
            around.limit()
        script = str(ROOT / command.script)
        real = real or script.endswith(".bash")
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGPIPE, signal.SIG_IGN)):
            signal.signal(number, signal.SIG_DFL if real else handler)
        os.close(READY)
        if real:
            os.environ["PYTHONPATH"] = str(place)
            start = ["bash"] if script.endswith(".bash") else [sys.executable]
            os.execvp(start[0], [*start, script, *map(os.fsencode, argv)])
        code = _run_here(script, argv)
    except BaseException:  # noqa: BLE001 - a traceback is what is looked for
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def _run_here(script: str, argv: list[str]) -> int:
    """The exit status of a script, run as Python would run it."""
    sys.argv, sys.path[0] = [script, *argv], str(Path(script).parent)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as Python makes them
    sys.stderr = sys.__stderr__ = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.path.append(os.getcwd() if os.path.isdir(os.curdir) and Path(os.curdir).exists() else "")
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    return code


def _redirect(stdout: str, ends: tuple) -> None:
    """stdin from nowhere, stdout and stderr into their pipes, or what `stdout` says; READY becomes the last pipe."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(ends[1], 2)
    out = ends[0]
    if stdout == "full":
        out = os.open("/dev/full", os.O_WRONLY)
    elif stdout == "gone":
        end, out = os.pipe()
        os.close(end)
    os.dup2(out, 1)
    os.dup2(ends[2], READY)
    os.closerange(READY + 1, 256)
    if stdout == "closed":
        os.close(1)


def _set_folder(place: Path, what: str) -> None:
    if what == "lost":
        shutil.rmtree(place)
    elif what == "closed":
        for folder in (place, *(path for path in place.rglob("*") if path.is_dir() and not path.is_symlink())):
            folder.chmod(0o555)


def _cap_memory() -> None:
    """What would fill the machine's memory, such as a reader of /dev/zero, ends by itself."""
    pages = Path("/proc/self/statm")
    if pages.is_file():
        most = int(pages.read_text().split()[0]) * resource.getpagesize() + MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _obey_permissions() -> None:
    """Let root be stopped by permissions as others are (Linux)."""
    libc, mask = ctypes.CDLL(None), 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: for what is executed
    libc.capget(header, data)
    for word in range(3):
        data[word] &= ~mask
    libc.capset(header, data)


def _end_group(pid: int, at_once: bool) -> bool:
    """End what a process has left behind; whether that was nothing. Five seconds are for what is about to end."""
    for _ in range(1 if at_once else 500):
        try:
            os.killpg(pid, 0)
        except (ProcessLookupError, PermissionError):
            return True
        time.sleep(0 if at_once else 0.01)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    return at_once


# ---- the folder


def words_of(command: Command, flags: dict) -> list[str]:
    """A command line."""
    words = list(command.words)
    for flag, value in flags.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                words += ([f"--{flag}"] if flag else []) + ([] if one is True else [str(one)])
    return words


def furnish(name: str, place: Path, left: Path) -> None:
    """Put the files of a command into a new folder; `left`: the folders that undamaged commands have left."""
    place.mkdir()
    for target, source in COMMANDS[name].files.items():
        if isinstance(source, list):
            write_lines(place / target, source)
            continue
        above = {"@": left, "/": ROOT}.get(source[0])
        origin = above / source[1:] if above else ROOT / "tests" / "golden" / source
        (place / target).parent.mkdir(exist_ok=True)
        (shutil.copytree if origin.is_dir() else shutil.copyfile)(origin, place / target)
        if source[0] == "@" and origin.is_dir():  # run.json says where its base was
            for file in (place / target).rglob("*.json"):
                text = file.read_text(encoding="utf-8")
                file.write_text(text.replace(str(origin.parent), str(place)), encoding="utf-8")


def look(place: Path) -> dict[str, str]:
    """Every file of a folder -> its content's hash, where its link points to, or what else it is."""
    found = {}
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path.relative_to(place))] = os.readlink(path)
            elif path.is_file():
                found[str(path.relative_to(place))] = hashlib.sha1(path.read_bytes()).hexdigest()
            elif not path.is_dir():
                found[str(path.relative_to(place))] = "special"
            elif not any(path.iterdir()):
                found[str(path.relative_to(place))] = EMPTY
    return found
