"""What --constrain costs: the same records by the engine `fast` without it and with it, side by side in one run.

python scripts/bench_constrain.py -- --lora_weights lora/quickstart-gemma3-400 --merge_lora --input_file data/many.json
python scripts/bench_constrain.py --widen 30 -- --lora_weights lora/quickstart-gemma3-400 --merge_lora

What stands behind `--` are flags of src/inference.py. A small base on a large GPU waits for the CPU, which also checks
the tokens. `--widen N` makes the work that of a larger base: every feed-forward part gets N times its width, filled up
with zeros, so that the answers stay the same but for rounding.
"""

import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from common.errors import UserError, run_script
from common.flags import Range, check_ranges, command, parse_flags, split_flags
from data.records import load_records
from decoding import constrained, fast_engine
from decoding.answers import Answer
from decoding.fast_sizes import choose_rows, count_common
from prediction.opening import open_model, plan_adapter
from prediction.predicting import limit
from prediction.questions import ask_all
from utils.args_predict import parse_inference

ROOT = Path(__file__).resolve().parents[1]
WAYS = {"without": (), "relations": ("--constrain",), "text": ("--constrain", "text")}
RANGES = {"rounds": Range(1, 1000), "widen": Range(1, 1000)}
SAMPLE = ("--input_file", str(ROOT / "data/sample/valid.json"))


class CountedWalks(constrained.Walks):
    """Counts the tokens that are refused."""

    refusals = 0

    def mend(self, busy, places):
        CountedWalks.refusals += len(self.refused)
        return super().mend(busy, places)


def widen(model, times: int) -> None:
    """Every feed-forward part of a LLaMA-like model `times` as wide, in place. UserError for a base of another form."""
    parts = [module for module in model.modules() if hasattr(module, "down_proj") and hasattr(module, "up_proj")]
    layers = [(name, getattr(part, name)) for part in parts for name in ("gate_proj", "up_proj", "down_proj")]
    plain = [type(layer) is torch.nn.Linear and layer.weight.numel() and layer.bias is None for _, layer in layers]
    if not layers or not all(plain):
        raise UserError(
            "--widen needs --merge_lora, 16 or 32 bits, a GPU, and a base with gate_proj, up_proj and down_proj, "
            "all without biases"
        )
    for name, layer in layers:
        dim = 1 if name == "down_proj" else 0
        weight = layer.weight.detach()
        more = list(weight.shape)
        more[dim] *= times - 1
        layer.weight = torch.nn.Parameter(torch.cat([weight, weight.new_zeros(more)], dim), requires_grad=False)


def main(argv=None) -> None:
    argv, flags = split_flags(sys.argv[1:] if argv is None else argv)
    parser = command(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="each way so often, in turn; a first run is not counted")
    parser.add_argument("--widen", type=int, default=1, help="times the width of the feed-forward parts; default: 1")
    arguments = parse_flags(parser, argv)
    check_ranges(arguments, RANGES)
    fixed = ["--engine", "fast", "--output_file", "results/bench/none.json", *SAMPLE, *flags]
    parsed = {way: parse_inference([*fixed, *more]) for way, more in WAYS.items()}
    plans = {way: plan_adapter(*given) for way, given in parsed.items()}
    plan = plans["without"]
    records = load_records(parsed["without"][1].input_file, needs=("instruction", "input"))
    questions = dict(enumerate(ask_all(plan, records, None)))
    asked = {number: q.ids for number, q in sorted(questions.items(), key=lambda item: -len(item[1].ids))}
    model = open_model(plan, list(asked.values()))
    if arguments.widen > 1:
        widen(model, arguments.widen)
    rules, lengths = plan.serving.rules, list(map(len, asked.values()))
    how = rules.max_new_tokens, 1, model.device, rules.fp8, count_common(model, plan.codec, asked.values())
    rules = rules._replace(batch_size=choose_rows(model.config, lengths, *how))
    limits = {way: limit(plans[way], questions) if more else None for way, more in WAYS.items()}
    fast_engine.Walks = CountedWalks

    def answer(way: str) -> tuple[float, int, Counter]:
        """Seconds, new tokens, and how the answers ended."""
        start, tokens, ends = time.monotonic(), 0, Counter()
        for made in fast_engine.answers(model, plan.codec, asked, rules, limits=limits[way]):
            good = [one for one in made.values() if isinstance(one, Answer)]
            tokens += sum(one.tokens for one in good)
            ends.update(["failed"] * (len(made) - len(good)) + [one.finish_reason for one in good])
        return time.monotonic() - start, tokens, ends

    answer("without")  # kernels are compiled
    seconds = {way: [] for way in WAYS}
    print(f"{len(asked)} records, {rules.batch_size} at a time")
    print(f"{'constrain':>10} {'seconds':>8} {'records/s':>10} {'new tokens':>11} {'rejected':>8}  ended")
    for _ in range(arguments.rounds):
        for way in WAYS:
            CountedWalks.refusals = 0
            took, tokens, ends = answer(way)
            seconds[way].append(took)
            pace = f"{took:8.2f} {len(asked) / took:10.1f} {tokens:11,} {CountedWalks.refusals:8,}"
            print(f"{way:>10} {pace}  {', '.join(f'{end} {count}' for end, count in sorted(ends.items()))}", flush=True)
    middle = {way: statistics.median(took) for way, took in seconds.items()}
    for way in list(WAYS)[1:]:
        print(f"median of {way}: {middle[way] / middle['without']:.3f} of the time without --constrain")


if __name__ == "__main__":
    run_script(main)
