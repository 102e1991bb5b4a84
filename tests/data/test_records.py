import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.files import to_line, write_rows
from data.records import load_records, read_records, read_with_lines, split_records, stream_records

LINE_SEPARATOR, NEXT_LINE = chr(0x2028), chr(0x85)  # str.splitlines would cut at both


def record(number=0, **changes):
    whole = {"id": number, "cate": "人物", "instruction": "抽取", "input": f"文本{number}", "output": "(甲,乙,丙)"}
    return {key: value for key, value in {**whole, **changes}.items() if value is not ...}


def as_lines(*records):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records)


@pytest.fixture
def save(tmp_path):
    def to_file(text, name="data.json", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return to_file


def error_of(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    return str(caught.value)


RECORDS = [record(0), record(1), record(2)]


@pytest.mark.parametrize(
    "text",
    [
        as_lines(*RECORDS),
        as_lines(*RECORDS).rstrip("\n"),
        as_lines(*RECORDS).replace("\n", "\r\n"),
        "\n\n" + as_lines(*RECORDS).replace("\n", "\n  \n"),
        json.dumps(RECORDS),
        json.dumps(RECORDS, ensure_ascii=False, indent=2),
        "\n \n" + json.dumps(RECORDS, indent=1).replace("},", "}\n\n,\n") + "\n",
    ],
    ids=["lines", "no last newline", "crlf", "blank lines", "list", "indented list", "list with blank lines"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lines_and_lists_hold_the_same_records_with_and_without_a_byte_order_mark(save, text, encoding):
    assert load_records(save(text, encoding=encoding)) == RECORDS


@pytest.mark.parametrize("form", [as_lines, lambda *rows: json.dumps(rows, ensure_ascii=False)], ids=["lines", "list"])
@pytest.mark.parametrize("separator", [LINE_SEPARATOR, NEXT_LINE])
def test_only_a_newline_ends_a_record_not_a_unicode_line_separator(save, form, separator):
    rows = [record(0, input=f"前{separator}后"), record(1)]
    assert read_records(save(form(*rows))) == rows


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('{"id": 0}\n\n{"id": 1}\n', [1, 3]),
        ('\n[\n  {"id": 0},\n  {\n    "id": 1\n  },\n  {"id": 2}\n]\n', [3, 4, 7]),
    ],
    ids=["lines", "list"],
)
def test_every_record_knows_the_line_it_starts_on(save, text, lines):
    assert [line for line, _ in read_with_lines(save(text))] == lines


def test_unknown_fields_and_their_order_survive_reading(save):
    row = {"zusatz": [1, None], **record(7), "kg": [["甲", "乙", "丙"]]}
    (back,) = load_records(save(as_lines(row)))
    assert list(back.items()) == list(row.items())


def test_a_missing_file_is_an_error_that_names_its_neighbours(save, tmp_path):
    save("", "train.json")
    save("", "valid.jsonl")
    message = error_of(load_records, tmp_path / "trian.json")
    assert "trian.json: no such file" in message
    assert "train.json, valid.jsonl" in message


def test_a_missing_file_in_a_missing_folder_is_an_error_too(tmp_path):
    assert "no such file" in error_of(load_records, tmp_path / "nowhere" / "train.json")


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff", "[]", " [\n]\n"])
def test_a_file_without_a_record_is_called_empty(save, text):
    path = save(text)
    message = error_of(load_records, path)
    assert str(path) in message
    assert "empty" in message


def test_a_file_that_is_not_utf8_is_an_error_that_names_the_file(save):
    path = save(as_lines(record()), encoding="gb18030")
    message = error_of(load_records, path)
    assert str(path) in message
    assert "UTF-8" in message


def test_half_a_json_line_is_an_error_with_file_and_line(save):
    path = save(as_lines(record(0), record(1))[:-20] + "\n" + as_lines(record(2)))
    assert error_of(load_records, path).startswith(f"{path}:2: not JSON")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": "b\t"}', "Invalid control character at column 9"),
        ('{"a": "b', "Unterminated string starting at column 7"),
        ('{"a" 1}', "Expecting ':' delimiter at column 6"),
        ('[{"a": "b\t"}]', "Invalid control character"),
        ('[{"a": "b', "Unterminated string"),
    ],
)
def test_the_place_in_a_broken_line_is_said_once(save, text, why):
    assert error_of(load_records, save(text)).split("not JSON ")[1].startswith(f"({why})")


def test_half_a_list_is_an_error_with_file_and_line(save):
    text = json.dumps(RECORDS, indent=1)
    for end in (text.index("文本2".encode("unicode_escape").decode()), text.rindex("]")):
        path = save(text[:end])
        line = text[:end].count("\n") + 1
        message = error_of(load_records, path)
        assert message.startswith(f"{path}:{line}: not JSON")
        assert "closed by ]" in message


def test_text_after_the_list_is_an_error(save):
    path = save(json.dumps(RECORDS) + "\n" + as_lines(record(3)))
    assert str(path) in error_of(load_records, path)


@pytest.mark.parametrize(
    ("value", "kind"),
    [("[1]", "a list"), ('"text"', "a string"), ("3", "a number"), ("null", "null"), ("true", "a boolean")],
)
def test_a_line_that_is_no_object_is_an_error_that_says_what_it_is(save, value, kind):
    path = save(as_lines(record()) + value + "\n")
    assert error_of(load_records, path).startswith(f"{path}:2: found {kind}, expected an object")


def test_a_list_of_something_else_is_an_error_with_its_line(save):
    path = save('[\n{"id": 0},\n"text"\n]')
    assert error_of(read_records, path).startswith(f"{path}:3: found a string, expected an object")


@pytest.mark.parametrize("field", ["instruction", "input", "output"])
def test_a_missing_field_is_an_error_with_line_and_field(save, field):
    path = save(as_lines(record(0), record(1, **{field: ...})))
    message = error_of(load_records, path)
    assert message.startswith(f"{path}:2: the field {field} is missing")
    assert "cate" in message  # what was found


@pytest.mark.parametrize("field", ["instruction", "input", "output"])
@pytest.mark.parametrize(("value", "kind"), [(None, "null"), (5, "a number"), (["a"], "a list"), ({}, "an object")])
def test_a_field_of_the_wrong_type_is_an_error_with_line_field_and_kind(save, field, value, kind):
    path = save(as_lines(record(0), record(1, **{field: value})))
    assert error_of(load_records, path) == f"{path}:2: {field} is {kind}, expected a string"


@pytest.mark.parametrize("identity", [0, 7, "a7"])
def test_an_id_that_stands_twice_is_an_error_with_both_lines(save, identity):
    path = save(as_lines(record(identity), record(1), record(identity)))
    message = error_of(load_records, path)
    assert message.startswith(f"{path}:3: id {identity!r}")
    assert "line 1" in message


def test_records_without_an_id_are_fine(save):
    rows = [record(id=...), record(id=...)]
    assert load_records(save(as_lines(*rows))) == rows


def test_training_on_records_without_any_output_is_said_to_look_like_the_test_set(save):
    path = save(as_lines(record(0, output=...), record(1, output=...)))
    message = error_of(load_records, path)
    assert str(path) in message
    assert "looks like the test set" in message


def test_prediction_needs_no_output(save):
    rows = [record(0, output=...), record(1, output=...)]
    assert load_records(save(as_lines(*rows)), needs=("instruction", "input")) == rows


@settings(derandomize=True, deadline=None, database=None)
@given(st.data())
def test_split_parts_are_disjoint_complete_seeded_and_in_file_order(data):
    count = data.draw(st.integers(1, 40))
    held_out = data.draw(st.integers(0, count - 1))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rows = [{"id": number} for number in range(count)]
    train, valid = split_records(rows, held_out, seed)
    assert len(valid) == held_out
    assert sorted(row["id"] for row in train + valid) == list(range(count))
    assert train == sorted(train, key=lambda row: row["id"])
    assert valid == sorted(valid, key=lambda row: row["id"])
    assert split_records(rows, held_out, seed) == (train, valid)


def test_another_seed_holds_out_other_records():
    rows = [{"id": number} for number in range(100)]
    assert len({str(split_records(rows, 10, seed)[1]) for seed in range(5)}) == 5


@pytest.mark.parametrize("size", [3, 4, 1000])
def test_a_split_that_leaves_nothing_to_train_on_is_an_error_with_the_count(size):
    message = error_of(split_records, RECORDS, size, 42)
    assert f"--val_set_size {size}" in message
    assert "only 3 records" in message


def test_a_negative_split_is_an_error_that_names_the_flag():
    assert "--val_set_size -1" in error_of(split_records, RECORDS, -1, 42)


@pytest.mark.parametrize("piece", [1, 2, 7, 100])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_piece_by_piece(tmp_path, piece, indent):
    rows = [{"id": n, "text": '一二\n]}\\"' * n, "kg": [["a", "[", "}"]]} for n in range(5)]
    path = tmp_path / "rows.json"
    path.write_text("\n " + json.dumps(rows, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
    whole = read_with_lines(path)
    assert read_with_lines(path, max(piece, 3)) == whole
    assert [row for _, row in whole] == rows


@pytest.mark.parametrize("piece", [3, 10, 2**20])
def test_the_line_where_a_list_breaks_is_named_wherever_the_pieces_end(tmp_path, piece):
    path = tmp_path / "rows.json"
    path.write_text('[\n{"a": 1},\n{"a": 2},\n{"a": oops}\n]', encoding="utf-8")
    assert f"{path}:4: not JSON" in error_of(read_with_lines, path, piece)
    path.write_text('[\n{"a": 1},\n{"a": 2},\n', encoding="utf-8")
    assert f"{path}:4: not JSON" in error_of(read_with_lines, path, piece)


@pytest.mark.parametrize("text", ['[{"a": 1} {"a": 2}]', '[{"a": 1},,{"a": 2}]', '[{"a": 1}\n{"a": 2}]'])
def test_items_of_a_list_are_divided_by_one_comma(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    assert "not JSON" in error_of(read_records, path)


def test_a_folder_is_called_one_and_what_it_holds_is_listed(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.json").touch()
    message = error_of(read_records, tmp_path)
    assert "is a folder, expected a file" in message
    assert "11.json, …" in message
    assert "12.json" not in message


def test_bad_lines_are_collected_instead_when_a_list_is_given_for_them(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'{"id": 1}\n{"id":\n\xff\n3\n' + b"[" * 100_000 + b'\n{"id": 2}\n')
    bad = []
    assert list(stream_records(path, bad)) == [(1, {"id": 1}), (6, {"id": 2})]
    assert [message.split(": ")[1].split(" (")[0] for message in bad] == [
        "not JSON",
        "not UTF-8",
        "found a number, expected an object with instruction, input, output",
        "not JSON",
    ]
    assert [message.split(": ")[0] for message in bad] == [f"{path}:{line}" for line in (2, 3, 4, 5)]


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 5000, "-" + "9" * 5000])
@pytest.mark.parametrize("form", ["{}\n{}\n", "[{},\n{}]"], ids=["lines", "list"])
def test_what_is_no_number_in_json_is_named_with_its_line(tmp_path, number, form):
    path = tmp_path / "rows.json"
    path.write_text(form.format('{"a": 1.5e300}', f'{{"id": {number}}}'))
    message = error_of(read_records, path)
    assert message.startswith(f"{path}:2: not JSON (")
    assert "is no number in JSON; write null, or leave the field out" in message
    assert len(message) < 400


def test_the_line_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes('{"a": "一"}\n{"a": "'.encode() + "文".encode("gbk") + b'"}\n')
    assert f"{path}:2: not UTF-8 (byte 7 of the line); save it as UTF-8" in error_of(read_records, path)


def test_a_file_that_ends_within_a_character_is_called_so(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes('{"a": "一"}\n{"a": "二'.encode()[:-1])
    assert f"{path}:2: not UTF-8 (byte 7 of the line); the file ends within a character" in error_of(read_records, path)


def test_half_a_surrogate_pair_is_escaped_and_other_text_is_not():
    assert to_line({"a": "一\ud83d"}) == '{"a": "\\u4e00\\ud83d"}'
    assert to_line({"a": "一😀"}) == '{"a": "一😀"}'


@settings(derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.none()), min_size=1))
def test_what_is_written_is_read_back(tmp_path, rows):
    write_rows(tmp_path / "rows.json", rows)
    assert read_records(tmp_path / "rows.json") == rows


def test_written_chinese_is_readable_and_one_record_a_line(tmp_path):
    write_rows(tmp_path / "new" / "folder" / "rows.json", RECORDS)
    text = (tmp_path / "new" / "folder" / "rows.json").read_text(encoding="utf-8")
    assert text == as_lines(*RECORDS)
    assert "文本" in text


def test_an_exception_while_writing_leaves_the_old_file(tmp_path):
    def broken():
        yield record(5)
        raise RuntimeError("disk full")

    path = tmp_path / "rows.json"
    write_rows(path, RECORDS)
    with pytest.raises(RuntimeError):
        write_rows(path, broken())
    assert read_records(path) == RECORDS


def test_an_exception_while_writing_leaves_no_half_file(tmp_path):
    with pytest.raises(TypeError):
        write_rows(tmp_path / "rows.json", [record(), {"id": object()}])
    assert not (tmp_path / "rows.json").exists()


def test_the_old_file_stays_until_the_new_one_is_whole_on_disk(tmp_path, monkeypatch):
    def killed(*names):
        raise KeyboardInterrupt

    path = tmp_path / "rows.json"
    write_rows(path, RECORDS)
    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_rows(path, [record(5)])
    assert read_records(path) == RECORDS


@pytest.mark.parametrize(
    "kg", ["(a,b,c)", [["a", "b"]], [{"head": "a", "relation": "b", "tail": "c"}], [["a", "b", 3]]]
)
def test_a_kg_that_is_not_a_list_of_triples_is_named_with_its_line(tmp_path, kg):
    file = tmp_path / "records.json"
    record = {"instruction": "i", "input": "t", "output": "o"}
    file.write_text(json.dumps({**record, "kg": [["a", "b", "c"]]}) + "\n" + json.dumps({**record, "kg": kg}) + "\n")
    with pytest.raises(UserError, match=r"records.json:2: kg is not a list of \[head, relation, tail\]"):
        load_records(file)


def test_half_a_surrogate_pair_is_refused_before_a_tokenizer_sees_it(tmp_path):
    file = tmp_path / "in.json"
    file.write_text('{"instruction": "a", "input": "b", "output": "c"}\n{"instruction": "a", "input": "\\ud800"}\n')
    with pytest.raises(UserError, match=r"in.json:2: input holds half a surrogate pair"):
        load_records(file, needs=("instruction", "input"))
