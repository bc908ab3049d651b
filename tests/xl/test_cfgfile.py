# SPDX-License-Identifier: GPL-2.0-only
"""The language of Xen's configuration files: what it means, and how its errors read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0.toolstack.cfgfile import ConfigSyntaxError, Value, merge, parse


def values(text: str) -> dict[str, Value]:
    return {key: setting.value for key, setting in parse(text, "F").items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("\n \t\n# nothing\n;;\n", {}),
        ("a=1", {"a": "1"}),
        ("a=1;b=0x1F", None),
        ("a=1;b=0x1f;\n c = 'x' # why\n", {"a": "1", "b": "0x1f", "c": "x"}),
        ("a.b_c9=007\n", {"a.b_c9": "007"}),
        ('a=\'it "is"\'\nb="it\'s"', {"a": 'it "is"', "b": "it's"}),
        (r"a='\'\\\n\t\x41\101'", {"a": "'\\\n\tAA"}),
        ("a='#;[]='", {"a": "#;[]="}),
        ("a=[]", {"a": []}),
        ("a=[\n]", {"a": []}),
        ("a=['x', 1,]", {"a": ["x", "1"]}),
        ("a=[ # one\n 'x'\n ,\n 'y'\n # two\n ,\n]\nb=2", {"a": ["x", "y"], "b": "2"}),
        ("a=[[1],[2,[3]],]", {"a": [["1"], ["2", ["3"]]]}),
        ("a=1\na=2", {"a": "2"}),
        ("a='x'\na+='y'", {"a": "xy"}),
        ("a=[1]\na+=[2]\n", {"a": ["1", "2"]}),
        ("a+=[2]\n", {"a": ["2"]}),
        ("a=1 # last line, no newline", {"a": "1"}),
    ],
)
def test_what_a_text_means(text: str, expected: dict[str, Value] | None) -> None:
    if expected is None:
        with pytest.raises(ConfigSyntaxError):
            values(text)
    else:
        assert values(text) == expected


FILE_LEVEL = "expecting $end or IDENT or NEWLINE or ';'"


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("name = [\n", ["1 near `': syntax error, unexpected $end, expecting ']'"]),
        ("a=[\n\n1\n", ["3 near `': syntax error, unexpected $end, expecting ']'"]),
        ("5\n", [f"1 near `5': syntax error, unexpected NUMBER, {FILE_LEVEL}"]),
        ("a 5\n", ["1 near `5': syntax error, unexpected NUMBER, expecting += or '='"]),
        ("a=b\n", ["1 near `b': syntax error, unexpected IDENT, expecting STRING or NUMBER or '['"]),
        ("a==1\n", ["1 near `=': syntax error, unexpected '=', expecting STRING or NUMBER or '['"]),
        ("\na=\n", ["2 near <newline>: syntax error, unexpected NEWLINE, expecting STRING or NUMBER or '['"]),
        ("a=1 2\n", ["1 near `2': syntax error, unexpected NUMBER, expecting $end"]),
        ("a=12gb\n", ["1 near `gb': syntax error, unexpected IDENT, expecting $end"]),
        ("a=[,]\n", ["1 near `,': syntax error, unexpected ',', expecting ']'"]),
        ("a=[1 2]\n", ["1 near `2': syntax error, unexpected NUMBER, expecting ']'"]),
        ("a=[1;]\n", ["1 near `;': syntax error, unexpected ';', expecting ']'"]),
        ("+=\n", [f"1 near `+=': syntax error, unexpected +=, {FILE_LEVEL}"]),
        ("Name='x'\n", ["1 near `Name='x'': lexical error"]),
        ("a='x\n", ["1 near `'x': lexical error"]),
        ("a=1\r\n", ["1 near `': lexical error"]),
        ("a='\x07'$\x07\n", ["1 near `$?': lexical error"]),
        ("a='\\q'\n", ["1 near `'\\q'': invalid character after backslash in quoted string"]),
        ("a='\\xyz'\n", ["1 near `'\\xyz'': invalid digit after backslash hex in quoted string"]),
        ("a=1\na+=[1]\n", ["2 near `a': can't add [list] to \"string\" or vice versa"]),
        # several errors, and those that only follow from an earlier one kept back
        ("a=1\n=\n=\nb 1\nc=1\nd 1\n", [
            f"2 near `=': syntax error, unexpected '=', {FILE_LEVEL}",
            "6 near `1': syntax error, unexpected NUMBER, expecting += or '='",
        ]),
        ("x=1\na=$ 1 2\nb=1\n", ["2 near `$': lexical error"]),
    ],
)  # fmt: skip
def test_how_errors_read(text: str, errors: list[str]) -> None:
    with pytest.raises(ConfigSyntaxError) as caught:
        parse(text, "F")
    expected = [f"F:{line} {rest}".replace(" near", ": config parsing error near", 1) for line, rest in
                (error.split(" ", 1) for error in errors)]  # fmt: skip
    assert caught.value.lines == expected


def test_what_looks_like_python_says_so() -> None:
    with pytest.raises(ConfigSyntaxError) as caught:
        parse("import os\nmemory = os.getpid()\n", "F")
    assert caught.value.lines[-2] == "warning: Config file looks like it contains Python code."


def test_lists_nested_beyond_reason_are_an_error() -> None:
    with pytest.raises(ConfigSyntaxError, match="nested too deeply"):
        parse("a=" + "[" * 5000, "F")


def test_settings_know_where_they_stand() -> None:
    setting = parse("a=1\n\nb+=[\n2]\n", "guest.cfg")["b"]
    assert (setting.where, setting.added) == ("guest.cfg:3", True)


def test_the_command_line_comes_after_the_file() -> None:
    merged = merge(parse("a=1\nb='x'", "F"), parse("a=2\nb+='y'\nc=3", "L"))
    assert {key: (setting.value, setting.source) for key, setting in merged.items()} == {
        "a": ("2", "L"),
        "b": ("xy", "L"),
        "c": ("3", "L"),
    }
    with pytest.raises(ConfigSyntaxError, match="L:1: can't add"):
        merge(parse("a=1", "F"), parse("a+=[2]", "L"))


@given(st.text(alphabet=st.sampled_from("ab1x=+[],;\n#'\" \\@-A\x00é")))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse(text, "F")
    except ConfigSyntaxError as error:
        assert error.lines
        assert all("\n" not in line for line in error.lines)
