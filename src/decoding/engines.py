"""The engines: ways to get answers out of a model, each one row of a table with the same few functions.

`answers(model, codec, waiting, rules)` is the work. `waiting`: number -> prompt (as codec.encode gives it), in the
order planned, the longest first. It yields what is finished as {number: Answer or Failure}, in groups as they come,
until all of `waiting` is answered. Between two groups its caller puts the answers on disk. Where rules.constrain says
that answers are limited, it takes `limits` (decoding.constrained) as well.
"""

from collections.abc import Callable
from typing import NamedTuple

from common.decisions import Decision, decide
from common.errors import UserError
from decoding import batch_engine, fast_engine, fast_limits, fast_sizes, vllm_engine
from decoding.serving import Serving


class Engine(NamedTuple):
    """A way to get answers out of a model: the functions of one row."""

    why_not: Callable  # (serving) -> why `auto` may not take it, or None
    check: Callable  # (serving); UserError for what it cannot do, before anything is loaded
    open: Callable  # (serving, codec, tokens of the longest prompt) -> what `answers` takes for a model
    answers: Callable
    # (config, lengths, max_new_tokens, num_beams, device, fp8, common) -> the batch size that it would take; None: it
    # decides itself
    batch_size: Callable | None
    drafts: Callable | None = None  # (device, records at a time) -> (most tokens of a draft, why); None: it has none
    # (model, codec, prompts, drafts) -> `common`, tokens that all begin with and that are kept once; None: always 0
    common: Callable | None = None
    by_itself: bool = True  # whether `auto` may take it; False: only who asks for it gets it


ENGINES = {  # the fastest first
    "fast": Engine(
        fast_limits.why_not,
        fast_limits.check,
        fast_engine.open_model,
        fast_engine.answers,
        fast_sizes.choose_rows,
        fast_sizes.choose_drafts,
        fast_sizes.count_common,
    ),
    "batch": Engine(
        batch_engine.why_not,
        batch_engine.check,
        batch_engine.open_model,
        batch_engine.answers,
        batch_engine.choose_batch_size,
    ),
    "vllm": Engine(
        vllm_engine.why_not, vllm_engine.check, vllm_engine.open_model, vllm_engine.answers, None, by_itself=False
    ),
}


def choose_engine(asked: str, serving: Serving) -> Decision:
    """The name of the engine: the one asked for, or with `auto` the fastest that needs no other package.

    UserError for what the family or the engine cannot do.
    """
    family, rules = serving.family, serving.rules
    if not family.draws and (rules.do_sample or rules.repetition_penalty < 1):
        flag = "--do_sample" if rules.do_sample else f"--repetition_penalty {rules.repetition_penalty:g}"
        raise UserError(
            f"{flag}: not for family {family.name}, whose own generation is greedy or a beam search, with a penalty "
            "of 1 or more; drop it"
        )
    for flag, given, lacks in (
        ("--constrain", rules.constrain, "takes no rules"),
        ("--confidence", rules.confidence, "does not tell how likely its tokens are"),
    ):
        if given and not family.draws:
            raise UserError(f"{flag}: not for family {family.name}, whose own generation {lacks}; drop it")
    if asked == "auto":
        return _fastest(serving)
    if asked not in family.engines:
        raise UserError(
            f"--engine {asked}: not for family {family.name} (it has {', '.join(family.engines)}); drop the flag"
        )
    ENGINES[asked].check(serving)
    return Decision(asked, "as asked")


def _fastest(serving: Serving) -> Decision:
    """Of the engines that `auto` may take, the first that can serve; the others are said with what they lack."""
    lacking = []
    for name, engine in ENGINES.items():
        if not engine.by_itself or name not in serving.family.engines:
            continue
        reason = engine.why_not(serving)
        if reason is None:
            if lacking:
                return decide("engine", name, "; ".join(lacking))
            if len(serving.family.engines) > 1:
                return decide("engine", name, "it knows this base")
            return Decision(name, f"the one that family {serving.family.name} has")
        lacking.append(f"{name}: {reason}")
    raise AssertionError("the engine batch serves everything")
