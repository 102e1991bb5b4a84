"""The cache that huggingface_hub downloads into: models--ORG--NAME, and in it a snapshot for every revision."""

from pathlib import Path

from common.errors import UserError, say

MODELS = "models--"  # how the folder of a model begins
MAIN = Path("refs", "main")  # the file that names the newest snapshot


def find_snapshot(folder: str | Path, flag: str) -> str:
    """The folder itself or, of a model's top folder in a hub cache, that of its snapshot, which is said.

    Of several snapshots it is the one that refs/main names; UserError with `flag` when that cannot be told, or when the
    folder is the cache of all models.
    """
    top = Path(folder)
    top = top.parent if top.name == "snapshots" else top
    if (top / "config.json").exists() or not top.is_dir():
        return str(folder)
    if not (top / "snapshots").is_dir():
        if models := sorted(path.name for path in top.glob(f"{MODELS}*") if (path / "snapshots").is_dir()):
            raise UserError(
                f"--{flag} {folder}: the cache of several models; give the folder of one: {top / models[0]}"
                + (f" (or {', '.join(models[1:6])})" if models[1:] else "")
            )
        return str(folder)
    snapshots = sorted(path for path in (top / "snapshots").iterdir() if path.is_dir())
    main = (top / MAIN).read_text(encoding="utf-8", errors="replace").strip() if (top / MAIN).is_file() else None
    named = [path for path in snapshots if path.name == main]
    if not named and len(snapshots) != 1:
        there = f"give one of them: {', '.join(map(str, snapshots))}" if snapshots else "download the model again"
        raise UserError(f"--{flag} {folder}: the top folder of a hub cache with {len(snapshots)} snapshots; {there}")
    chosen = str((named or snapshots)[0])
    say(f"{flag}: {chosen} (the snapshot in the hub cache)")
    return chosen
