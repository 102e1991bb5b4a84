"""What the Trainer needs here: rows of tokens, batches, an order of the records, scored evaluation, the log."""

import json
import shutil
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import gather_object
from accelerate.utils.constants import FSDP_MODEL_NAME
from peft import PeftModel, get_peft_model_state_dict
from tqdm import tqdm
from transformers import Trainer, TrainerCallback

from utils import locks, manifest
from utils.cache import cached_rows
from utils.errors import UserError, say
from utils.generating import Rules, plan_batches
from utils.order import Share, with_empty
from utils.prompter import prompt
from utils.records import write
from utils.score import score
from utils.sharding import gather_trained, split_on_cpu
from utils.tokens import Limits, check_context


def tokenise(codec, template: dict, base: str | Path, limits: Limits, data_args, records: list[dict], what: str):
    """A dataset of rows (input_ids, labels, length); says how long they are and which had to be cut or dropped.

    `base`: the folder of the tokenizer. `data_args`: see `args.DataArguments`. `what`: the records' name in messages.
    """

    def encode(record):
        row = codec.row(template, record, limits, data_args.train_on_inputs)
        return {**row, "length": len(row["input_ids"])}

    settings = {"template": template, "limits": limits, "train_on_inputs": data_args.train_on_inputs}
    how = (data_args.preprocessing_num_workers, data_args.overwrite_cache)
    rows = cached_rows(encode, records, base, settings, *how, what)
    say(_lengths(rows, limits, what, codec.context))
    # No row without a label may reach the model: its loss would be 0/0.
    kept = [number for number, length in enumerate(rows["length"]) if length]
    if not kept:
        flag = _flags(limits.row, limits.prompt, None)
        raise UserError(f"{flag}: no {what} record fits, with its instruction and answer whole; raise it")
    return rows.select(kept)


def _lengths(rows, limits: Limits, what: str, context: int | None) -> str:
    """One line: percentiles of the rows' lengths, the cut and the dropped, the flags that would spare them."""
    prompts, answers = rows["prompt_tokens"], rows["answer_tokens"]
    whole = sorted(map(sum, zip(prompts, answers, strict=True)))
    at = {share: whole[min(len(whole) - 1, int(share / 100 * len(whole)))] for share in (50, 90, 99)}
    line = f"{what}: {len(whole)} records, tokens 50 % {at[50]}, 90 % {at[90]}, 99 % {at[99]}, longest {whole[-1]}"
    counts = (
        (sum(rows["cut"]), "texts shortened"),
        (sum(rows["answer_cut"]), "answers shortened"),
        (sum(length == 0 for length in rows["length"]), "records dropped"),
    )
    lost = [f"{count} {words}" for count, words in counts if count]
    if lost:
        longest = [limit and size for limit, size in zip(limits, (whole[-1], max(prompts), max(answers)), strict=True)]
        line += f"; {', '.join(lost)} to fit {_flags(*limits)}"
        if context is None or whole[-1] <= context:
            line += f"; {_flags(*longest)} would cut none"
    return line


def _flags(row: int | None, prompt: int | None, answer: int | None) -> str:
    """Limits as the flags that set them."""
    flags = (("cutoff_len", row), ("max_source_length", prompt), ("max_target_length", answer))
    return " ".join(f"--{name} {size}" for name, size in flags if size)


def real_tokens(batch: dict):
    """How many tokens of a batch are no padding: a mask, lengths (CPM-Bee), or a packed row, which has none."""
    if "attention_mask" in batch:
        return batch["attention_mask"].count_nonzero()
    return batch["length"].sum() if "length" in batch else batch["input_ids"].numel()


class TripleTrainer(Trainer):
    """transformers' Trainer, with an order that can be resumed and an evaluation that also predicts."""

    score_answers = None  # a function from the model to its figures (f1, contest, …), or None
    eval_collator = None  # of batches that are evaluated: padded, so that each counts as its number of records
    tokens = 0  # real ones that this process has trained on; on a card a tensor, so that nothing waits for it

    def create_accelerator_and_postprocess(self):
        if self.args.fsdp and self.args.device.type == "cpu":
            split_on_cpu()
        super().create_accelerator_and_postprocess()

    def get_batch_samples(self, *args, **kwargs):
        samples, learnt = super().get_batch_samples(*args, **kwargs)
        # A tensor handed to a split model would be rounded to 16 bits there: 265 tokens would become 266.
        return samples, int(learnt) if self.is_fsdp_enabled and learnt is not None else learnt

    def training_step(self, model, inputs, *args, **kwargs):
        self.tokens = self.tokens + real_tokens(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def save_model(self, output_dir=None, _internal_call=False):
        if self.is_fsdp_enabled and isinstance(self.model, PeftModel):  # the Trainer would gather the frozen base, too
            return self._save(output_dir or self.args.output_dir, state_dict=gather_trained(self.model))
        return super().save_model(output_dir, _internal_call)

    def gather_adapter(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors by their names in its file; of a split model on the first process only."""
        state = gather_trained(self.model) if self.is_fsdp_enabled else None
        return get_peft_model_state_dict(self.model, state_dict=state)

    def count_tokens(self) -> int:
        return int(self.tokens)

    def get_eval_dataloader(self, eval_dataset=None):
        training, self.data_collator = self.data_collator, self.eval_collator or self.data_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training

    def get_train_dataloader(self):
        # Not the Trainer's own: accelerate fills the last batches of an epoch up with records of the first ones.
        lengths = list(self.train_dataset["length"])
        return DataLoaderShard(
            self.train_dataset,
            device=self.args.device,
            batch_sampler=Share(lengths, self.args),
            collate_fn=with_empty(self.data_collator, self.train_dataset[lengths.index(min(lengths))]),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def evaluate(self, *args, **kwargs):
        metrics = super().evaluate(*args, **kwargs)
        if self.score_answers is not None:
            figures = {f"eval_{name}": value for name, value in self.score_answers(self.model).items()}
            self.log(figures)
            metrics |= figures
        return metrics


def make_score_answers(codec, template: dict, records: list[dict], batch_size: int, max_new_tokens: int, args):
    """A function that answers `records` with a model, all processes sharing the work, and scores the answers."""
    prompts = [codec.encode(prompt(template, r["instruction"], r["input"])) for r in records]
    check_context(codec, prompts, records)
    batches = plan_batches([len(p) for p in prompts], batch_size)

    def score_answers(model) -> dict[str, float]:
        was_training, used_cache = model.training, model.config.use_cache
        model.eval()
        model.config.use_cache = True
        answers = []
        with torch.autocast(args.device.type, dtype=args.precision.dtype, enabled=args.bf16 or args.fp16):
            for batch in tqdm(
                batches[args.process_index :: args.world_size],
                desc="predicting",
                unit="batch",
                leave=False,
                disable=args.process_index > 0,
            ):
                made = codec.answer(model, [prompts[index] for index in batch], Rules(max_new_tokens))
                answers += [(index, answer.text) for index, answer in zip(batch, made, strict=True)]
        model.config.use_cache = used_cache
        model.train(was_training)
        texts = dict(gather_object(answers))
        predicted = [{**record, "output": texts[index], "kg": None} for index, record in enumerate(records)]
        return score(predicted, records)

    return score_answers


def keep_log(file: Path, step: int) -> None:
    """Drop the rows that a resumed run will write again, those after `step`, and one that a kill cut in half."""
    if file.is_file():
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        write(file, [row for row in map(json.loads, lines) if row["step"] <= step])


class LogFile(TrainerCallback):
    """Every row of the Trainer's log, appended to log.jsonl as soon as it is made."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            keep_log(Path(args.output_dir) / "log.jsonl", state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            with open(Path(args.output_dir) / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class SaveTokenizer(TrainerCallback):
    """Calls `save` with the folder of every checkpoint: one of a whole model is a base that can be used by itself."""

    def __init__(self, save):
        self.save = save

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def find_checkpoint(output_dir: str | Path, processes: int = 1) -> str | None:
    """The newest checkpoint-N that is whole: its trainer_state.json, written last, can be read, and in a run of
    several processes each has left its random numbers.
    """
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        try:
            step = checkpoint_step(folder)
            if processes > 1 and not all((folder / f"rng_state_{i}.pth").is_file() for i in range(processes)):
                raise OSError
            found.append((step, str(folder)))
        except (OSError, ValueError, KeyError):
            say(f"resume: {folder} is not whole (the run was killed while it was written); passed over")
    return max(found)[1] if found else None


def checkpoint_step(folder: str | Path) -> int:
    """The optimizer step a checkpoint was saved at; OSError, ValueError or KeyError when it is not whole."""
    return json.loads((Path(folder) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]


@contextmanager
def alone(output_dir: str | Path, rank: int):
    """Keep other trainings out of --output_dir until the block ends: they would mix, or delete, each other's files.

    UserError when one is at work there, or the folder cannot be made.
    """
    if rank:  # the first process holds it for all
        yield
        return
    folder = Path(output_dir)
    was_there, what = folder.exists(), f"--output_dir {folder}:"
    refusal = f"{what} another training is writing it (ps and nvidia-smi show it); give another folder, or wait for it"
    try:
        with locks.held(folder / "training.lock", what, refusal):
            yield
    finally:
        if not was_there:
            with suppress(OSError):  # what holds something, or was not made
                folder.rmdir()


def choose_resume(args) -> str | None:
    """The checkpoint to go on from, or None to start; UserError rather than overwriting what another run left."""
    asked, out = args.resume_from_checkpoint, Path(args.output_dir)
    there = find_checkpoint(out, args.world_size)
    finished = manifest.read(out).get("status") == "finished"
    if asked == "auto":
        if not finished:
            say(f"resume: {there}" if there else "resume: no whole checkpoint yet, starting at step 0")
        return check_split_alike(there, args.fsdp)
    if asked:
        if not (Path(asked) / "trainer_state.json").is_file():
            newest = there or "none"
            raise UserError(f"--resume_from_checkpoint {asked}: no whole checkpoint; --output_dir's newest is {newest}")
        return check_split_alike(asked, args.fsdp)
    if (there or finished) and not args.overwrite_output_dir:
        raise UserError(
            f"--output_dir {out} holds a run already ({'finished' if finished else Path(there).name}); give another "
            "folder, --resume_from_checkpoint auto to go on with it, or --overwrite_output_dir to start anew"
        )
    return None


def check_split_alike(checkpoint: str | None, split: bool) -> str | None:
    """The checkpoint itself; UserError when it is of a split model and this run's is whole, or the other way round."""
    if checkpoint and (Path(checkpoint) / f"{FSDP_MODEL_NAME}.bin").is_file() != bool(split):
        how, do = ("without", "drop it") if split else ("with", "add it")
        raise UserError(f"--resume_from_checkpoint {checkpoint}: written {how} --fsdp; {do}")
    return checkpoint


def is_done(args, run: dict, resume: str | None) -> bool:
    """Whether --output_dir holds this very run, finished; UserError when it holds another one to be resumed."""
    before = manifest.read(args.output_dir)
    if not args.resume_from_checkpoint or not before:
        return False
    names = ("base", "template", "precision", "lora", "prefix", "seed", "data", "training")
    other = [f"{n}: {before[n]} then, {run[n]} now" for n in names if n in before and before[n] != run[n]]
    if other:
        raise UserError(
            f"the run to resume was started otherwise ({'; '.join(other)}); repeat its command, or give another "
            "--output_dir"
        )
    if before["status"] == "finished" and before["planned"] == run["planned"]:
        say(f"{args.output_dir}: finished already, nothing to train")
        return True
    if before["status"] == "finished" and not resume:
        raise UserError(
            f"--output_dir {args.output_dir} holds a finished run without checkpoints, which cannot be prolonged; give "
            "another folder, or --overwrite_output_dir instead of resuming"
        )
    return False


def clear(output_dir: str | Path) -> None:
    """Remove what a later resume would take for this run's: the old run's checkpoints and log."""
    for folder in Path(output_dir).glob("checkpoint-*"):
        shutil.rmtree(folder)
    (Path(output_dir) / "log.jsonl").unlink(missing_ok=True)


def draw_curve(history: list[dict], file: Path) -> None:
    """Loss and, where evaluation predicted, F1 and contest score over the steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, losses = pyplot.subplots(figsize=(7, 4))
    scores = losses.twinx() if any("eval_f1" in row for row in history) else None
    shown = Counter(name for row in history for name in row)
    for name, axis in (("loss", losses), ("eval_loss", losses), ("eval_f1", scores), ("eval_contest", scores)):
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
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
