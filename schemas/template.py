"""Templates that operators write for alerts: names are replaced by facts, and nothing else happens."""

import re
from string import Template

NAMES = frozenset(
    {"level", "state", "title", "message", "test_id", "rule", "incident", "time", "value", "bound", "threshold", "n",
     "report_url"}
)  # fmt: skip
"""What a template may name, besides ``${tags.NAME}`` and ``${numbers.NAME}``."""
FAMILIES = ("tags.", "numbers.")


class AlertTemplate(Template):
    """`$name` and `${name}`, `$$` for a dollar. A name is looked up and never evaluated."""

    flags = re.ASCII
    idpattern = "[a-z][a-z0-9_]*"
    braceidpattern = r"[a-z][a-z0-9_]*(?:\.[A-Za-z0-9_.-]+)?"


def problem(text: str) -> str | None:
    """What is wrong with a template, or None."""
    template = AlertTemplate(text)
    if not template.is_valid():
        return "a $ that begins no name: write $$ for a dollar, and $name or ${name} for a fact"
    for name in template.get_identifiers():
        if name not in NAMES and not name.startswith(FAMILIES):
            known = ", ".join(sorted(NAMES))
            return f"'{name}' is no name of a fact: there are {known}, and ${{tags.NAME}} and ${{numbers.NAME}}"
    return None
