"""Why a body is no JSON, in words that need no knowledge of the parser. Pure."""

import re

_WORDS = (
    ("eof", "it ends too early"),
    ("truncated", "it ends too early"),
    ("control character", "a text holds a control character: escape it, as \\n"),
    ("escape", "a text holds an escape that JSON does not have"),
    ("surrogate", "a text holds half a character: send whole ones"),
    ("unicode", "it is not UTF-8: encode it as UTF-8"),
    ("utf-8", "it is not UTF-8: encode it as UTF-8"),
    ("key must be", "a name is not in double quotes"),
    ("keys must be", "a name is not in double quotes"),
    ("expected `:`", "a colon is missing behind a name"),
    ("trailing comma", "a comma stands before a closing bracket"),
    ("trailing", "something follows its end"),
    ("recursion", "it is nested too deeply"),
    ("number", "a number is not written as JSON has it (NaN and Infinity are none)"),
    ("expected `,`", "a comma or a closing bracket is missing"),
)
_ELSE = "something in it is no JSON"
_PLACE = re.compile(r"(?:at )?\(?(?P<where>line \d+ column \d+|byte \d+)\)?$")


def why_no_json(said: str) -> str:
    """What a parser's own words (of jiter or msgspec) mean, with the place that they name."""
    low = said.lower()
    words = next((words for mark, words in _WORDS if mark in low), _ELSE)
    place = _PLACE.search(said)
    return f"{words} ({place['where'].replace(' column', ', column')})" if place else words
