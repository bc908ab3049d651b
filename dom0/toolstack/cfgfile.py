# SPDX-License-Identifier: GPL-2.0-only
"""The language of Xen's configuration files: text in, settings with their line numbers out.

Used for xl.cfg; it knows nothing of what the settings mean. Pure functions, no state.

The grammar and the wording of errors are those of libxlu_cfg (tools/libs/util). A file is a run of `KEY=VALUE` or
`KEY+=VALUE`, each ended by a newline or `;`. A value is a number, a quoted string, or a list of values in brackets,
where newlines and a trailing comma are welcome. After an error the rest of the line is skipped and parsing goes on,
so that one run reports what is wrong on several lines; errors that follow from the last one are kept back until
three tokens in a row have been fine.

Where libxlu is plainly wrong we are not: an error at the end of a line names that line (libxlu: the one before),
`\\x41` and `\\101` in strings mean what they say, and the last line of a file may be a comment without a newline.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import attrs

from dom0.toolstack.text import printable

Value: TypeAlias = "str | list[Value]"
"""Numbers stay text: what they must be depends on the key."""


class ConfigSyntaxError(Exception):
    """A file that is no configuration. `lines` is what to tell the user, one error a line."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


@attrs.frozen
class Setting:
    """One key as it stands after the whole text has been read."""

    key: str
    value: Value
    source: str
    line: int
    added: bool = False
    """The last assignment was a `+=`."""

    @property
    def where(self) -> str:
        return f"{self.source}:{self.line}"


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


class _SyntaxError(Exception):
    def __init__(self, token: _Token, message: str) -> None:
        self.token = token
        self.message = message


_TOKEN = re.compile(
    r"""(?P<blank>[ \t]+)
      | (?P<IDENT>[a-z][._0-9a-z]*)
      | (?P<NUMBER>[0-9][0-9a-fx]*)
      | (?P<NEWLINE>\n|\#[^\n]*\n)
      | (?P<STRING>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
      | (?P<mark>\+=|[,\[\]=;])
      | (?P<stray>[^\n])""",
    re.VERBOSE,
)
_MARKS = {",": "','", "[": "'['", "]": "']'", "=": "'='", ";": "';'", "+=": "+="}
_REST_OF_WORD = re.compile(r"[^ \t\n]*")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(.))")
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", '"': '"', "'": "'", "\\": "\\"}
_PYTHON_LOOK = frozenset("+,-.():")
_PYTHON_WARNING = [
    "warning: Config file looks like it contains Python code.",
    "warning:  Arbitrary Python is no longer supported.",
]
_STATEMENT = "$end or IDENT or NEWLINE or ';'"
_OPERATOR = "+= or '='"
_VALUE = "STRING or NUMBER or '['"
_DEEPEST_LIST = 100


def parse(text: str, source: str) -> dict[str, Setting]:
    """The settings of `text`, by key; `source` names the text in messages. Raises `ConfigSyntaxError`."""
    return _Parser(text if text.endswith("\n") else text + "\n", source).run()


def merge(first: dict[str, Setting], second: dict[str, Setting]) -> dict[str, Setting]:
    """What stands after `second` was read behind `first`. Raises `ConfigSyntaxError` for a `+=` of unlike kinds."""
    merged = dict(first)
    for key, setting in second.items():
        earlier = merged.pop(key, None)
        if setting.added and earlier is not None:
            if isinstance(setting.value, str) != isinstance(earlier.value, str):
                raise ConfigSyntaxError([f"{setting.where}: {_UNLIKE}"])
            setting = attrs.evolve(setting, value=earlier.value + setting.value)  # type: ignore[operator]
        merged[key] = setting
    return merged


_UNLIKE = 'can\'t add [list] to "string" or vice versa'


class _Parser:
    """One text being read; lives for one call of `parse`."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.errors: list[str] = []
        self.settings: dict[str, Setting] = {}
        self.bad_line = -1
        self.looks_like_python = False
        self.tokens = self._lex(text)
        self.token: _Token
        self.quiet = 0

    def run(self) -> dict[str, Setting]:
        self.token = next(self.tokens)
        while self.token.kind != "$end":
            try:
                self._statement()
            except _SyntaxError as error:
                if not self.quiet:
                    self._report(error.token.text, error.token.line, error.message)
                self.quiet = 3
                while self.token.kind not in ("NEWLINE", "$end"):
                    self.token = next(self.tokens)
                if self.token.kind == "NEWLINE":
                    self._shift()
        if self.errors:
            raise ConfigSyntaxError(self.errors + (_PYTHON_WARNING if self.looks_like_python else []))
        return self.settings

    # Tokens

    def _lex(self, text: str) -> Iterator[_Token]:
        line, position = 1, 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            assert match is not None, "the pattern has an alternative for every character"
            position = match.end()
            kind, word = str(match.lastgroup), match.group()
            if kind == "stray":
                self.looks_like_python |= word in _PYTHON_LOOK
                rest = _REST_OF_WORD.match(text, position)
                assert rest is not None
                position = rest.end()
                self._lexical_error(word + rest.group(), line, "lexical error")
            elif kind == "STRING":
                yield _Token(kind, self._checked_string(word, line), line)
            elif kind != "blank":
                yield _Token(_MARKS.get(word, kind), word, line)
                line += kind == "NEWLINE"
        while True:
            yield _Token("$end", "", max(1, line - 1))

    def _checked_string(self, word: str, line: int) -> str:
        for escape in _ESCAPE.finditer(word):
            if escape[3] is not None and escape[3] not in _LETTERS:
                numeric = "digit after backslash hex" if escape[3] == "x" else "character after backslash"
                self._lexical_error(word, line, f"invalid {numeric} in quoted string")
        return word

    def _lexical_error(self, text: str, line: int, message: str) -> None:
        self._report(text, line, message)
        self.bad_line = line

    def _report(self, text: str, line: int, message: str) -> None:
        if line <= self.bad_line:
            return
        near = "<newline>" if text == "\n" else f"`{printable(text.rstrip())}'"
        self.errors.append(f"{self.source}:{line}: config parsing error near {near}: {message}")

    # Grammar

    def _shift(self) -> _Token:
        token, self.token = self.token, next(self.tokens)
        self.quiet = max(0, self.quiet - 1)
        return token

    def _expect(self, kinds: tuple[str, ...], expected: str) -> _Token:
        if self.token.kind not in kinds:
            raise _SyntaxError(self.token, f"syntax error, unexpected {self.token.kind}, expecting {expected}")
        return self._shift()

    def _statement(self) -> None:
        first = self._expect(("IDENT", "NEWLINE", "';'"), _STATEMENT)
        if first.kind != "IDENT":
            return
        operator = self._expect(("'='", "+="), _OPERATOR)
        value = self._value(0)
        self._store(Setting(first.text, value, self.source, first.line, operator.kind == "+="))
        if self.token.kind != "$end":
            self._expect(("NEWLINE", "';'"), "$end")

    def _value(self, depth: int) -> Value:
        token = self._expect(("STRING", "NUMBER", "'['"), _VALUE)
        if token.kind == "NUMBER":
            return token.text
        if token.kind == "STRING":
            return _dequote(token.text)
        if depth == _DEEPEST_LIST:
            raise _SyntaxError(token, "list nested too deeply")
        items: list[Value] = []
        self._skip_newlines()
        while self.token.kind in ("STRING", "NUMBER", "'['"):
            items.append(self._value(depth + 1))
            self._skip_newlines()
            if self.token.kind != "','":
                break
            self._shift()
            self._skip_newlines()
        self._expect(("']'",), "']'")
        return items

    def _skip_newlines(self) -> None:
        while self.token.kind == "NEWLINE":
            self._shift()

    def _store(self, setting: Setting) -> None:
        try:
            self.settings = merge(self.settings, {setting.key: setting})
        except ConfigSyntaxError:
            self._lexical_error(setting.key, setting.line, _UNLIKE)


def _dequote(word: str) -> str:
    def replace(escape: re.Match[str]) -> str:
        if escape[1]:
            return chr(int(escape[1], 16))
        return chr(int(escape[2], 8) & 0xFF) if escape[2] else _LETTERS.get(escape[3], "")

    return _ESCAPE.sub(replace, word[1:-1])
