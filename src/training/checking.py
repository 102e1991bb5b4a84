"""What the Trainer would find fault with only once the base is loaded, found before."""

import torch
from accelerate.utils import DynamoBackend

from common.errors import UserError, reason_of


def check_report_to(asked: str) -> None:
    """UserError for a tool that the Trainer does not know, or whose package is not installed."""
    if asked in ("none", "all"):
        return
    from transformers.integrations import integration_utils as known

    if asked not in known.INTEGRATION_TO_CALLBACK:
        names = ", ".join(sorted(known.INTEGRATION_TO_CALLBACK))
        raise UserError(f"--report_to {asked}: expected one of none, all, {names}")
    if asked not in known.get_available_reporting_integrations():
        raise UserError(f"--report_to {asked}: its package is not installed; install it, or drop the flag")


def check_optimizer(args) -> None:
    """UserError for an optimizer, a course of the learning rate or a compiler that cannot be made as the flags say."""
    from transformers import Trainer, get_scheduler

    model = torch.nn.Linear(1, 1)
    plain = torch.optim.SGD(model.parameters(), lr=args.learning_rate)

    def make_optimizer():
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return kind(model.parameters(), **settings)

    def make_course():
        more = args.lr_scheduler_kwargs or None
        return get_scheduler(args.lr_scheduler_type, plain, 0, 10, scheduler_specific_kwargs=more)

    tried = {f"--lr_scheduler_type {args.lr_scheduler_type.value}": make_course}
    if not args.optim_target_modules:  # else it looks for them in the real model
        tried[f"--optim {args.optim.value}"] = make_optimizer
    if args.torch_compile_backend:
        tried[f"--torch_compile_backend {args.torch_compile_backend}"] = lambda: DynamoBackend(
            args.torch_compile_backend.upper()
        )
    for flag, make in tried.items():
        try:
            make()
        except Exception as error:  # noqa: BLE001 - of many packages, which may lack, or settings
            raise UserError(f"{flag}: cannot be used so ({reason_of(error)}); give another one") from None
