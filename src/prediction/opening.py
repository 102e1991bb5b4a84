"""The one way to open a model for prediction: all that is decided and checked first, then the weights."""

import os
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from checkpoints.adapters import count_whole, find_adapter
from checkpoints.config import read_context
from checkpoints.family import Chosen, choose_family
from checkpoints.hub_cache import find_snapshot
from checkpoints.prefixes import find_prefix, nearby_steps
from checkpoints.stored import whole_files
from common import manifest
from common.decisions import Decision, as_json
from common.errors import UserError
from common.machine import choose_device
from data.asking import Asking
from decoding.constrained import Limits, make_limits
from decoding.engines import ENGINES, choose_engine
from decoding.serving import Prefix, Serving
from loading.adapted import check_adapter
from loading.fp8 import check_fp8_adapter, choose_fp8
from loading.prefix import check_supported
from loading.shape import check_vocabulary, read_shape
from loading.vocabulary import extend_shape, rows_for
from prediction.settings import check_apart, choose_asking, choose_precision, choose_template, rules_of
from tokens.codec import Codec
from tokens.lengths import MAX_LEN, MAX_SRC_LEN, check_lengths
from tokens.pieces import token_bytes
from tokens.readers import load_prompting

DECIDED = ("batch_size", "drafts")  # rules that stand among what the run decided


@dataclass(frozen=True)
class Opening:
    """What a prediction is made with, decided and checked before any weight is read."""

    serving: Serving
    template: dict
    codec: Codec
    engine: str  # of decoding.engines.ENGINES
    name: str  # the base's, of --model_name
    decided: dict[str, Decision]
    context: int | None  # tokens that the base has positions for, or was trained on; None: not known
    asking: Asking
    limits: Limits | None  # of answers to no prompt yet, where they are limited (--constrain)
    max_src_len: int | None = None  # most tokens of a question, with a prefix


def plan_adapter(model_args, args, processes: int = 1) -> Opening:
    """The base alone or with a LoRA adapter; `args`: utils.args_predict.InferenceArguments."""
    adapter = find_adapter(find_snapshot(args.lora_weights, "lora_weights")) if args.lora_weights else None
    source = adapter or model_args.model_name_or_path
    run = manifest.read_run(source) if source else {}
    if not adapter:
        run.pop("base", None)  # a fully fine-tuned model is its own base
    lacking = "no run.json beside --lora_weights names the base; give its"
    base = _choose_base("model_name_or_path", model_args, run, lacking, source)
    if args.output_file:
        check_apart(args.output_file, base, adapter)
    chosen = _choose_family(base, model_args, run, source)
    template = choose_template(args.prompt_template_name, run, chosen.template_name, _where(source))
    device = choose_device(args.device)
    precision, decided = choose_precision(model_args, args, run.get("precision") or {}, device.type == "cpu")
    decided["fp8"] = choose_fp8(args.fp8, precision, device)
    if args.fp8 and adapter:
        check_fp8_adapter(adapter, args.merge_lora)
    serving = Serving(
        base=base,
        family=chosen.family,
        shape=read_shape(base, chosen.trust),
        precision=precision,
        device=device,
        rules=rules_of(args, args.max_new_tokens)._replace(fp8=decided["fp8"].value),
        adapter=adapter,
        merge=args.merge_lora,
        retry_length=args.retry_length,
        batch_size=args.batch_size,
        drafts=None if args.drafts == "auto" else int(args.drafts),
        max_memory_mb=model_args.max_memory_MB,
        device_map=args.device_map,
        trust=chosen.trust,
        processes=processes,
        tensor_parallel_size=args.tensor_parallel_size,
        data_parallel_size=args.data_parallel_size,
    )
    asking = choose_asking(args, run)
    return _plan(serving, template, chosen.name, args, decided, asking, "model_name_or_path")


def plan_prefix(
    model_args, args, processes: int = 1, flags: tuple[str, str] = ("model_dir", "ori_model_dir")
) -> Opening:
    """The base with a prefix of P-Tuning v2; `args`: utils.args_pt.PtuningInferenceArguments. `flags`: by which the
    folders of the prefix, args.model_dir, and of the base are given.
    """
    near, (asked, base_flag) = nearby_steps(args.model_dir), flags
    if not os.path.isdir(args.model_dir):
        raise UserError(f"--{asked} {args.model_dir}: no such folder; {near}")
    run = manifest.read_run(args.model_dir)
    lacking = f"no run.json in --{asked} {args.model_dir} names the base ({near}); give the base's"
    base = _choose_base(base_flag, model_args, run, lacking, args.model_dir)
    if args.output_file:
        check_apart(args.output_file, base, args.model_dir)
    chosen = _choose_family(base, model_args, run, args.model_dir)
    check_supported(chosen.family, base)
    template = choose_template(args.prompt_template_name, run, chosen.template_name, _where(args.model_dir))
    trained = run.get("training") or {}
    max_len = manifest.prefer("max_len", args.max_len, trained.get("max_len"), MAX_LEN)
    max_src_len = manifest.prefer("max_src_len", args.max_src_len, trained.get("max_src_len"), MAX_SRC_LEN)
    check_lengths(max_len, max_src_len)
    shape = read_shape(base, chosen.trust)
    kind = find_prefix(args.model_dir, chosen.family, shape, f"--{asked}")
    device = choose_device(args.device, fall_back=True)
    precision, decided = choose_precision(model_args, args, run.get("precision") or {}, device.type == "cpu")
    serving = Serving(
        base=base,
        family=chosen.family,
        shape=shape,
        precision=precision,
        device=device,
        rules=rules_of(args, args.max_new_tokens or max_len - max_src_len),
        prefix=Prefix(Path(args.model_dir), kind),
        retry_length=args.retry_length,
        batch_size=args.batch_size,
        drafts=None if args.drafts == "auto" else int(args.drafts),
        max_memory_mb=model_args.max_memory_MB,
        trust=chosen.trust,
        processes=processes,
    )
    plan = _plan(serving, template, chosen.name, args, decided, choose_asking(args, run), base_flag)
    return replace(plan, max_src_len=max_src_len)


def open_model(plan: Opening, prompts: list[list[int]]):
    """The model of a plan, ready for its engine's `answers`; `prompts`: ids of all that it will be asked.

    UserError, before any weight is read, when the prompts hold ids that the base has not, or memory is too short.
    """
    check_vocabulary(plan.serving.shape, prompts)
    longest = max(map(len, prompts), default=1)
    return ENGINES[plan.engine].open(plan.serving, plan.codec, longest)


def _choose_base(flag: str, model_args, run: dict, lacking: str, source) -> str:
    typed = model_args.model_name_or_path
    typed = str(Path(find_snapshot(typed, flag)).resolve()) if typed else None
    base = manifest.prefer(flag, typed, run.get("base"))
    if not base:
        raise UserError(f"--{flag} is missing, and {lacking} folder")
    if not typed and not os.path.isdir(base):
        raise UserError(f"{_where(source)}: base is {base}, no such folder; give the base's as --{flag}")
    return base


def _choose_family(base: str, model_args, run: dict, source) -> Chosen:
    try:
        return choose_family(base, model_args.model_name, model_args.trust_remote_code, run)
    except UserError as error:
        recorded = run.get("model_name")
        if recorded is None or model_args.model_name is not None or not str(error).startswith("--model_name "):
            raise
        raise UserError(f"{_where(source)}: model_name is {recorded!r}, as if typed: {error}") from None


def _where(source) -> str:
    """The run.json of a folder, as messages name it."""
    return str(manifest.find_run(source) or manifest.NAME) if source else manifest.NAME


def _plan(serving: Serving, template: dict, name: str, args, decided: dict, asking: Asking, flag: str):
    """The Opening, once all files are found whole."""
    engine = choose_engine(args.engine, serving)
    whole_files(serving.base, flag)
    where = serving.base, serving.family, serving.trust, serving.adapter
    template, codec = load_prompting(template, args.chat_system, *where)
    shape = extend_shape(serving.shape, codec.pieces_before)
    if serving.adapter:
        how = serving.family, serving.precision, serving.merge, serving.trust
        check_adapter(serving.adapter, serving.base, *how, rows_for(codec.pieces_before))
        shape = shape and shape._replace(other=shape.other + count_whole(serving.adapter))
    serving = replace(serving, shape=shape)
    limits = make_limits(token_bytes(codec), codec.eos_id, {}) if serving.rules.constrain else None  # which may refuse
    context = codec.context or read_context(serving.base, serving.family)
    decided = {**decided, "engine": engine}
    return Opening(serving, template, codec, engine.value, name, decided, context, asking, limits)


def describe_plan(plan: Opening, decided: dict[str, Decision]) -> dict:
    """With what answers are made, for run.json."""
    serving = plan.serving
    return {
        "status": "finished",
        "method": "prediction",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "family": serving.family.name,
        "model_name": plan.name,
        "base": serving.base,
        "adapter": str(serving.adapter.resolve()) if serving.adapter else None,
        "prefix": str(serving.prefix.folder.resolve()) if serving.prefix else None,
        "template": plan.template,
        "precision": serving.precision._asdict(),
        "rules": {name: value for name, value in serving.rules._asdict().items() if name not in DECIDED},
        "asking": plan.asking.settings,
        "decided": as_json(decided),
    }
