"""Names of metrics follow one convention."""

from infra.metrics_reference import SERVICES, described

FORBIDDEN = {"test", "test_id", "unit", "user", "key", "worker", "request_id", "address"}


def test_names_labels_and_help_follow_the_convention() -> None:
    found = described()
    assert {one.name.split("_")[1] for one in found} == set(SERVICES)
    for one in found:
        assert one.name.startswith("cypria_"), one
        assert one.name.endswith("_total") == (one.kind == "counter"), one
        assert one.kind != "histogram" or one.name.endswith("_seconds"), one
        assert not one.name.endswith(("_ms", "_milliseconds", "_mb", "_percent", "_minutes")), one
        assert not FORBIDDEN & set(one.labels), one
        assert one.text, one
        assert not one.text.endswith("."), one
