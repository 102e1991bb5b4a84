"""Records of other projects: each form recognised, read, written; what is lost, counted and named."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from data.asking import PLAINLY, Asking, ask_all_parts, ask_apart, groups_of
from data.formats import FORMATS, READ, TABLES, WRITTEN, choose_form, read_as, write_as
from data.records import load_records, load_training
from data.topics import read_topics
from data.wording import word_instruction
from kg.metrics import triples_of
from kg.schema import read_schema

TEXT = "《甲》是乙导演的电影，2003年在丙上映"


def iepile(schema, output, **more):
    question = {"instruction": "你是专门进行关系抽取的专家。", "schema": schema, "input": TEXT}
    row = {"task": "RE", "source": "DuIE2.0", "instruction": json.dumps(question, ensure_ascii=False), **more}
    return row if output is None else {**row, "output": json.dumps(output, ensure_ascii=False)}


def spo(predicate, tail, **more):
    return {"predicate": predicate, "subject": "甲", "subject_type": "影视作品", "object": tail, **more}


PAIR = {"subject": "甲", "object": "乙"}
KG = [["甲", "导演", "乙"]]
EXAMPLES = {  # form -> a record of it, the triples, the relations asked for (None: not said), what it loses
    "iepile": (iepile(["导演", "主演"], {"导演": [PAIR], "主演": []}), KG, ["导演", "主演"], []),
    "instructie": (
        {
            "id": "bac7",
            "cate": "作品",
            "text": TEXT,
            "relation": [
                {"head": "甲", "head_type": "作品", "relation": "导演", "tail": "乙", "tail_type": "人物"},
            ],
        },
        KG,
        ["导演"],
        ["types of heads and tails"],
    ),
    "duie": (
        {
            "text": TEXT,
            "spo_list": [
                spo("导演", {"@value": "乙"}, object_type={"@value": "人物"}),
                spo("上映时间", {"@value": "2003年", "inArea": "丙"}, object_type={"@value": "Date", "inArea": "地点"}),
            ],
        },
        [*KG, ["甲", "上映时间", "2003年"]],
        ["导演", "上映时间"],
        ["types of heads and tails", "other parts of complex objects"],
    ),
    "cmeie": (
        {"text": TEXT, "spo_list": [spo("导演", {"@value": "乙"}, Combined=True)]},
        KG,
        ["导演"],
        ["types of heads and tails", "Combined"],
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "抽取"}, {"from": "gpt", "value": "(甲,导演,乙)"}]},
        KG,
        None,
        [],
    ),
    "messages": (
        {"messages": [{"role": "user", "content": "抽取"}, {"role": "assistant", "content": "(甲,导演,乙)"}]},
        KG,
        None,
        [],
    ),
}


@pytest.fixture
def save(tmp_path):
    def to_file(*rows, name="x.json"):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
        return path

    return to_file


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_form_is_recognised_and_read_by_itself(save, capsys, name):
    row, kg, relations, lost = EXAMPLES[name]
    path = save(row)
    (record,) = load_records(path)
    assert [list(triple) for triple in triples_of(record)] == kg
    assert read_schema(record["instruction"]) == relations
    assert record["id"] == row.get("id", 1)
    assert record.get("cate") == row.get("cate")
    assert record["input"] == (TEXT if relations else "")
    said = capsys.readouterr().err
    assert f"{path}: read as {FORMATS[name].title} (as by convert.py --from {name}): 1 records" in said
    assert [word for word in lost if f"{word} of 1 records (the first: " in said] == lost
    assert ("lost" in said) == bool(lost)


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_record_is_of_two_forms(name):
    assert choose_form("x", EXAMPLES[name][0]) == name


def test_duie_1_has_its_objects_as_texts(save):
    (record,) = load_records(save({"text": TEXT, "spo_list": [spo("导演", "乙", object_type="人物")], "postag": []}))
    assert record["kg"] == KG
    assert record["postag"] == []


def test_records_that_answer_nothing_say_so(save):
    rows = [{"text": TEXT, "spo_list": [spo("导演", "乙")]}, {"text": "空", "spo_list": []}]
    first, second = load_records(save(*rows))
    assert (second["output"], second["kg"]) == ("NAN", [])
    assert second["instruction"] == first["instruction"]


def test_a_topic_asks_for_the_relations_of_its_records(save):
    rows = [
        {"cate": cate, "text": TEXT, "relation": [{"head": "甲", "relation": relation, "tail": "乙"}]}
        for cate, relation in (("作品", "导演"), ("人物", "国籍"), ("作品", "编剧"))
    ]
    asked = [read_schema(record["instruction"]) for record in load_records(save(*rows))]
    assert asked == [["导演", "编剧"], ["国籍"], ["导演", "编剧"]]


def test_an_english_text_is_asked_in_english(save):
    row = {"text": "Ada met Bob.", "relation": [{"head": "Ada", "relation": "met", "tail": "Bob"}]}
    (record,) = load_records(save(row))
    assert record["instruction"].startswith("Given the list of candidate relations ['met'], extract")
    assert read_schema(record["instruction"]) == ["met"]


def test_schema_parts_of_one_id_are_one_record_that_is_asked_apart(save, capsys):
    rows = [
        iepile(["主演", "编剧"], {"主演": [], "编剧": []}, id="a"),
        iepile(["作者"], {"作者": []}, id="b"),
        iepile(["导演"], {"导演": [PAIR]}, id="a"),
    ]
    path = save(*rows)
    whole, other = load_records(path)
    assert read_schema(whole["instruction"]) == ["主演", "编剧", "导演"]
    assert (whole["id"], whole["kg"], whole["schema_groups"]) == ("a", KG, [["主演", "编剧"], ["导演"]])
    assert (other["id"], "schema_groups" in other) == ("b", False)
    parts = ask_all_parts([whole, other], PLAINLY)
    assert [[read_schema(part["instruction"]) for part in one] for one in parts] == [
        [["主演", "编剧"], ["导演"]],
        [["作者"]],
    ]
    smaller = ask_all_parts([whole], Asking(batch=1))[0]
    assert [read_schema(part["instruction"]) for part in smaller] == [["主演"], ["编剧"], ["导演"]]
    assert [one["output"] for one in ask_apart([whole, other])] == ["NAN", "(甲,导演,乙)", "NAN"]
    back = write_as("iepile", [(1, whole), (2, other)])
    schemas = [json.loads(row["instruction"])["schema"] for _, row in back.records]
    assert schemas == [["主演", "编剧"], ["导演"], ["作者"]]
    assert [row["id"] for _, row in back.records] == ["a", "a", "b"]


@pytest.mark.parametrize(
    "groups", [[["导演"]], [["导演"], ["主演", "作者"]], "导演", [[]], [["导演"], 3], [[["导演"]]]]
)
def test_groups_that_are_not_the_lists_own_count_for_nothing(groups):
    assert groups_of({"schema_groups": groups}, ["导演", "主演"]) == [["导演", "主演"]]


def test_tasks_that_ask_for_no_relations_are_left_out_and_named(save, capsys):
    event = iepile([{"event_type": "上映", "arguments": ["时间"]}], {"上映": []})
    rows = [iepile(["人物"], {"人物": ["乙"]}, task="NER"), iepile(["导演"], {"导演": [PAIR]}), {**event, "task": "EE"}]
    assert [record["kg"] for record in load_training(save(*rows))] == [KG]
    said = capsys.readouterr().err
    assert "all (task NER, which asks for no relations) of 1 records (the first: line 1)" in said
    assert "all (task EE, which asks for no relations) of 1 records (the first: line 3)" in said
    with pytest.raises(UserError, match="none of its 1 records asks for relations; all .task NER"):
        load_records(save(rows[0]))


@pytest.mark.parametrize(
    ("schema", "output", "lost"),
    [
        ({"导演": "电影的导演"}, {"导演": [PAIR]}, "descriptions of relations"),
        ([{"subject_type": "作品", "predicate": "导演", "object_type": "人物"}], {"导演": [PAIR]}, "descriptions"),
        ([{"entity_type": "作品", "attributes": ["导演"]}], {"作品": {"甲": {"导演": "乙"}}}, "descriptions"),
    ],
)
def test_oneke_schemas_with_descriptions_and_attributes(save, capsys, schema, output, lost):
    (record,) = load_records(save(iepile(schema, output)))
    assert (record["kg"], read_schema(record["instruction"])) == (KG, ["导演"])
    assert lost in capsys.readouterr().err


def test_test_data_of_iepile_has_a_label_or_none(save):
    label = json.dumps([{"head": "甲", "relation": "导演", "tail": "乙"}], ensure_ascii=False)
    labelled, bare = iepile(["导演"], None, label=label, id="a"), iepile(["导演"], None, id="b")
    first, second = load_records(save(labelled, bare), needs=("instruction", "input"))
    assert first["kg"] == KG
    assert "output" not in second


def test_a_conversation_of_several_questions_is_several_records(save, capsys):
    turns = [("system", "你"), ("user", "关系列表：['导演']\n甲文"), ("assistant", "(甲,导演,乙)"), ("user", "还有？")]
    row = {"id": "c", "messages": [{"role": role, "content": text} for role, text in turns]}
    first, second = load_records(save(row), needs=("instruction", "input"))
    assert (first["instruction"], first["input"], first["output"]) == ("关系列表：['导演']", "甲文", "(甲,导演,乙)")
    assert (second["id"], second["instruction"], second.get("output")) == ("c-2", "还有？", None)
    assert first["system"] == "你"
    said = capsys.readouterr().err
    assert "earlier turns, which a later question does not show of 1 records" in said
    assert "the system's line, which is not asked of 2 records" in said


def test_two_conversations_of_one_id_are_not_put_together(save):
    rows = [
        {
            "id": 1,
            "messages": [{"role": "user", "content": f"关系列表：['{name}']"}, {"role": "assistant", "content": ""}],
        }
        for name in ("导演", "编剧")
    ]
    with pytest.raises(UserError, match="x.json:2: id 1 already stands on line 1"):
        load_records(save(*rows))


def test_predictions_of_llama_factory_are_told_which_way_to_read(save):
    path = save({"prompt": "问", "predict": "(甲,导演,乙)", "label": "(甲,导演,丙)"})
    with pytest.raises(UserError) as caught:
        load_records(path)
    assert "--from llamafactory (LLaMA-Factory's predictions) or --from llamafactory-gold" in str(caught.value)
    pairs = [(1, json.loads(path.read_text(encoding="utf-8")))]
    said = [read_as(name, path, pairs).records[0][1]["output"] for name in ("llamafactory", "llamafactory-gold")]
    assert said == ["(甲,导演,乙)", "(甲,导演,丙)"]


@pytest.mark.parametrize(
    ("name", "row", "fault"),
    [
        ("iepile", {"instruction": "抽取", "output": "{}"}, "its instruction is no JSON object"),
        ("iepile", iepile([], {}), "its schema names no relation"),
        ("duie", {"text": TEXT, "spo_list": ["甲"]}, "spo_list is no list of objects"),
        ("duie", {"text": TEXT, "spo_list": [{"subject": "甲", "object": "乙"}]}, "lacks subject, predicate or object"),
        ("duie", {"spo_list": []}, "text is missing"),
        ("instructie", {"text": TEXT, "relation": "导演"}, "relation is no list of objects"),
        ("sharegpt", {"conversations": [{"from": "tool", "value": "x"}]}, "no conversation of known roles"),
        ("messages", {"messages": [{"role": "assistant", "content": "x"}]}, "nobody asks anything"),
        ("llamafactory", {"prompt": "x"}, "prompt, predict or label is missing"),
    ],
)
def test_a_record_that_is_of_another_form_is_named_with_its_line(name, row, fault):
    with pytest.raises(UserError) as caught:
        read_as(name, "x.json", [(7, row)])
    assert str(caught.value).startswith("x.json:7: ")
    assert fault in str(caught.value)
    assert f"; expected {FORMATS[name].title}: {FORMATS[name].fields}" in str(caught.value)


def test_texts_alone_need_relations_to_ask_for(tmp_path):
    pairs = [(1, {"text": TEXT})]
    with pytest.raises(UserError, match="--relations FILE"):
        read_as("duie", "x.json", pairs)
    for number, text in enumerate(('["导演"]', '{"predicate": "导演"}\n', '{"作品": ["编剧"], "": ["导演"]}')):
        path = tmp_path / f"{number}.json"
        path.write_text(text, encoding="utf-8")
        record = read_as("duie", "x.json", pairs, read_topics(path, "--relations")).records[0][1]
        assert read_schema(record["instruction"]) == ["导演"]
        assert "output" not in record


@pytest.mark.parametrize("text", ["{", "[]", "[3]", '[" "]', '{"a": {"b": 1}}', "导演"])
def test_a_file_of_relations_that_is_none_is_an_error(tmp_path, text):
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="--relations .*r.json: .*a JSON list of names"):
        read_topics(tmp_path / "r.json", "--relations")


def test_the_table_names_what_is_read_and_written():
    assert set(WRITTEN) == {"iepile", "duie", "messages"}
    assert set(READ) == {*FORMATS, *TABLES}


NAME = st.text(st.sampled_from("位于面积导演人口所属ab"), min_size=1, max_size=4)
PART = st.text(st.sampled_from("甲乙丙丁《》,，()'\" 1a"), min_size=1, max_size=6)


@st.composite
def our_records(draw):
    """Records that ask in this project's words, with and without answers, asked apart or not."""
    names = draw(st.lists(NAME, min_size=1, max_size=5, unique=True))
    text = draw(st.text(max_size=20))
    record = {
        "id": draw(st.integers(0, 99)),
        "cate": "作品",
        "instruction": word_instruction(names, text),
        "input": text,
    }
    if draw(st.booleans()):
        triple = st.tuples(PART, st.sampled_from(names), PART)
        kg = list(dict.fromkeys(draw(st.lists(triple, max_size=4))))
        record |= {"output": ",".join(f"({','.join(one)})" for one in kg) or "NAN", "kg": [list(one) for one in kg]}
    if draw(st.booleans()) and len(names) > 1:
        record["schema_groups"] = [names[:1], names[1:]]
    return record


def by_relation(record):
    """The record with its triples in the order of their relations in the list, as IEPile has them."""
    if "kg" not in record:
        return record
    names = read_schema(record["instruction"])
    kg = sorted(record["kg"], key=lambda triple: names.index(triple[1]))
    return {**record, "kg": kg, "output": ",".join(f"({','.join(one)})" for one in kg) or "NAN"}


@settings(max_examples=60, deadline=None)
@given(our_records())
def test_iepile_and_back_is_the_same_record(record):
    written = write_as("iepile", [(1, record)])
    assert not written.lost
    back = [one for _, one in read_as("iepile", "x", written.records).records]
    assert [{name: value for name, value in one.items() if name != "source"} for one in back] == [by_relation(record)]


@settings(max_examples=60, deadline=None)
@given(our_records())
def test_duie_and_back_has_the_same_triples(record):
    written = write_as("duie", [(1, record)])
    names = read_schema(record["instruction"])
    ((_, back),) = read_as("duie", "x", written.records, {"": names}).records
    same = {name: value for name, value in record.items() if name != "schema_groups"}
    assert back == same
    answered = {triple[1] for triple in record.get("kg", ())}
    assert bool(written.lost) == (answered != set(names))


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1), st.text(), st.none() | st.text(), st.none() | st.text(min_size=1))
def test_messages_and_back_are_the_same_messages(instruction, text, output, system):
    given_fields = {"instruction": instruction, "input": text, "output": output, "system": system}
    record = {"id": 3, **{name: value for name, value in given_fields.items() if value is not None}}
    written = write_as("messages", [(1, record)])
    back = read_as("messages", "x", written.records)
    assert write_as("messages", back.records).records == written.records


def test_a_question_of_the_contest_comes_back_whole_from_messages():
    record = {"id": 1, "cate": "作品", "instruction": word_instruction(["导演"], TEXT), "input": TEXT, "output": "NAN"}
    ((_, row),) = write_as("messages", [(1, record)]).records
    assert [one["role"] for one in row["messages"]] == ["user", "assistant"]
    assert read_as("messages", "x", [(1, row)]).records[0][1] == record


def test_triples_of_relations_that_are_not_asked_for_are_named():
    record = {"id": 4, "instruction": "你好", "input": TEXT, "output": "(甲,导演,乙)"}
    assert write_as("iepile", [(1, record)]).lost == {"words of the instruction": [4]}
    record["instruction"] = word_instruction(["编剧"], TEXT)
    assert write_as("iepile", [(1, record)]).lost == {"triples of relations that are not asked for": [4]}
