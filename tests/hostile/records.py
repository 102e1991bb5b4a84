"""What tests/campaign.py does to records, and what it lets stand where a command writes."""

import json
import shutil
from pathlib import Path

from hostile.commands import CHECKPOINT, COMMANDS, SHARD, STEP, Case, lines_of, write_lines
from hostile.files import NESTED

# ---- records

DEEP = json.loads("[" * 500 + "]" * 500)
LONE = "\ud800"  # half a surrogate pair
MANY = "刘德华1961年9月27日出生于香港。" * 10_000
READERS = ("train", "predict", "convert", "score")
CHAT = [{"from": "human", "value": "抽取"}, {"from": "gpt", "value": "a"}]
SPO = [{"predicate": "a", "subject": "b", "object": {"@value": "c"}}]


def sets(**fields):
    return lambda rows: rows[1].update(fields)


def drops(*names: str):
    return lambda rows: [rows[1].pop(name, None) for name in names]


def only(row):
    def change(rows):
        rows[:] = [row]

    return change


# How each of READERS takes it: e: an error, r: a right result (but for this record), o: either; -: not its concern.
RECORDS = [
    ("no instruction", drops("instruction"), "eerr"),
    ("no input", drops("input"), "eerr"),
    ("no output", drops("output"), "e-ee"),
    ("no id", drops("id"), "rrre"),
    ("no field at all", drops("id", "cate", "instruction", "input", "output"), "eeee"),
    ("input null", sets(input=None), "eerr"),
    ("input a number", sets(input=7), "eeee"),
    ("input a list", sets(input=["a"]), "eeee"),
    ("input an object", sets(input={"text": "a"}), "eeee"),
    ("input empty", sets(input=""), "rrrr"),
    ("input spaces", sets(input=" \n\t"), "rrrr"),
    ("instruction null", sets(instruction=None), "eerr"),
    ("instruction a number", sets(instruction=1.5), "eeee"),
    ("instruction empty", sets(instruction=""), "orrr"),
    ("output null", sets(output=None), "e-eo"),
    ("output a list", sets(output=[["a", "b", "c"]]), "e-oo"),
    ("output a number", sets(output=3), "e-ee"),
    ("output empty", sets(output=""), "o-rr"),
    ("output half a surrogate pair", sets(output=f"(a,b,{LONE})"), "e-rr"),
    ("input half a surrogate pair", sets(input=f"a{LONE}b"), "eerr"),
    ("instruction half a surrogate pair", sets(instruction=f"a{LONE}b"), "eerr"),
    ("id half a surrogate pair", sets(id=LONE), "rrrr"),
    ("cate half a surrogate pair", sets(cate=LONE), "rrrr"),
    ("input control characters", sets(input="a\0b\x07c\x1b[31m\x7f"), "rrrr"),
    ("input special tokens", sets(input="a</s><s>[PAD]<eom><|im_end|>{instruction}{input}"), "rrrr"),
    ("input line separators", sets(input="a\u2028b\u2029c\x85d"), "rrrr"),
    ("input rare characters", sets(input="𠮷👨‍👩‍👧\ufeff\u202e"), "rrrr"),
    ("input too long", sets(input=MANY), "oorr"),
    ("instruction too long", sets(instruction=MANY), "oorr"),
    ("output too long", sets(output=f"(a,b,{MANY})"), "o-rr"),
    ("output brackets", sets(output="((((" * 5000), "o-rr"),
    ("output 20,000 triples", sets(output="(a,b,c)" * 20_000), "o-rr"),
    ("output broken objects", sets(output='[{"a":' * 5000), "o-rr"),
    ("id null", sets(id=None), "rrre"),
    ("id a float", sets(id=1.5), "rrro"),
    ("id 1.0", sets(id=904.0), "oooo"),
    ("id true", sets(id=True), "rroe"),
    ("id a list", sets(id=[1]), "rroe"),
    ("id an object", sets(id={"a": 1}), "rroe"),
    ("id empty", sets(id=""), "rroe"),
    ("id NaN", sets(id=float("nan")), "oooe"),
    ("id infinite", sets(id=float("inf")), "oooe"),
    ("id of 5,000 digits", sets(id="9" * 5000), "rrrr"),
    ("id a number of 4,000 digits", sets(id=10**4000), "rrrr"),
    ("id that an earlier record has", lambda rows: rows[1].update(id=rows[0]["id"]), "eere"),
    ("id as text that an earlier one has", lambda rows: rows[1].update(id=str(rows[0]["id"])), "rrro"),
    ("id of Arabic digits", sets(id="٣"), "rrrr"),
    ("id a superscript", sets(id="²"), "rrrr"),
    ("id negative", sets(id=-5), "rrrr"),
    ("kg a text", sets(kg="x"), "eere"),
    ("kg pairs", sets(kg=[["a", "b"]]), "eere"),
    ("kg with numbers", sets(kg=[["a", "b", 3]]), "eere"),
    ("kg null", sets(kg=None), "rrrr"),
    ("kg empty", sets(kg=[]), "rrrr"),
    ("another field NaN", sets(more=float("nan")), "oooo"),
    ("another field infinite", sets(more=float("-inf")), "oooo"),
    ("another field deep", sets(more=DEEP), "rrrr"),
    ("finish_reason of its own", sets(finish_reason=7), "rrrr"),
    ("a single record", lambda rows: rows.__delitem__(slice(1, None)), "oooo"),
    ("a list among the records", lambda rows: rows.insert(1, ["a"]), "eeee"),
    ("a text among the records", lambda rows: rows.insert(1, "a"), "eeee"),
    ("null among the records", lambda rows: rows.insert(1, None), "eeee"),
    ("each output empty", lambda rows: [row.update(output="") for row in rows], "e-rr"),
    ("each input empty", lambda rows: [row.update(input="") for row in rows], "oorr"),
    ("a single one of prompt and response", only({"prompt": "抽取", "response": "(a,b,c)"}), "eeee"),
    ("a single one of ShareGPT", only({"conversations": CHAT}), "eeee"),
    ("a single one of OpenAI", only({"messages": [{"role": "user", "content": "抽取"}]}), "eeee"),
    ("a single one of InstructIE", only({"id": 1, "text": "刘德华", "relation": [{"head": "a", "tail": "b"}]}), "eeee"),
    ("a single one of IEPile", only({"task": "RE", "instruction": '{"schema": ["出生地"]}', "output": "{}"}), "eeoo"),
    ("a single one of DuIE", only({"text": "刘德华", "spo_list": SPO}), "eeee"),
    ("a single one by its id", only({"904": {"instruction": "a", "input": "b", "output": "c"}}), "eeee"),
]


def of_records():
    for name, command in COMMANDS.items():
        part = next((part for part, kind in command.parts.items() if kind == "records"), None)
        for how, change_rows, letters in RECORDS if command.reads else ():
            letter = letters[READERS.index(command.reads)]
            if letter == "-":
                continue

            def change(place, flags, part=part, change_rows=change_rows):
                rows = lines_of(place / part)
                change_rows(rows)
                write_lines(place / part, rows)

            loose = how.startswith(("a single", "each")) or command.reads in ("train", "score")
            expected = {"e": "error", "r": "right", "o": "either"}[letter]
            yield Case("records", name, part, how, expected, change, "whole" if loose else "others")


# ---- what stands there already


def make_file(name: str, content: str = "", mode: int = 0o644):
    def change(place, flags):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content, encoding="utf-8")
        (place / name).chmod(mode)

    return change


def make_folder(name: str):
    return lambda place, flags: (place / name).mkdir(parents=True)


def copy(source: str, target: str):
    def change(place, flags):
        for file in (place / source).iterdir():
            (place / target).mkdir(exist_ok=True)
            shutil.copy(file, place / target / file.name)

    return change


CODE = "import os\nos.mkdir('code-ran')\n"
LEFT = [  # command, what stands there, how, expected, what makes it
    *[
        ("predict", "out.json.partial", how, expected, make_file("out.json.partial", content))
        for how, expected, content in (
            ("empty", "right", ""),
            ("half a line", "right", '{"input": "ab'),
            ("settings of another", "error", '{"input": "x", "batch_size": 3}\n'),
            ("no JSON", "error", "x\n"),
            ("a list", "error", "[]\n"),
            ("a number", "error", "1\n"),
            ("null", "either", "null\n"),
            ("nested", "error", "[" * NESTED + "\n"),
            ("answers alone", "error", '{"0": {"output": "a", "finish_reason": "eos"}}\n'),
        )
    ],
    ("predict", "out.json.partial", "a folder", "error", make_folder("out.json.partial")),
    ("predict", "out.json", "a folder", "error", make_folder("out.json")),
    ("predict", "out.json", "an older file", "right", make_file("out.json", "old")),
    ("predict", "out.json.tmp", "a folder", "error", make_folder("out.json.tmp")),
    ("predict", "out.run.json", "a folder", "either", make_folder("out.run.json")),
    ("predict", "base", "an adapter in it", "either", copy("adapter", "base")),
    ("predict", "base/model.py", "code", "right", make_file("base/modeling_llama.py", CODE)),
    ("predict", "base/chat_template.jinja", "broken", "right", make_file("base/chat_template.jinja", "{% x")),
    ("predict", "base/model.safetensors.index.json", "of others", "either", make_file(f"base/{SHARD}", "x")),
    ("finetune", "lora", "a file", "error", make_file("lora")),
    ("finetune", "lora", "an empty folder", "right", make_folder("lora")),
    ("finetune", "lora/run.json", "no JSON", "error", make_file("lora/run.json", "{")),
    ("finetune", "lora/run.json", "a list", "error", make_file("lora/run.json", "[]")),
    ("finetune", "lora/run.json", "a folder", "error", make_folder("lora/run.json")),
    ("finetune", "lora/training.lock", "a folder", "error", make_folder("lora/training.lock")),
    ("finetune", "lora/checkpoint-9", "empty", "either", make_folder("lora/checkpoint-9")),
    ("finetune", "lora/checkpoint-x", "a file", "either", make_file("lora/checkpoint-x")),
    ("finetune", "lora/log.jsonl", "a folder", "error", make_folder("lora/log.jsonl")),
    ("finetune", "lora/adapter_model.safetensors", "a folder", "error", make_folder("lora/adapter_model.safetensors")),
    ("resume", "lora/checkpoint-9", "empty", "right", make_folder("lora/checkpoint-9")),
    ("resume", "lora/checkpoint-x", "empty", "right", make_folder("lora/checkpoint-x")),
    ("resume", "lora/checkpoint-9", "a file", "right", make_file("lora/checkpoint-9")),
    ("resume", CHECKPOINT, "all but the state gone", "either", lambda place, flags: lose_all(place / CHECKPOINT)),
    ("ptuning", "pt", "a file", "error", make_file("pt")),
    ("ptuning", "pt/global_step-9", "empty", "either", make_folder("pt/global_step-9")),
    ("ptuning", "pt/global_step-x", "empty", "right", make_folder("pt/global_step-x")),
    ("ptuning", "pt/log.jsonl", "a folder", "error", make_folder("pt/log.jsonl")),
    ("resume_pt", "pt/global_step-9", "empty", "either", make_folder("pt/global_step-9")),
    ("resume_pt", "pt/global_step-9/state", "empty", "error", make_folder("pt/global_step-9/state")),
    ("resume_pt", "pt/tmp-global_step-3", "a file", "right", make_file("pt/tmp-global_step-3")),
    ("resume_pt", STEP, "a second process's state", "error", make_file(f"{STEP}/state/rank-1.pt")),
    ("convert", "submission.json.tmp", "a folder", "error", make_folder("submission.json.tmp")),
    ("convert", "submission.json", "an older file", "right", make_file("submission.json", "old")),
    ("score", "score.json", "a folder", "error", make_folder("score.json")),
    ("merge", "merged", "an empty folder", "either", make_folder("merged")),
    ("merge", "merged", "a folder with something in it", "error", make_file("merged/mine.txt", "mine")),
    ("merge", "merged", "a file", "error", make_file("merged")),
    ("merge", "merged.partial", "a file", "error", make_file("merged.partial")),
    ("merge", "merged.partial", "an empty folder", "right", make_folder("merged.partial")),
    ("merge", "merged.partial", "a folder of mine", "error", make_file("merged.partial/mine.txt", "mine")),
    ("merge", "merged.partial", "left by a killed run", "right", make_file("merged.partial/weight_diff.json", "{}")),
    ("recover", "tuned", "a folder with something in it", "error", make_file("tuned/mine.txt", "mine")),
    ("recover", "raw", "a pickle beside the weights", "right", make_file("raw/optimizer.pt", "x")),
    ("tencent", "in", "another .bin", "right", make_file("in/a.bin", "x")),
    ("gguf", "hf", "an empty folder", "error", make_folder("hf")),
    ("gguf", "hf", "a file", "error", make_file("hf")),
    ("gguf", "hf.tmp", "a file", "either", make_file("hf.tmp")),
]


def lose_all(checkpoint: Path) -> None:
    for file in checkpoint.iterdir():
        if file.name != "trainer_state.json":
            file.unlink()


def of_leftovers():
    for name, target, how, expected, change in LEFT:
        yield Case("leftovers", name, target, how, expected, change)
