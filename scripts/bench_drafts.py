"""What drafts are worth: the same records by the engine `fast` with each number of drafts, side by side in one run.

python scripts/bench_drafts.py --batch_sizes 1 32 -- --lora_weights lora/quickstart-gemma3-400 --merge_lora
python scripts/bench_drafts.py --replay --repeat 10 -- --model_name_or_path models/counting-llama-7b

What stands behind `--` are flags of src/inference.py. With --replay a model says the right answers of --gold, whatever
it computes: its weights may be random, and all that an engine does is done, the argmax of all logits included. Only
the likeliest token of each row is raised to be the recorded one, so that drafts are right as often as they would be.
"""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from common.errors import UserError, run_script, say
from common.flags import command, parse_flags, split_flags
from data.records import load_records
from decoding import fast_engine
from decoding.answers import Answer
from decoding.fast_sizes import choose_drafts, choose_rows, count_common
from prediction.opening import open_model, plan_adapter
from prediction.questions import ask_all
from utils.args_predict import parse_inference

ROOT = Path(__file__).resolve().parents[1]
CERTAIN = 3e4  # a logit above all others, within what 16 bits hold


class Replay:
    """Makes a model say what is recorded: by the place where a token is kept, the token that follows it."""

    def __init__(self, model, answers: dict[tuple[int, ...], list[int]]):
        self.answers, self.compute, self.forward = answers, fast_engine.compute, model.forward
        self.following = None  # of each kept token
        fast_engine.compute, model.forward = self._compute, self._forward

    def stop(self, model) -> None:
        fast_engine.compute, model.forward = self.compute, self.forward

    def _compute(self, model, places, prompts, taken, shared, about=None):
        self._make_room(places.kept)
        for prompt, place in zip(prompts, taken, strict=True):
            new = torch.tensor(self.answers[tuple(prompt)], device=model.device)
            first = place.start + len(prompt) - 1
            new = new[: place.end - first]
            self.following[first : first + len(new)] = new
        return self.compute(model, places, prompts, taken, shared, about)

    def _make_room(self, kept) -> None:
        """Once for each `Kept`: a captured step goes on reading the tensor that it met."""
        if self.following is None or len(self.following) != len(kept.layers[0][0]):
            with torch.inference_mode(False):  # it is written to outside of a pass, too
                self.following = torch.zeros(len(kept.layers[0][0]), dtype=torch.long, device=kept.device)

    def _forward(self, *, past_key_values=None, logits_to_keep=None, **more):
        self._make_room(past_key_values)
        kept = {} if logits_to_keep is None else {"logits_to_keep": logits_to_keep}
        out = self.forward(past_key_values=past_key_values, **kept, **more)
        at = past_key_values.at if logits_to_keep is None else past_key_values.at[logits_to_keep]
        out.logits[0].scatter_(1, self.following[at][:, None], CERTAIN)
        return out


def answer(model, plan, waiting: dict[int, list[int]], rules) -> tuple[dict[int, Answer], float]:
    """The answers to prompts (number -> ids), and the seconds that they took."""
    start, made = time.time(), {}
    for group in fast_engine.answers(model, plan.codec, waiting, rules):
        made |= group
    return made, time.time() - start


def main(argv=None) -> None:
    argv, flags = split_flags(sys.argv[1:] if argv is None else argv)
    parser = command(__doc__)
    parser.add_argument(
        "--drafts", nargs="+", default=["0", "auto"], help="most tokens of a draft, or auto; each a row"
    )
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 0], help="records at a time; 0: all that fit")
    parser.add_argument("--input_file", default=str(ROOT / "data/sample/valid.json"), help="records to answer")
    parser.add_argument("--gold", default=str(ROOT / "data/sample/valid_gold.json"), help="the same with their output")
    parser.add_argument("--records", type=int, help="the first so many; default: all")
    parser.add_argument("--repeat", type=int, default=1, help="ask each record so many times, as if there were more")
    parser.add_argument("--replay", action="store_true", help="the model says the output of --gold")
    arguments = parse_flags(parser, argv)
    given = ["--engine", "fast", "--input_file", arguments.input_file, "--output_file", "results/bench/none.json"]
    model_args, args = parse_inference([*given, *flags])
    plan = plan_adapter(model_args, args)
    records = load_records(arguments.input_file, needs=("instruction", "input"))[: arguments.records]
    prompts = [question.ids for question in ask_all(plan, records, None)]
    model = open_model(plan, prompts)
    gold = {record["id"]: record["output"] for record in load_records(arguments.gold, needs=("output",))}
    if lacking := [record["id"] for record in records if record["id"] not in gold]:
        raise UserError(f"--gold {arguments.gold}: no record has the id {lacking[0]} of --input_file")
    right = [[*plan.codec.text_ids(gold[record["id"]]), plan.codec.eos_id] for record in records]
    replay = (
        Replay(model, {tuple(ids): new for ids, new in zip(prompts, right, strict=True)}) if arguments.replay else None
    )
    order = sorted(list(enumerate(prompts)) * arguments.repeat, key=lambda item: -len(item[1]))
    asked = {number: ids for number, (_, ids) in enumerate(order)}
    lengths, rules = [len(ids) for ids in asked.values()], plan.serving.rules
    print(f"{'records at a time':>17} {'drafts':>7} {'seconds':>8} {'records/s':>10} {'new tokens/s':>13} {'equal':>6}")
    for size in arguments.batch_sizes:
        how = rules.max_new_tokens, 1, model.device, rules.fp8, count_common(model, plan.codec, asked.values())
        rows = size or choose_rows(model.config, lengths, *how)
        first = None
        for asked_drafts in arguments.drafts:
            auto = asked_drafts == "auto"
            most = choose_drafts(model.device, rows)[0] if auto else int(asked_drafts)
            own = rules._replace(batch_size=rows, drafts=most)
            if model.device.type == "cuda":
                answer(model, plan, dict(list(asked.items())[:2]), own)  # kernels are compiled
                torch.cuda.synchronize()
            made, seconds = answer(model, plan, asked, own)
            first = first or made
            equal = sum(made[number] == first[number] for number in made)
            tokens = sum(one.tokens for one in made.values() if isinstance(one, Answer))
            pace = f"{seconds:8.1f} {len(made) / seconds:10.2f} {tokens / seconds:13,.0f} {equal:6}"
            print(f"{rows:17} {asked_drafts:>7} {pace}", flush=True)
    if replay:
        replay.stop(model)
        say("answers were those of --gold, replayed; what the model computed was not looked at")


if __name__ == "__main__":
    run_script(main)
