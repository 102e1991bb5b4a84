"""What a training leaves beside its weights: log.jsonl, curve.png, run.json, and the block at the end."""

import json
import sys
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from checkpoints.stored import is_there
from common import manifest
from common.errors import say
from common.files import to_line, write_rows
from common.processes import this_process
from common.refusals import naming
from kg.metrics import CURVE


def keep_log(file: Path, step: int) -> None:
    """Drop the rows that a resumed run will write again, those after `step`, and what is no row: one that a kill cut in
    half, a damaged line. UserError where something else has the file's name.
    """
    if is_there(file):
        write_rows(file, [row for row in read_log(file) if row["step"] <= step])


def read_log(file: Path) -> list[dict]:
    """The rows of a log.jsonl, without damaged lines."""
    return list(filter(None, map(_read_row, file.read_text(encoding="utf-8", errors="replace").splitlines())))


def _read_row(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def draw_curve(history: list[dict], file: Path) -> None:
    """Loss and, where evaluation predicted, F1 and contest score over the steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, losses = pyplot.subplots(figsize=(7, 4))
    scored = [f"eval_{name}" for name in CURVE]
    scores = losses.twinx() if any(scored[0] in row for row in history) else None
    shown = Counter(name for row in history for name in row)
    for name, axis in (("loss", losses), ("eval_loss", losses), *((name, scores) for name in scored)):
        if shown[name]:
            points = [(row["step"], row[name]) for row in history if name in row]
            axis.plot(
                *zip(*points, strict=True),
                marker="." if name.startswith("eval") else None,
                label=name,
                linestyle="--" if axis is scores else "-",
            )
    losses.set_xlabel("step")
    losses.set_ylabel("loss")
    if scores is not None:
        scores.set_ylabel("score")
        scores.set_ylim(0, 1)
    if losses.lines:  # a run shorter than --logging_steps logs no loss
        figure.legend(loc="upper center", ncols=4)
    with naming(file):
        figure.savefig(file, dpi=120)
    pyplot.close(figure)


class Log:
    """log.jsonl and the line of it at the terminal; of a resumed run, the lines up to `step` stay."""

    def __init__(self, out: Path, step: int):
        self.file = out / "log.jsonl"
        if this_process().rank == 0:
            keep_log(self.file, step)

    def __call__(self, row: dict) -> None:
        if this_process().rank == 0:
            with naming(self.file), open(self.file, "a", encoding="utf-8") as file:
                file.write(to_line(row) + "\n")
            line = f"step {row['step']}  loss {row['loss']:.4f}  learning rate {row['learning_rate']:.2e}"
            tqdm.write(line, file=sys.stderr)

    def rows(self) -> list[dict]:
        return read_log(self.file)


def make_run(base: str | Path, chosen, template_name: str, template: dict, args, data: dict, training: dict, **own):
    """run.json of a training that begins; `chosen`: checkpoints.family.Chosen; `own`: what a way of training adds."""
    return {
        "status": "training",
        "family": chosen.family.name,
        "model_name": chosen.name,
        "base": str(Path(base).resolve()),
        "template_name": template_name,
        "template": template,
        "precision": args.precision._asdict(),
        **own,
        "seed": args.seed,
        "data": data,
        "training": training,
        "planned": {"max_steps": args.max_steps, "num_train_epochs": args.num_train_epochs},
        "versions": manifest.versions(),
    }


def mean_and_last(losses: list[float]) -> dict[str, float]:
    """What run.json says of the losses of a log."""
    return {"train_loss": round(sum(losses) / len(losses), 4), "last_loss": round(losses[-1], 4)}


def finish_run(out: Path, run: dict, history: list[dict], results: dict, pace: str, best: str, made: str) -> None:
    """Draw the curve, write what the run was and what it reached, and say it in one block.

    `history`: rows of the log; `results`: steps, epochs, losses, seconds and whatever else was measured; `pace`, `best`
    and `made` are said: how fast it was, which checkpoint was best (or nothing), where the weights are.
    """
    draw_curve(history, out / "curve.png")
    peak = round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None
    manifest.write_run(out, {**run, "status": "finished", "results": {**results, "peak_gib": peak}})
    say(
        f"\ntrained {results['steps']} steps ({results['epochs']:.2f} epochs), from step {results['resumed_at_step']} "
        f"in {results['seconds']:.0f} s{f', peak {peak} GiB of the GPU' if peak else ''}"
        f"\n{pace}\nloss {results['train_loss']} on average, {results['last_loss']} at the end{best}\n{made}"
    )
