"""Every fault in a data file is named by file, line and reason; nothing is lost on the way."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exams.soak.bad_files import FAULTS, GOOD
from qlora_core.data import json_rows
from qlora_core.data.problems import Problems
from qlora_core.data.rows import collect_rows, read_rows
from qlora_core.errors import BadInput

CASES = int(os.environ.get("QLORA_TEST_CASES", "1"))
"""Multiplies the property cases: 10 for a nightly run."""
POSITIONS = {"first": 0, "middle": 4, "last": 9}


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def refusal(source: str) -> str:
    with pytest.raises(BadInput) as caught:
        read_rows(source)
    return caught.value.problem


def test_the_table_has_forty_faults_or_more() -> None:
    assert len(FAULTS) >= 40


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_line_is_named_with_its_reason(tmp_path: Path, fault: str, position: str) -> None:
    line, reason = FAULTS[fault]
    at = POSITIONS[position]
    lines = [*GOOD[:at], line, *GOOD[at:]]
    source = write(tmp_path / "train.jsonl", b"\n".join(lines) + b"\n")
    problems = Problems()
    rows = collect_rows(source, problems)
    assert [at + 1] == [problem.line for problem in problems.first]
    assert [r.line for r in rows.rows] == [n for n in range(1, 11) if n != at + 1]
    assert any(part in problems.first[0].reason for part in reason.split("|"))
    assert f"{source}:{at + 1}" in refusal(source)


@pytest.mark.parametrize("fault", [f for f in FAULTS if "UTF-8" not in FAULTS[f][1]])
def test_a_json_list_goes_on_after_a_faulty_row(tmp_path: Path, fault: str) -> None:
    line = FAULTS[fault][0]
    rows = [*GOOD[:3], line, *GOOD[3:]]
    source = write(tmp_path / "a.json", b"[\n  " + b",\n  ".join(rows) + b"\n]\n")
    problems = Problems()
    read = collect_rows(source, problems)
    assert [problem.line for problem in problems.first] == [5]
    assert {2, 3, 4, 7, 8, 9, 10, 11} <= {row.line for row in read.rows}


def test_all_problems_are_listed_at_once_and_counted(tmp_path: Path) -> None:
    lines = [GOOD[0], *[b"broken"] * 30, GOOD[1]]
    problem = refusal(write(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert "30 bad rows, 2 good" in problem
    assert all(f"a.jsonl:{line}:1" in problem for line in range(2, 22))
    assert "... and 10 more" in problem


def test_a_fault_after_two_hundred_thousand_rows_is_named_as_one_on_line_four_is(
    tmp_path: Path,
) -> None:
    lines = [GOOD[0]] * 200_000 + [b'{"question": "q", "question": "q"}']
    assert "a.jsonl:200001: " in refusal(write(tmp_path / "a.jsonl", b"\n".join(lines)))


def test_the_column_of_a_fault_is_where_an_editor_shows_it(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", b'  {"a": "x", "b": oops}\n')
    assert "a.jsonl:1:19: Expecting value" in refusal(source)
    pretty = b'[\n  {\n    "a": "x",\n    "b": oops\n  }\n]'
    assert "b.json:4:10: Expecting value" in refusal(write(tmp_path / "b.json", pretty))


def test_bad_rows_go_to_a_side_file_and_the_rest_is_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", b"\n".join([GOOD[0], b"caf\xe9", GOOD[1], b"\\ud800"]))
    side = tmp_path / "deep" / "skipped.jsonl"
    rows = read_rows(source, skip_bad=True, side_file=side)
    skipped = [json.loads(line) for line in side.read_text("utf-8").splitlines()]
    assert [row.line for row in rows.rows] == [1, 3]
    assert [row["line"] for row in skipped] == [2, 4]
    assert [row["row"] for row in skipped] == ["caf\\xe9\n", "\\ud800"]
    assert rows.files[0].rows == 4


def test_no_side_file_appears_without_a_bad_row(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", GOOD[0])
    read_rows(source, skip_bad=True, side_file=tmp_path / "skipped.jsonl")
    assert not (tmp_path / "skipped.jsonl").exists()


def test_a_line_without_end_is_refused_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "MAX_LINE", 1000)
    long = b'{"question": "' + b"x" * 5000 + b'"}'
    source = write(tmp_path / "a.jsonl", b"\n".join([GOOD[0], long, GOOD[1]]))
    problems = Problems()
    assert [row.line for row in collect_rows(source, problems).rows] == [1, 3]
    assert "longer than 1,000 bytes" in problems.first[0].reason


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_marks_line_ends_and_blank_lines_are_no_faults(tmp_path: Path, end: bytes) -> None:
    content = b"\xef\xbb\xbf" + end.join([GOOD[0], b"", b"  ", GOOD[1]])
    rows = read_rows(write(tmp_path / "a.jsonl", content)).rows
    assert [row.line for row in rows] == [1, 4]
    assert rows[0].values == {"question": "q0", "answer": "a0"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", b"[" + b",".join(GOOD) + b"]"),
        ("list.jsonl", b"[\n" + b",\n".join(GOOD) + b"\n]"),
        ("lines.json", b"\n".join(GOOD)),
        ("pretty.json", json.dumps([json.loads(g) for g in GOOD], indent=2).encode()),
        ("sequence.json", b"\n".join(json.dumps(json.loads(g), indent=1).encode() for g in GOOD)),
        ("lines.ndjson", b"\n".join(GOOD)),
        ("table.csv", b"question,answer\n" + b"".join(b"q%d,a%d\n" % (i, i) for i in range(9))),
        ("table.tsv", b"question\tanswer\n" + b"".join(b"q%d\ta%d\n" % (i, i) for i in range(9))),
        ("german.csv", b"question;answer\n" + b"".join(b"q%d;a%d\n" % (i, i) for i in range(9))),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_the_content_decides_how_a_file_is_read(
    tmp_path: Path, name: str, content: bytes, zipped: bool
) -> None:
    path = tmp_path / (name + ".gz" * zipped)
    rows = read_rows(write(path, gzip.compress(content) if zipped else content)).rows
    assert [json.loads(line) for line in GOOD] == [row.values for row in rows]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b'[{"a": 1}, {"a": 2}', 1, "never closed"),
        (b'[\n{"a": 1},\n]', 2, "comma before the end"),
        (b'[\n{"a": 1}\n]\nmore', 4, "text after the end of the list"),
        (b'[{"a": oops}, {"a": 2}]', 1, "nothing after it could be read"),
        (b"[", 1, "never closed"),
        (b'[\n{"a": 1},\n{"b"', 3, "nothing after it could be read"),
        ('[{"a": 1}]'.encode("utf-16"), 1, "UTF-16"),
        (b'[\n{"a": "\xff"}]', 2, "not UTF-8"),
    ],
)
def test_a_broken_json_list_is_named(
    tmp_path: Path, content: bytes, line: int, reason: str
) -> None:
    problems = Problems()
    collect_rows(write(tmp_path / "a.json", content), problems)
    assert any(p.line == line and reason in p.reason for p in problems.first), problems.first


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"q", "1 fields, the header has 2"),
        (b"q,a,more", "3 fields, the header has 2"),
        (b'"q"x,a', "not CSV"),
        (b"caf\xe9,a", "not UTF-8"),
    ],
)
def test_a_faulty_csv_record_is_named_by_its_first_line(
    tmp_path: Path, record: bytes, reason: str
) -> None:
    content = b"question,answer\n" + b'"two\nlines",a\n' + record + b"\nq,a\n"
    problems = Problems()
    rows = collect_rows(write(tmp_path / "a.csv", content), problems).rows
    assert [row.line for row in rows] == [2, 5]
    assert [problem.line for problem in problems.first] == [4]
    assert reason in problems.first[0].reason


def test_an_unclosed_quote_is_named_where_it_opens(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", b'question,answer\nq,a\nq,"a\nq,a\nq,a\n')
    assert "a.csv:3: not CSV" in refusal(source)


def test_a_column_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    assert "'answer' stands twice" in refusal(write(tmp_path / "a.csv", b"answer,answer\nq,a\n"))


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.txt", b"one\n\ntwo\n")).rows
    assert [row.values for row in rows] == [{"text": "one\n\ntwo\n"}]
    assert "b.txt:2: byte 4 of the line" in refusal(write(tmp_path / "b.txt", b"one\ncaf\xe9"))


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"question": ["q0", "q1"], "answer": ["a0", None]}), path)
    rows = read_rows(path).rows
    assert [(row.line, row.values["answer"]) for row in rows] == [(1, "a0"), (2, None)]
    assert "not a readable Parquet file" in refusal(write(tmp_path / "b.parquet", b"PAR1 no"))


def test_keys_that_parquet_made_up_are_not_there(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": None}}]
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"call": calls, "note": [None, "n"]}), path)
    rows = [row.values for row in read_rows(path).rows]
    assert rows[0] == {"call": {"name": "f", "arguments": {"x": 1}}, "note": None}
    assert rows[1] == {"call": {"name": "g", "arguments": {}}, "note": "n"}


def not_utf8(path: Path, texts: list[bytes], **more: list[Any]) -> str:
    """A Parquet file whose column ``text`` holds these bytes, UTF-8 or not."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    starts = [sum(map(len, texts[:number])) for number in range(len(texts) + 1)]
    offsets = pa.py_buffer(b"".join(start.to_bytes(4, "little") for start in starts))
    column = pa.Array.from_buffers(
        pa.string(), len(texts), [None, offsets, pa.py_buffer(b"".join(texts))]
    )
    nested = pa.StructArray.from_arrays([pa.ListArray.from_arrays(
        pa.array(range(len(texts) + 1), pa.int32()), column)], names=["inner"])  # fmt: skip
    columns = {"text": column, **({"nested": nested} if more.get("nested") else {})}
    parquet.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize("nested", [[], [True]])
def test_parquet_text_that_is_not_utf8_is_a_bad_row(tmp_path: Path, nested: list[Any]) -> None:
    source = not_utf8(tmp_path / "a.parquet", [b"one", b"caf\xe9", b"two", b"\xff"], nested=nested)
    problem = refusal(source)
    assert "2 bad rows, 2 good" in problem
    assert f'{source}:2: "text" holds bytes that are not UTF-8' in problem
    side = tmp_path / "skipped.jsonl"
    rows = read_rows(source, skip_bad=True, side_file=side)
    assert [(row.line, row.values["text"]) for row in rows.rows] == [(1, "one"), (3, "two")]
    assert rows.files[0].rows == 4
    skipped = [json.loads(line)["row"] for line in side.read_text("utf-8").splitlines()]
    assert [row["text"] for row in skipped] == ["caf\\xe9", "\\xff"]
    if nested:
        assert skipped[0]["nested"] == {"inner": ["caf\\xe9"]}


def test_a_parquet_value_that_python_has_no_form_for_is_a_bad_row(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    when = pa.array([0, 2**62], pa.timestamp("us"))
    parquet.write_table(pa.table({"text": ["a", "b"], "when": when}), tmp_path / "a.parquet")
    assert 'a.parquet:2: "when" cannot be read' in refusal(str(tmp_path / "a.parquet"))


def test_a_parquet_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = [pa.array(["a"]), pa.array(["b"])]
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_arrays(columns, names=["text", "text"]), path)
    assert f"{path}: the column 'text' stands twice" in refusal(str(path))


def folder_of(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(GOOD[0])
    return path


@pytest.mark.parametrize("name", ["c.jsonl.zst", "d.jsonl.bz2", "e.jsonlines", "f.arrow", "g.gz"])
def test_a_folder_with_rows_of_a_kind_that_is_not_read_is_refused(
    tmp_path: Path, name: str
) -> None:
    folder = folder_of(tmp_path, "a.jsonl", name)
    assert f"holds 1 data files of a kind that is not read: {name}" in refusal(str(folder))
    assert read_rows(folder / "a.jsonl").ignored == []


def test_what_lies_beside_the_data_of_a_folder_is_named(tmp_path: Path) -> None:
    names = (".gitattributes", ".c.zst", "README.md", "LICENSE", "a.jsonl", "plot.png", "sub/b.csv")
    read = read_rows(folder_of(tmp_path, *names))
    assert [Path(file.name).name for file in read.files] == ["a.jsonl"]
    left = [".c.zst", ".gitattributes", "LICENSE", "README.md", "plot.png", "sub/"]
    assert read.ignored == [f"{tmp_path}/{name}" for name in left]


def test_a_readme_among_texts_is_one_of_them(tmp_path: Path) -> None:
    read = read_rows(folder_of(tmp_path, "README.md", "chapter.md"))
    assert (len(read.files), read.ignored) == (2, [])


def test_a_subfolder_that_is_named_too_is_not_called_unread(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.jsonl", "sub/b.jsonl")
    read = read_rows(f"{folder},{folder / 'sub'}")
    assert (len(read.files), read.ignored) == (2, [])


def test_a_folder_of_subfolders_says_what_it_holds(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "README.md", "data/b.jsonl")
    assert "holds no data file, only README.md, data/" in refusal(str(folder))


def test_a_cut_off_archive_says_where_reading_ended(tmp_path: Path) -> None:
    content = gzip.compress(b"\n".join(GOOD * 500))
    problem = refusal(write(tmp_path / "a.jsonl.gz", content[: len(content) // 2]))
    assert "cannot be read from here on" in problem


def test_sources_are_joined_in_order(tmp_path: Path) -> None:
    first, second = write(tmp_path / "b.jsonl", GOOD[0]), write(tmp_path / "a.jsonl", GOOD[1])
    rows = read_rows(f"{first}, {second}")
    assert [row.values["question"] for row in rows.rows] == ["q0", "q1"]
    assert [first, second] == [file.name for file in rows.files]
    assert all(file.sha256 and file.size_bytes for file in rows.files)
    assert [row.values["question"] for row in read_rows(tmp_path).rows] == ["q1", "q0"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("trian.jsonl", "did you mean"),
        ("nowhere/at/all.jsonl", "no such data file"),
        ("squad", "OWNER/NAME"),
        ("", "no data source"),
        ("empty-folder", "holds no data file"),
        ("model.bin", "unknown kind of data file"),
    ],
)
def test_a_source_that_is_none_says_what_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", GOOD[0])
    write(tmp_path / "model.bin", b"x")
    (tmp_path / "empty-folder").mkdir()
    with pytest.raises(BadInput) as caught:
        read_rows(source)
    assert says in str(caught.value)


def test_an_unreachable_hub_dataset_is_one_clear_message() -> None:
    with pytest.raises(BadInput) as caught:
        read_rows("nobody-at-all/no-such-set", offline=True)
    assert "nobody-at-all/no-such-set" in caught.value.problem


LINES = st.lists(st.one_of(st.sampled_from(GOOD), st.binary(max_size=40)), max_size=12)


@settings(max_examples=150 * CASES, deadline=None)
@given(lines=LINES)
def test_every_line_of_random_bytes_is_kept_or_refused(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    content = b"\n".join(lines)
    source = write(tmp_path_factory.getbasetemp() / "random.jsonl", content)
    if content.lstrip().startswith(b"["):
        return
    problems = Problems()
    rows = collect_rows(source, problems).rows
    places = sorted([*(row.line for row in rows), *(problem.line for problem in problems.first)])
    first = content.removeprefix(b"\xef\xbb\xbf")
    filled = [n for n, line in enumerate(first.split(b"\n"), start=1) if line.strip(b" \t\r\n")]
    assert filled == places


@settings(max_examples=150 * CASES, deadline=None)
@given(data=st.data())
def test_a_mutated_json_list_never_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(b"[\n" + b",\n".join(GOOD) + b"\n]")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    source = write(tmp_path_factory.getbasetemp() / "mutated.json", bytes(content))
    problems = Problems()
    rows = collect_rows(source, problems)
    assert rows.files[0].rows == len(rows.rows) + problems.count
    assert all(0 < problem.line <= 12 for problem in problems.first)
