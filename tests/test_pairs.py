"""Lists of users and nodes: what is wrong is reported by line, and the rest goes on."""

import pytest

from sidecar.pairs import Wrong, read_pairs


def test_csv_and_json_lines_are_read_with_or_without_a_heading() -> None:
    assert list(
        read_pairs(
            ["user_id,node_name", "1,explain", ' 2 , "a, b" ', "\r\n", "# done", "007,quiz", f"{2**63 - 1},quiz"]
        )
    ) == [
        (1, "explain"),
        (2, "a, b"),
        (7, "quiz"),
        (2**63 - 1, "quiz"),
    ]
    lines = ['{"user_id": 1, "node_name": "explain"}', '{"node_name": "quiz", "user_id": "2", "more": []}', "3,x"]
    assert list(read_pairs(lines)) == [(1, "explain"), (2, "quiz"), (3, "x")]
    assert list(read_pairs(["\ufeffuser_id,node_name", "1,a"])) == [(1, "a")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("x,explain", "user_id: 'x' is no number from 1 to 9223372036854775807"),
        ("0,explain", "user_id: '0' is no number from 1 to 9223372036854775807"),
        ("-1,explain", "user_id: '-1' is no number from 1 to 9223372036854775807"),
        ("1.5,explain", "user_id: '1.5' is no number from 1 to 9223372036854775807"),
        ("٣,explain", "user_id: '٣' is no number from 1 to 9223372036854775807"),
        ("9" * 30 + ",explain", "is no number from 1 to 9223372036854775807"),
        ("9223372036854775808,explain", "user_id: '9223372036854775808' is no number from 1 to 9223372036854775807"),
        (",explain", "user_id: '' is no number from 1 to 9223372036854775807"),
        ("1,", "node_name: wanted is a name of 1 to 200 printable characters"),
        ("1," + "x" * 201, "node_name: wanted"),
        ("1,a\x00b", "node_name: wanted"),
        ("5", "1 columns; wanted is user_id,node_name"),
        ("1,a,b", "3 columns"),
        ("user_id,node_name", "'user_id' is no number"),
        ("1," + "x" * 140_000, "no CSV: field larger than field limit"),
        ("1,a\rb", "no CSV: "),
        ("{", "no JSON"),
        ("{}", 'wanted is {"user_id": …, "node_name": …}'),
        ('{"user_id": true, "node_name": "a"}', "user_id: 'True' is no number from 1 to 9223372036854775807"),
        ('{"user_id": 1.0, "node_name": "a"}', "user_id: '1.0' is no number from 1 to 9223372036854775807"),
        ('{"user_id": 1, "node_name": 2}', "node_name: wanted"),
        ("{" * 100_000, "no JSON"),
    ],
)
def test_a_line_that_is_no_pair_is_reported_with_its_number_and_the_next_is_read(line: str, says: str) -> None:
    first, wrong, last = read_pairs(["1,a", line, "2,b"])
    assert (first, last) == ((1, "a"), (2, "b"))
    assert isinstance(wrong, Wrong)
    assert wrong.line == 2
    assert says in wrong.what
    assert str(wrong).startswith("line 2: ")
