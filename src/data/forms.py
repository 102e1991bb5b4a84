"""Records that lack a field: told by their fields what they may be, and what to make of them."""

from data.formats import COMMAND, FORMATS, recognise

NAMES = {  # a field here -> what others call it
    "instruction": ("prompt", "question", "query", "instruct", "command", "task", "system"),
    "input": ("text", "sentence", "context", "content", "passage", "document", "sent", "inputs", "source"),
    "output": (
        "answer",
        "response",
        "completion",
        "label",
        "labels",
        "target",
        "targets",
        "outputs",
        "predict",
        "<ans>",
    ),
}
ADDED = {
    "instruction": "add the field instruction, which asks for the triples and names the relations",
    "input": 'add the field input, the text ("" where the instruction holds it)',
}
CONVERSATIONS = ("conversations", "conversation", "messages", "dialog", "dialogue", "history")
TRIPLES = ("relation", "relations", "spo_list", "triples", "triple_list")


def how_to_turn(record: dict, needs: tuple[str, ...]) -> str:
    """What to do with a record of another project's form that lacks a field of `needs`, in words; "" if unknown."""
    missing, words = [field for field in needs if field not in record], []
    nested = {field for field, value in record.items() if isinstance(value, (list, dict))}
    if not missing:
        return ""
    if forms := recognise(record):
        which = " or ".join(f"--from {name} ({FORMATS[name].title})" for name in forms)
        return f"{COMMAND} {which} --pred_path FILE --tgt_path NEW makes records of it"
    if {"windows", "triples"} <= nested:
        return "a document, as src/extract.py writes it: its command, given again with --store, makes the graph"
    for field in nested.intersection(CONVERSATIONS):
        words.append(
            f"{field} hold a conversation, of another form than --from sharegpt and --from messages of {COMMAND} read: "
            "make a record of each pair of turns, what the user says as instruction, the reply as output"
        )
        return words[0]
    for field in nested.intersection(TRIPLES) if "output" in missing else ():
        words.append(f"{field} holds the triples: write them as the output (head,relation,tail),(…)")
        missing.remove("output")
        break
    renamed = {field: name for field in missing for name in reversed(NAMES[field]) if isinstance(record.get(name), str)}
    words += [f"rename {old} to {field}" for field, old in renamed.items()]
    if words or len(missing) < len(needs):  # else nothing is known of it
        words += [ADDED[field] for field in missing if field in ADDED and field not in renamed]
    if words:
        words.append(f"other forms are read by {COMMAND} --from: {', '.join(FORMATS)}")
    return "; ".join(words)
