"""Which statements an outsider may run on the embedded engine: one question, about tables only.

The engine's own `readonly` setting is not enough: under it `INTO OUTFILE` writes files, `file()` as a scalar and
`DESCRIBE file()` read them, and queries of others can be killed. So a statement is taken apart into tokens and
refused unless all of it is known to be harmless; what cannot be told apart for certain is refused too.
"""

import re
from dataclasses import dataclass

MAX_LENGTH = 20_000

FIRST_WORDS = frozenset({"select", "with", "show", "describe", "desc", "exists", "explain"})
FORBIDDEN_WORDS = frozenset({"into", "outfile", "infile"})
"""RefusedError as bare words wherever they stand."""

TABLE_FUNCTIONS = frozenset(
    {
        "numbers",
        "numbers_mt",
        "zeros",
        "zeros_mt",
        "values",
        "view",
        "null",
        "generateseries",
        "generate_series",
        "format",
    }
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
"""Scalar functions that reach out of the engine, hold it up or show its innards; those named ``ai...`` ask a model."""

_TOKEN = re.compile(
    r"""
    (?P<space>   [ \t\r\n]+ )
  | (?P<line>    --[^\n]* )
  | (?P<comment> /\* (?: (?! /\* | \*/ ) . )*+ \*/ )
  | (?P<string>  ' (?: [^'\\] | \\. | '' )*+ ' )
  | (?P<quoted>  "[A-Za-z0-9_ ./%()\#-]++"(?!") | `[A-Za-z0-9_ ./%()\#-]++`(?!`) )
  | (?P<name>    [A-Za-z_][A-Za-z0-9_]* )
  | (?P<number>  [0-9][0-9A-Za-z_]* )
  | (?P<symbol>  [][(){},.;:?!=<>+*%|&^@~-] | /(?!\*) )
    """,
    re.VERBOSE | re.DOTALL,
)
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class RefusedError(ValueError):
    """A statement that must not run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Token:
    """``kind``: name, quoted, string, number or symbol. ``text`` is in lower case; quoted names lose their quotes."""

    kind: str
    text: str


def tokens(statement: str) -> list[Token]:
    """The statement without space and comments. Raises RefusedError where another reader might see other tokens."""
    found: list[Token] = []
    at = 0
    while at < len(statement):
        match = _TOKEN.match(statement, at)
        if match is None:
            raise RefusedError(
                f"{statement[at]!r} at {at} cannot be read: close strings and comments, and keep names to letters, "
                "digits, spaces and _ . / % ( ) # -"
            )
        at = match.end()
        kind, text = str(match.lastgroup), match.group()
        if kind == "quoted":
            found.append(Token(kind, text[1:-1].lower()))
        elif kind not in {"space", "line", "comment"}:
            found.append(Token(kind, text.lower()))
    return found


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
    while found and found[-1].text == ";":
        found.pop()
    if any(token == Token("symbol", ";") for token in found):
        raise RefusedError("one statement at a time")
    words = [token for token in found if token.text != "("]
    if not words or words[0].kind != "name" or words[0].text not in FIRST_WORDS:
        raise RefusedError("only questions are answered here: SELECT, WITH, SHOW, DESCRIBE, EXISTS or EXPLAIN")
    if words[0].text in {"describe", "desc", "exists"}:
        _only_a_table(words[1:], found)
    for token, following in zip(found, [*found[1:], Token("symbol", ";")], strict=True):
        if token.kind == "name" and token.text in FORBIDDEN_WORDS:
            raise RefusedError(f"{token.text.upper()} is not allowed here")
        if token.kind in {"name", "quoted"} and following.text == "(":
            _callable(token.text, table_functions)


def _only_a_table(words: list[Token], found: list[Token]) -> None:
    """DESCRIBE and EXISTS infer schemas and look for files when given anything but the name of a table."""
    if len(words) > 2 and words[-2] == Token("name", "format"):
        words = words[:-2]
    names = [word for word in words if word.text not in {"table", "view", "database", "."} or word.kind == "quoted"]
    plain = all(_PLAIN_NAME.fullmatch(word.text) for word in names)
    if not 1 <= len(names) <= 2 or not plain or any(token.text == "(" for token in found):
        raise RefusedError("DESCRIBE and EXISTS take the name of a table here")


def _callable(name: str, table_functions: frozenset[str] | set[str]) -> None:
    if name in FORBIDDEN_FUNCTIONS or name.startswith("ai"):
        raise RefusedError(f"the function {name} is not allowed here")
    if name in table_functions and name not in TABLE_FUNCTIONS:
        raise RefusedError(f"the table function {name} is not allowed here: ask the tables of the database")
