"""A results file that stands where a new one goes. It may have taken a night: it is kept under another name, for
results.json results.before.json, then results.before-2.json, …, unless the new one is made of the same with the same
settings.
"""

from itertools import count
from os.path import lexists
from pathlib import Path

from common import manifest
from common.errors import say
from common.files import fingerprint, peek_json
from prediction import partial

PATHS = ("input", "adapter", "prefix")  # that run.json has beside the settings of these names


def place_results(output: str | Path, rows: list[dict], run: dict, overwrite: bool) -> None:
    """Write a results file and its NAME.run.json, then drop the partial files; keep what stands there, if it is other.

    `run`: what run.json says, with `output`, `settings` and `results`; `overwrite`: keep nothing. Killed at any moment,
    the same command goes on, and the earlier file is whole under one of its two names.
    """

    def settle(whole: Path) -> None:
        if not overwrite:
            keep_earlier(output, run)
        manifest.write_run_of(output, run | {"sha256": fingerprint(whole)})

    partial.finish_file(output, rows, settle)


def keep_earlier(output: str | Path, run: dict) -> None:
    """Rename the file at `output` if its answers are not those that `run` makes again, and say so."""
    file = Path(output)
    if not file.is_file() or not file.stat().st_size:
        return
    made = manifest.made_of(peek_json(manifest.run_file_of(output)), output) or {}
    other = tell_change(file, made, run)
    if not other:
        return
    there = file.resolve() if file.is_symlink() else file
    kept = name_kept(there, made)
    if made:
        manifest.write_run_of(kept, made)
    there.rename(kept)
    say(f"{output}: the file that was there is kept as {kept} ({other})")


def tell_change(file: Path, made: dict, run: dict) -> str:
    """Why a results file would be lost if what `run` makes took its place; "" where it would be the same again.

    `made`: of its run.json, {} where nothing says how it was made.
    """
    if not made:
        return "nothing beside it says how it was made"
    there, now = made["settings"], run["settings"]
    # A path tells more than the fingerprint of what it holds, where both are other ones.
    paths = [name for name in PATHS if there.get(name) != now.get(name) and made.get(name) != run.get(name)]
    there, now = there | {name: made.get(name) for name in paths}, now | {name: run.get(name) for name in paths}
    if other := partial.tell_differences(there, now, partial.FREE):
        return other
    if made.get("sha256") != fingerprint(file):
        return "it was changed after it was made"
    results, failed = made.get("results"), run["results"]["error"]
    before = results.get("error") if isinstance(results, dict) else None
    fewer = isinstance(before, int) and before < failed
    return f"{before or 'none'} of its records had failed, and {failed} have now" if fewer else ""


def name_kept(file: Path, made: dict) -> Path:
    """A free name for a file that is kept, with its run.json. One that says what `made` does was left by a run that was
    killed before it renamed the file.
    """
    for number in count(1):
        kept = file.with_name(f"{file.stem}.before{f'-{number}' if number > 1 else ''}{file.suffix}")
        run = manifest.run_file_of(kept)
        if not lexists(kept) and (not lexists(run) or (made and made == peek_json(run))):
            return kept
