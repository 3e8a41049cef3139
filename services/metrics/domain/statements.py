"""Which statements an outsider may run on the embedded engine: one question, about tables only.

The engine's own `readonly` setting is not enough: under it `INTO OUTFILE` writes files, `file()` as a scalar and
`DESCRIBE file()` read them, and queries of others can be killed. So a statement is taken apart into tokens and
refused unless all of it is known to be harmless; what cannot be told apart for certain is refused too.
"""

import re
from dataclasses import dataclass

MAX_LENGTH = 100_000

FIRST_WORDS = frozenset({"select", "with", "show", "describe", "desc", "exists", "explain"})
FORBIDDEN_WORDS = frozenset({"into", "outfile", "infile"})
"""RefusedError as bare words wherever they stand."""

TABLE_FUNCTIONS = frozenset(
    {"numbers", "numbers_mt", "zeros", "zeros_mt", "values", "view", "null", "generateseries", "generate_series", "format"}
)
"""Table functions that read nothing but their arguments."""

FORBIDDEN_FUNCTIONS = frozenset(
    {
        "file", "executable", "python", "sleep", "sleepeachrow", "filesystemavailable", "filesystemcapacity",
        "filesystemunreserved", "showcertificate", "catboostevaluate", "addresstoline", "addresstolinewithinlines",
        "addresstosymbol", "demangle", "getclienthttpheader", "getmacro", "getserversetting", "eval",
        "currentrequesturl", "throwif", "dictget", "joinget", "initializeaggregation", "fuzzbits", "fullhostname",
    }
)  # fmt: skip
"""Scalar functions that reach out of the engine, hold it up, or show its innards; those beginning with ``ai`` ask a model."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[0-9][0-9A-Za-z_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_SIMPLE_NAME = re.compile(r"[A-Za-z0-9_ ./%()#-]*")
_SPACE = " \t\r\n"
_SYMBOLS = frozenset("()[]{},.;:?!=<>+-*/%|&^@~")


class RefusedError(ValueError):
    """A statement that must not run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Token:
    """``kind``: name, quoted, string, number or symbol. ``text`` of names is in lower case."""

    kind: str
    text: str


def tokens(statement: str) -> list[Token]:
    """The statement without comments. Raises RefusedError where another reader might see other tokens."""
    found: list[Token] = []
    at, end = 0, len(statement)
    while at < end:
        char = statement[at]
        pair = statement[at : at + 2]
        if char in _SPACE:
            at += 1
        elif pair == "--":
            at = _line_end(statement, at)
        elif pair == "/*":
            close = statement.find("*/", at + 2)
            if close < 0 or "/*" in statement[at + 2 : close]:
                raise RefusedError("a comment is not closed, or holds another")
            at = close + 2
        elif char == "'":
            at = _string_end(statement, at)
            found.append(Token("string", ""))
        elif char in '"`':
            close = statement.find(char, at + 1)
            inner = statement[at + 1 : close] if close > 0 else ""
            if close < 0 or not inner or not _SIMPLE_NAME.fullmatch(inner) or statement[close + 1 : close + 2] == char:
                raise RefusedError("a quoted name may hold only letters, digits, spaces and _ . / % ( ) # -")
            found.append(Token("quoted", inner.lower()))
            at = close + 1
        elif name := _NAME.match(statement, at):
            found.append(Token("name", name.group().lower()))
            at = name.end()
        elif number := _NUMBER.match(statement, at):
            found.append(Token("number", number.group()))
            at = number.end()
        elif char in _SYMBOLS:
            found.append(Token("symbol", char))
            at += 1
        else:
            raise RefusedError(f"the character {char!r} may stand only inside a string")
    return found


def _line_end(statement: str, at: int) -> int:
    end = statement.find("\n", at)
    return len(statement) if end < 0 else end


def _string_end(statement: str, at: int) -> int:
    position = at + 1
    while position < len(statement):
        char = statement[position]
        if char == "\\":
            position += 2
        elif char != "'":
            position += 1
        elif statement[position + 1 : position + 2] == "'":
            position += 2
        else:
            return position + 1
    raise RefusedError("a string is not closed")


def check(statement: str, table_functions: frozenset[str] | set[str]) -> None:
    """Raise RefusedError unless the statement is one harmless question.

    ``table_functions``: names (lower case) of all that the engine knows; only TABLE_FUNCTIONS of them may be called.
    """
    if len(statement) > MAX_LENGTH:
        raise RefusedError(f"the statement is longer than {MAX_LENGTH} characters")
    # Whatever the tokens say: nothing that is asked here needs these words, even in a string or a comment.
    if re.search(r"outfile|infile", statement, re.IGNORECASE):
        raise RefusedError("files are out of reach: read the result from the reply")
    found = tokens(statement)
    while found and found[-1] == Token("symbol", ";"):
        found.pop()
    if Token("symbol", ";") in found:
        raise RefusedError("one statement at a time")
    words = [token for token in found if token != Token("symbol", "(")]
    if not words or words[0].kind != "name" or words[0].text not in FIRST_WORDS:
        raise RefusedError("only questions are answered here: SELECT, WITH, SHOW, DESCRIBE, EXISTS or EXPLAIN")
    if words[0].text in {"describe", "desc", "exists"}:
        _only_a_table(words[1:], found)
    for index, token in enumerate(found):
        if token.kind not in {"name", "quoted"}:
            continue
        following = found[index + 1] if index + 1 < len(found) else Token("symbol", ";")
        if token.kind == "name" and token.text in FORBIDDEN_WORDS:
            raise RefusedError(f"{token.text.upper()} is not allowed here")
        if following == Token("symbol", "("):
            _callable(token.text, table_functions)


def _only_a_table(words: list[Token], found: list[Token]) -> None:
    """DESCRIBE and EXISTS infer schemas and look for files when given anything but the name of a table."""
    if len(words) > 2 and words[-2] == Token("name", "format"):
        words = words[:-2]
    names = [word for word in words if word.text not in {"table", "view", "database", "."} or word.kind == "quoted"]
    plain = all(_NAME.fullmatch(word.text) for word in names)
    if not 1 <= len(names) <= 2 or not plain or any(token.text == "(" for token in found):
        raise RefusedError("DESCRIBE and EXISTS take the name of a table here")


def _callable(name: str, table_functions: frozenset[str] | set[str]) -> None:
    if name in FORBIDDEN_FUNCTIONS or name.startswith("ai"):
        raise RefusedError(f"the function {name} is not allowed here")
    if name in table_functions and name not in TABLE_FUNCTIONS:
        raise RefusedError(f"the table function {name} is not allowed here: ask the tables of the database")
