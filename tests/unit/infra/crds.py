"""What the operators' own kinds may hold, of what the chart uses: a field that is misspelt is in no schema.

The Prometheus operator's `monitoring.coreos.com/v1` and KEDA's `keda.sh/v1alpha1`, as their references describe them.
"""

from typing import Any

_DURATION = {"type": "string", "pattern": "^(0|([0-9]+(ms|[smhdwy]))+)$"}
_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "array", "items": _TEXT}
_WORDS = {"type": "object", "additionalProperties": {"type": "string"}}


def _object(*required: str, **fields: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": fields, "required": list(required)}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": of}


_EXPRESSION = _object("key", "operator", key=_TEXT, operator={"enum": ["In", "NotIn", "Exists", "DoesNotExist"]}, values=_TEXTS)
_RELABELING = _object(
    sourceLabels=_TEXTS, separator=_TEXT, targetLabel=_TEXT, regex=_TEXT, replacement={"type": "string"},
    modulus={"type": "integer"}, action={"enum": ["replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep", "lowercase"]},
)  # fmt: skip
_RULE = {
    **_object(
        "expr", alert=_TEXT, record={"type": "string", "pattern": "^[a-zA-Z_:][a-zA-Z0-9_:]*$"}, expr=_TEXT,
        keep_firing_for=_DURATION, labels=_WORDS, annotations=_WORDS, **{"for": _DURATION},
    ),
    "oneOf": [{"required": ["alert"]}, {"required": ["record"], "not": {"required": ["annotations"]}}],
}  # fmt: skip
_SPECS = {
    ("monitoring.coreos.com/v1", "PodMonitor"): _object(
        "selector", "podMetricsEndpoints",
        selector=_object(matchLabels=_WORDS, matchExpressions=_list(_EXPRESSION)), jobLabel=_TEXT, podTargetLabels=_TEXTS,
        podMetricsEndpoints=_list(
            _object(
                "port", port=_TEXT, path={"type": "string", "pattern": "^/"}, interval=_DURATION, scheme={"enum": ["http", "https"]},
                tlsConfig=_object(insecureSkipVerify={"type": "boolean"}), relabelings=_list(_RELABELING),
            )
        ),
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _object(
        "groups", groups=_list(_object("name", "rules", name=_TEXT, interval=_DURATION, rules=_list(_RULE)))
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): _object(
        "scaleTargetRef", "triggers",
        scaleTargetRef=_object("name", apiVersion=_TEXT, kind=_TEXT, name=_TEXT), minReplicaCount={"type": "integer", "minimum": 0},
        maxReplicaCount={"type": "integer", "minimum": 1}, cooldownPeriod={"type": "integer"}, pollingInterval={"type": "integer"},
        # KEDA takes every value of a trigger's metadata as text
        triggers=_list(_object("type", "metadata", type={"enum": ["prometheus", "nats-jetstream"]}, metadata=_WORDS)),
    ),
}  # fmt: skip
KINDS = {kind for _, kind in _SPECS}


def schema(one: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object of theirs. Raises KeyError for a version that there is not."""
    metadata = _object("name", "labels", name=_TEXT, labels=_WORDS, annotations=_WORDS)
    spec = _SPECS[one["apiVersion"], one["kind"]]
    return _object("spec", "metadata", apiVersion=_TEXT, kind=_TEXT, metadata=metadata, spec=spec)
