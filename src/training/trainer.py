"""transformers' Trainer as this project needs it: an order that can be resumed, tokens counted, adapters gathered."""

from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path

import torch
from accelerate.data_loader import DataLoaderShard
from peft import PeftModel, get_peft_model_state_dict
from transformers import Trainer, TrainerCallback

from common.errors import UserError, say
from common.files import to_line
from common.refusals import naming
from loading.fsdp import gather_trained, split_on_cpu
from ops.answer_loss import by_pieces
from tokens.batches import REAL
from training.graphed import Graphs
from training.order import Share, with_empty
from training.reporting import keep_log
from training.whole import taking_up


def real_tokens(batch: dict):
    """How many tokens of a batch are no padding: a mask, lengths (CPM-Bee), or a packed row, which has none or says."""
    if REAL in batch:
        return batch[REAL]
    if "attention_mask" in batch:
        return batch["attention_mask"].count_nonzero()
    return batch["length"].sum() if "length" in batch else batch["input_ids"].numel()


class TripleTrainer(Trainer):
    """transformers' Trainer, with an order that can be resumed and an evaluation that also predicts."""

    score_answers = None  # a function from the model to its figures (f1, contest, …), or None
    eval_collator = None  # of batches that are evaluated: padded, so that each counts as its number of records
    head_is_apart = False  # ops.answer_loss.head_is_apart of the model: its loss is computed in pieces
    graphs: Graphs | None = None  # None: every pass is computed kernel by kernel
    sound = True  # whether every loss so far was finite; on a card a tensor, so that nothing waits for it
    tokens = 0  # real ones that this process has trained on; on a card a tensor, so that nothing waits for it

    def create_accelerator_and_postprocess(self):
        if self.args.fsdp and self.args.device.type == "cpu":
            split_on_cpu()
        super().create_accelerator_and_postprocess()

    def get_batch_samples(self, *args, **kwargs):
        samples, learnt = super().get_batch_samples(*args, **kwargs)
        # A tensor handed to a split model would be rounded to 16 bits there: 265 tokens would become 266.
        return samples, int(learnt) if self.is_fsdp_enabled and learnt is not None else learnt

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.tokens = self.tokens + real_tokens(inputs)
        inputs = {name: part for name, part in inputs.items() if name != REAL}
        compute = partial(super().training_step, model)
        learn = partial(self.graphs.learn, compute) if self.graphs else compute
        loss = learn(inputs, num_items_in_batch)
        self.sound = loss.isfinite() & self.sound
        return loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        with by_pieces(base) if self.head_is_apart else nullcontext():
            return super().compute_loss(model, inputs, *args, **kwargs)

    def check_sound(self, weights: bool = False) -> None:
        """UserError when a loss so far, or with `weights` a trained weight, is not finite; every process must call it.

        Called where the loss is read anyway: before a line of the log, an evaluation and a checkpoint.
        """
        sound = torch.as_tensor(self.sound, device=self.args.device)
        trained = [part for part in self.model.parameters() if part.requires_grad] if weights else []
        sound = sound & all(getattr(part, "to_local", lambda part=part: part)().isfinite().all() for part in trained)
        if not self.accelerator.reduce((~sound).float()).any():
            return
        say("")  # ends the line of the progress bar
        for name, part in self.model.named_parameters():
            if not part.requires_grad and part.is_floating_point() and not part.isfinite().all():
                raise UserError(f"{name} of the base holds NaN or infinity, and so does the loss; download it again")
        raise UserError(
            f"step {self.state.global_step}: the loss or a trained weight is NaN or infinity; lower --learning_rate, "
            "or use --bf16 or --fp32. Checkpoints before it stay"
        )

    def log(self, *args, **kwargs):
        self.check_sound()
        return super().log(*args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        with naming(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            return super()._save_checkpoint(*args, **kwargs)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        # Before trainer_state.json says that the checkpoint is whole, and an older one is deleted for it.
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir=None, _internal_call=False):
        self.check_sound(weights=True)
        if self.is_fsdp_enabled and isinstance(self.model, PeftModel):  # the Trainer would gather the frozen base, too
            return self._save(output_dir or self.args.output_dir, state_dict=gather_trained(self.model))
        return super().save_model(output_dir, _internal_call)

    # A checkpoint that is damaged in a way that only shows now.

    def _load_from_checkpoint(self, resume_from_checkpoint, *args, **kwargs):
        with taking_up(resume_from_checkpoint):
            return super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        with taking_up(checkpoint):
            return super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint):
        with taking_up(checkpoint):
            return super()._load_rng_state(checkpoint)

    def gather_adapter(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors by their names in its file; of a split model on the first process only."""
        state = gather_trained(self.model) if self.is_fsdp_enabled else None
        return get_peft_model_state_dict(self.model, state_dict=state, save_embedding_layers=False)

    def count_tokens(self) -> int:
        return int(self.tokens)

    @cached_property
    def weights_beside_embeddings(self) -> int:
        return self.model.num_parameters(exclude_embeddings=True) if hasattr(self.model, "num_parameters") else 0

    def floating_point_ops(self, inputs):
        # The Trainer's own counts the weights anew for every pass, one module after the other.
        ids = inputs.get("input_ids")
        return 0 if ids is None else 6 * ids.numel() * self.weights_beside_embeddings

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
            batch_sampler=Share(self.train_dataset, self.args),
            collate_fn=with_empty(self.data_collator, self.train_dataset[lengths.index(min(lengths))]),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def evaluate(self, *args, **kwargs):
        self.check_sound()
        metrics = super().evaluate(*args, **kwargs)
        if self.score_answers is not None:
            figures = {f"eval_{name}": value for name, value in self.score_answers(self.model).items()}
            self.log(figures)
            metrics |= figures
        return metrics


class LogFile(TrainerCallback):
    """Every row of the Trainer's log, appended to log.jsonl as soon as it is made."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            keep_log(Path(args.output_dir) / "log.jsonl", state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            file = Path(args.output_dir) / "log.jsonl"
            with naming(file), open(file, "a", encoding="utf-8") as file:
                file.write(to_line({"step": state.global_step, **logs}) + "\n")


class OnSave(TrainerCallback):
    """Calls `complete` with the folder of every checkpoint, once the Trainer has written it."""

    def __init__(self, complete):
        self.complete = complete

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")
