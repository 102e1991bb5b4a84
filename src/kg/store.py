"""A graph's folder: generations of an embedded RDF store (pyoxigraph), of which one counts.

    DIR/current.json    which generation counts, and the settings of the graph
    DIR/generation-N/   an Oxigraph (RocksDB) store; while it counts, nothing writes to it

A change is made in a new generation that shares the old one's data files (hard links, for RocksDB never rewrites one),
and counts once current.json is replaced, in one step. So whatever ends a change, the graph is as before or after it.
Two processes never change one graph; who reads it goes on reading the generation that was there.
"""

import os
import shutil
import tempfile
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.files import read_json, to_line, write_lines
from common.locks import hold_file, take_lock
from common.refusals import ADVICE, naming

CURRENT, LOCK, GENERATION = "current.json", "lock", "generation-"
READERS = "readers"  # of a generation: who reads it shares a lock on this file, and it is not removed
FORMAT = 1
LEFT_BEHIND = ("LOCK", "LOG", READERS)  # of RocksDB (log files are named LOG, LOG.old.N), and of the readers
_reading = {}  # folder of a graph -> the open file whose lock keeps the generation that this process reads


class Settings(NamedTuple):
    """What a graph was made with. `merge`: none, normal or alias; `relations`: the object of relations.json."""

    merge: str
    relations: dict


def oxigraph():
    """The package pyoxigraph, imported when a store is needed."""
    try:
        import pyoxigraph
    except ImportError:
        raise UserError("graphs need the package pyoxigraph; pip install -r requirements.txt") from None
    return pyoxigraph


def read_current(directory: str | Path) -> tuple[int, Settings] | None:
    """The generation that counts and the settings; None where there is no graph yet. UserError for other folders."""
    directory = Path(directory)
    file = directory / CURRENT
    if not file.is_file():
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory}: is a file, expected the folder of a graph")
        strange = [p.name for p in directory.iterdir() if not _is_own(p.name)] if directory.is_dir() else []
        if strange:
            raise UserError(f"{directory}: no graph (it holds {strange[0]}); give a folder of its own")
        return None
    found = read_json(file, "restore the file, or build the graph anew in another folder")
    try:
        if found["format"] != FORMAT:
            raise UserError(f"{file}: format {found['format']!r}, expected {FORMAT}; build the graph anew")
        return int(found["generation"]), Settings(found["merge"], found["relations"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file}: not the settings of a graph; restore it, or build the graph anew") from None


def check_store(directory: str | Path) -> None:
    """UserError, which names --store, where no graph is and none can be made: found before hours of work."""
    try:
        read_current(directory)
    except UserError as error:
        raise UserError(f"--store {error}") from None


def open_graph(directory: str | Path):
    """The store that counts now, to read, and its settings. UserError where there is none.

    It stays as it is, whatever others change, until this process opens the graph again, lets it go or ends.
    """
    for _ in range(5):
        current = read_current(directory)
        if current is None:
            raise UserError(_missing(directory))
        folder = _generation(directory, current[0])
        try:
            file = open(folder / READERS, "rb")  # noqa: SIM115 - open while it is read
            if not take_lock(file.fileno(), shared=True):
                raise OSError("it is being removed")
            store = oxigraph().Store.read_only(str(folder))
            _reading[str(Path(directory).resolve())] = file  # that of an earlier opening is closed
            return store, current[1]
        except OSError as error:  # it was replaced just now
            if read_current(directory) == current:
                raise UserError(f"{directory}: the graph cannot be opened ({error}); build it anew") from None
    raise UserError(f"{directory}: another process goes on changing the graph; try again")


def let_go(directory: str | Path) -> None:
    """The store of an earlier `open_graph` is read no more: what it holds on disk may be removed by the next change."""
    file = _reading.pop(str(Path(directory).resolve()), None)
    if file is not None:
        file.close()


def change_graph(directory: str | Path, flag: str, new: Settings | None, work):
    """Call `work(store, settings)` on a copy of the graph, which counts once it returns (result, settings).

    `new`: the settings of a graph that is not there yet; None: it has to be there. `flag`: what named the folder. While
    `work` runs, other processes read the graph as it was, and are refused if they would change it. Where `work` returns
    no settings, nothing is changed.
    """
    directory = Path(directory)
    current = read_current(directory)
    if current is None and new is None:
        raise UserError(_missing(directory))
    made_now = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        refusal = f"{flag} {directory}: another process is changing this graph; wait for it, then repeat the command"
        with hold_file(directory / LOCK, f"{flag} {directory}", refusal), naming(directory):
            number, settings = read_current(directory) or (0, new)
            _remove_others(directory, number)
            made = _generation(directory, number + 1)
            try:
                if number:
                    _link_files(_generation(directory, number), made)
                result, settings = _work_on(made, work, settings)
                if settings is not None:
                    _publish(directory, made, number + 1, settings)
                    number += 1
            finally:
                _remove_others(directory, number)
    except BaseException:
        for folder in made_now:  # nothing is in them
            with suppress(OSError):
                folder.rmdir()
        raise
    return result


def scratch_in(directory: str | Path) -> tempfile.TemporaryDirectory:
    """A folder beside the store for the files of a change, gone with the block; named so that the next change removes
    what a killed one left of it.
    """
    return tempfile.TemporaryDirectory(dir=directory, prefix=f"{GENERATION}tmp")


def _work_on(folder: Path, work, settings: Settings):
    """The store is closed when this returns or raises: nothing else refers to it."""
    try:
        return _call_and_let_go(work, folder, settings)
    except OSError as error:
        if error.errno is not None:
            raise
        # The store says in words alone what the system refused.
        number = next((number for number in ADVICE if os.strerror(number) in str(error)), None)
        if number is None:
            raise UserError(f"{folder.parent}: the store cannot be written ({error})") from None
        raise OSError(number, os.strerror(number)) from None


def _call_and_let_go(work, folder: Path, settings: Settings):
    try:
        return work(oxigraph().Store(str(folder)), settings)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they refer to the store, which would write while it is removed
        raise


def _publish(directory: Path, folder: Path, number: int, settings: Settings) -> None:
    (folder / READERS).touch()
    for file in folder.iterdir():  # on disk before it counts
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
    line = {"format": FORMAT, "generation": number, **settings._asdict()}
    write_lines(directory / CURRENT, [to_line(line)])


def _link_files(old: Path, new: Path) -> None:
    """A second store of the same content. Both are closed; data files are shared, all others copied."""
    new.mkdir()
    for file in old.iterdir():
        if file.name.startswith(LEFT_BEHIND):
            continue
        try:
            if file.suffix != ".sst":
                raise OSError
            os.link(file, new / file.name)
        except OSError:  # no data file, or a disk without links
            shutil.copyfile(file, new / file.name)


def _remove_others(directory: Path, number: int) -> None:
    """What changes that were broken off left, and generations before that nobody reads any more."""
    for folder in directory.glob(f"{GENERATION}*"):
        if folder.name == f"{GENERATION}{number}":
            continue
        with ExitStack() as held:
            with suppress(FileNotFoundError):
                file = held.enter_context(open(folder / READERS, "rb"))
                if not take_lock(file.fileno()):
                    continue
            shutil.rmtree(folder, ignore_errors=True)


def _missing(directory: str | Path) -> str:
    what = "no graph in it" if Path(directory).exists() else "no such folder"
    return f"{directory}: {what}; python src/utils/graph.py build makes a graph there"


def _generation(directory: str | Path, number: int) -> Path:
    return Path(directory) / f"{GENERATION}{number}"


def _is_own(name: str) -> bool:
    return name in (LOCK, CURRENT, f"{CURRENT}.tmp") or name.startswith(GENERATION)


def size_on_disk(directory: str | Path) -> int:
    """Bytes of the generation that counts."""
    current = read_current(directory)
    return sum(file.stat().st_size for file in _generation(directory, current[0]).iterdir()) if current else 0
