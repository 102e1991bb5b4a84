"""What decides the answers of a run: template, numbers, rules; and what an unfinished file must agree with."""

from pathlib import Path

from checkpoints.adapters import weight_files
from checkpoints.vocabulary import NAME as VOCABULARY
from common import manifest
from common.decisions import Decision, decide
from common.errors import UserError, say
from common.files import fingerprint
from common.flags import DRAWING
from data.asking import Asking
from data.prompts import check_template, load_template
from decoding.answers import Rules
from decoding.serving import Serving
from loading.precision import FLAGS, Precision, asked_dtype, choose_bits, choose_dtype

FREE = ("batch_size", "drafts", "confidence", "fp8")  # rules that change no answer, or are compared where given


def check_apart(output: str, *folders: str | Path | None) -> None:
    """UserError for an output within a folder of weights, where it could replace one of their files."""
    places = {Path(output).resolve().parent, Path(output).parent.resolve()}  # of a linked file, and of its link
    for folder in filter(None, folders):
        if Path(folder).resolve() in places:
            raise UserError(f"--output_file {output}: {folder} holds what is read here; give a file elsewhere")


def choose_template(typed: str | None, run: dict, default: str, where: str = manifest.NAME) -> dict:
    """The template that is typed, else the one recorded in run.json, as it was then, else `default`.

    UserError for a recorded one that is none; `where`: the file of `run`.
    """
    name = manifest.prefer("prompt_template_name", typed, run.get("template_name"))
    if name is not None and name == run.get("template_name") and run.get("template") is not None:
        return check_template(run["template"], f"{where}: template")
    return load_template(name or default)


def choose_precision(model_args, args, recorded: dict, on_cpu: bool) -> tuple[Precision, dict[str, Decision]]:
    """What the flags say, else what was trained with (run.json), else what the machine does best; and the reasons."""
    typed = asked_dtype(args)
    trained = recorded.get("name")
    dtype = choose_dtype(typed or trained, on_cpu, "as asked" if typed else "as trained, by run.json")
    if typed and trained not in (None, typed, dtype.value):  # the last: a CPU makes both float32
        flag = next(flag for flag, name in FLAGS.items() if name == typed)
        say(f"warning: --{flag} contradicts run.json, which says {trained}; using {dtype.value}")
    bits = choose_bits(manifest.prefer("bits", model_args.bits, recorded.get("bits"), 16), on_cpu)
    return Precision(dtype.value, bits.value), {"dtype": dtype, "bits": bits}


def rules_of(args, max_new_tokens: int) -> Rules:
    """How to answer, as the flags say it; how many at a time is chosen later."""
    drawing = {name: getattr(args, name) for name in DRAWING if getattr(args, name) is not None}
    return Rules(
        max_new_tokens=max_new_tokens,
        num_beams=args.num_beams,
        repetition_penalty=args.repetition_penalty,
        do_sample=args.do_sample,
        max_repeats=args.max_repeats,
        confidence=args.confidence and args.votes == 1,
        constrain=args.constrain,
        constrain_exempt=args.constrain_exempt,
        **drawing,
    )


def learnt_form(flags, run: dict) -> tuple[int, str, str]:
    """(--schema_batch, --answer_order, --answer_format): what is typed, else as run.json says that an adapter was
    trained, else as they are by default.
    """
    trained, plain = run.get("training"), {"schema_batch": 0, "answer_order": "head", "answer_format": "text"}
    recorded = {} if trained is None else {name: trained.get(name, plain[name]) for name in plain}
    return tuple(manifest.prefer(name, getattr(flags, name), recorded.get(name), plain[name]) for name in plain)


def choose_learning(flags, run: dict, seed: int) -> tuple[Asking, dict[str, Decision]]:
    """How training records are asked and answered, and what of it `run`, of the adapter that is trained on, decided.

    UserError for a typed flag that does not go with what it says.
    """
    names, form = ("schema_batch", "answer_order", "answer_format"), learnt_form(flags, run)
    why = "as the adapter of --init_lora was trained, by its run.json"
    taken = {
        name: decide(name, value, why)
        for name, value in zip(names, form, strict=True)
        if getattr(flags, name) is None and name in (run.get("training") or {})
    }
    batch, order, answers = form
    if order == "tail" and answers == "json":
        raise UserError(
            f"--answer_format json and --answer_order tail do not go together, and {' and '.join(taken) or 'both'} "
            "came from the run.json of --init_lora; give that flag, too, with another value, or drop yours"
        )
    drawn = flags.shuffle_schema, flags.negative_relations, batch
    return Asking(*drawn, seed, order == "tail", as_json=answers == "json"), taken


def choose_asking(args, run: dict) -> Asking:
    """How records are asked: as the flags say it, else in parts as large as those trained on (run.json), which is
    said, else by their own lists.
    """
    batch, order, form = learnt_form(args, run)
    tail_first = order == "tail"
    if args.schema_batch is None and batch:
        say(f"schema_batch: {batch} (as trained with, by run.json; --schema_batch 0 asks for all relations at once)")
    seed = Asking().seed if args.seed is None else args.seed
    if tail_first:
        say("answer_order: tail (answers say (tail,relation,head); the file has them head first)")
    if form == "json":
        say("answer_format: json (answers are lists of objects with head, relation and tail)")
        for flag, given in (("--answer_order tail", tail_first), ("--constrain", args.constrain is not None)):
            if given:
                raise UserError(
                    f"--answer_format json (as trained, by run.json) and {flag} do not go together; drop it"
                )
    votes = {"draws" if args.do_sample else "lists": args.votes, "least": args.min_votes or 0}
    asking = Asking(args.shuffle_schema, 0, batch, seed, tail_first, **votes, as_json=form == "json")
    if asking.shuffle:
        say(f"shuffle_schema: the order of each record's relations is drawn once, by seed {seed}")
    return asking


def settings_of(serving: Serving, template: dict, input_file: str | None, window: int | None, asking: Asking) -> dict:
    """What the answers depend on, so that those of another command are not mixed with them."""
    if serving.prefix:
        trained = {"prefix": fingerprint(*weight_files(serving.prefix.folder))}
    else:
        adapter = serving.adapter
        files = [*weight_files(adapter), adapter / "adapter_config.json"] if adapter else []
        files += [adapter / VOCABULARY] if adapter and (adapter / VOCABULARY).is_file() else []
        trained = {"adapter": fingerprint(*files) if adapter else None, "merge_lora": serving.merge}
    return {
        "input": fingerprint(input_file) if input_file else None,  # None: a corpus, whose shards say it
        "base": serving.base,
        "base_files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in weight_files(serving.base)],
        "family": serving.family.name,
        "template": template,
        "precision": list(serving.precision),
        "retry_length": serving.retry_length,
        "window": window,
        **asking.settings,  # nothing where nothing is drawn or divided, as in files from before there were the flags
        **({"asking_seed": asking.seed} if asking.shuffle or asking.lists > 1 else {}),
        **{name: value for name, value in serving.rules._asdict().items() if name not in FREE},
        **({"confidence": True} if serving.rules.confidence else {}),
        **({"fp8": True} if serving.rules.fp8 else {}),
        **trained,
    }
