"""How the overview groups commands, and examples of those that need few words."""

RUNNING = "Run"
TESTS = "Tests"
PAST = "Tests that have ended"
KEEPING = "Models, keys, records"
TELLING = "People and systems that are told"
TRYING = "Try it, look after it"

BEGINNING = (
    "Begin with `cypria up`, then `cypria doctor`. Whatever asks a running system goes to CYPRIA_URL "
    "(by default http://127.0.0.1:2242) with the key in CYPRIA_API_KEY, by default the one that `cypria up` made here."
)

_EXAMPLES = {
    "up": ("cypria up", "cypria up --config cypria.yaml --data-dir /var/lib/cypria", "cypria up --port 8080"),
    "provision": ("cypria provision --config cypria.yaml",),
    "status": ("cypria status", "cypria status --json | jq .verdict.summary"),
    "stop": ("cypria stop", 'cypria stop --reason "seen enough"'),
    "rollback": (
        'cypria rollback --reason "wrong answers"', "cypria rollback --speed gradual",
        "cypria rollback --speed gradual --at 2026-01-31T03:00:00Z",
    ),
    "pause": ("cypria pause",),
    "resume": ("cypria resume",),
    "approve": ("cypria approve",),
    "split": ("cypria split 25", "cypria split 0.5 --test-id ab_test_01a216392387b1f58787"),
    "history": ("cypria history", "cypria history --limit 100 --json"),
    "report": (
        "cypria report ab_test_01a216392387b1f58787", "cypria report ab_test_01a216392387b1f58787 --html report.html",
    ),
    "replay": ("cypria replay ab_test_01a216392387b1f58787",),
    "alerts list": ("cypria alerts list --limit 50", "cypria alerts list --test-id ab_test_01a216392387b1f58787"),
    "alerts test": ("cypria alerts test",),
    "alerts redrive": ("cypria alerts redrive", "cypria alerts redrive --destination pager"),
    "integrations list": ("cypria integrations list",),
    "integrations test": ("cypria integrations test --integration tracker",),
    "integrations redrive": ("cypria integrations redrive",),
    "audit list": ("cypria audit --since 2h", "cypria audit list --actor ci --limit 200 --json"),
    "audit verify": ("cypria audit verify",),
    "keys list": ("cypria keys list",),
    "keys revoke": ("cypria keys revoke ci",),
    "models show": ("cypria models show canary",),
    "models load": ("cypria models load canary", "cypria models load canary --reload --rolling"),
    "models unload": ("cypria models unload canary --no-wait",),
    "models remove": ("cypria models remove canary",),
    "models plan": ("cypria models plan stable canary", "cypria models plan --config cypria.yaml"),
    "models digest": ("cypria models digest /models/llama",),
    "router": ("cypria router --config cypria.yaml",),
    "inference": ("cypria inference --config cypria.yaml",),
    "metrics": ("cypria metrics --config cypria.yaml",),
    "monitor": ("cypria monitor --config cypria.yaml",),
    "doctor": ("cypria doctor", "cypria doctor --config cypria.yaml"),
}  # fmt: skip


def examples(name: str) -> str:
    """The end of a command's help."""
    lines = "\n".join(f"  {one}" for one in _EXAMPLES[name])
    return f"\nExamples:\n\n\b\n{lines}\n"
