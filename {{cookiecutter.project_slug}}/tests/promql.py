"""What a query in PromQL asks for: a name, label or value that nobody exports makes it silent for ever."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import promql_parser as promql

_OF_COUNTERS = {"rate", "irate", "increase"}
_WITHOUT_LABELS = {"absent", "vector"}
_NUMBERS = {"scalar", "time"}

Labels = frozenset[str]


@dataclass(frozen=True)
class Series:
    """The series of one name. `labels`: the values that each label can have; None: any."""

    is_counter: bool
    labels: Mapping[str, frozenset[str] | None]


def labels_of(query: str, known: Mapping[str, Series]) -> Labels:
    """The labels of a query's result.

    Raises:
        ValueError: it cannot be read, or never has a right result.
    """
    plain = re.sub(r"\$__\w+", "5m", query)  # Grafana's own ranges
    return _labels(promql.parse(plain), known) or Labels()


def _labels(node: object, known: Mapping[str, Series]) -> Labels | None:
    """None: of a number."""
    match node:
        case promql.VectorSelector():
            if known.get(node.name or "", Series(False, {})).is_counter:
                raise ValueError(f"{node.name}: is a counter, which only has a rate or an increase")
            return _selected(node, known)
        case promql.ParenExpr() | promql.UnaryExpr():
            return _labels(node.expr, known)
        case promql.Call():
            return _called(node, known)
        case promql.AggregateExpr():
            inner = _labels(node.expr, known) or Labels()
            if str(node.op) in ("topk", "bottomk"):
                return inner
            by = frozenset(node.modifier.labels if node.modifier else ())
            if not by <= inner:
                raise ValueError(f"{node.op} by {sorted(by)}: of what has the labels {sorted(inner)}")
            return by
        case promql.BinaryExpr():
            return _joined(node, _labels(node.lhs, known), _labels(node.rhs, known))
    return None


def _called(call: promql.Call, known: Mapping[str, Series]) -> Labels | None:
    name, labels = call.func.name, Labels()
    for each in call.args:
        if isinstance(each, promql.MatrixSelector):
            selector = each.vector_selector
            labels |= _selected(selector, known)
            is_counter = known[selector.name or ""].is_counter
            if is_counter != (name in _OF_COUNTERS):
                raise ValueError(f"{name}: {selector.name} is a {'counter' if is_counter else 'gauge'}")
        else:
            labels |= _labels(each, known) or Labels()
    if name == "histogram_quantile" and "le" not in labels:
        raise ValueError("histogram_quantile: needs the label le")
    if name == "label_replace":
        _, to, _, source, _ = call.args
        if source.val not in labels:
            raise ValueError(f"label_replace: there is no label {source.val}")
        return labels | {to.val}
    if name in _NUMBERS:
        return None
    return Labels() if name in _WITHOUT_LABELS else labels - ({"le"} if name == "histogram_quantile" else set())


def _joined(node: promql.BinaryExpr, left: Labels | None, right: Labels | None) -> Labels | None:
    if left is None or right is None:
        return right if left is None else left
    matching = node.modifier.matching if node.modifier else None
    added = frozenset((node.modifier.group_labels if node.modifier else None) or ())
    if matching is None and left != right:
        raise ValueError(f"{node.op}: one side has the labels {sorted(left)}, the other {sorted(right)}: nothing fits")
    if not frozenset(matching.labels if matching else ()) <= left & right or not added <= right:
        raise ValueError(f"{node.op}: what it joins on are not labels of both sides")
    return left | right if str(node.op) == "or" else left | added


def _selected(selector: promql.VectorSelector, known: Mapping[str, Series]) -> Labels:
    series = known.get(selector.name or "")
    if series is None:
        raise ValueError(f"{selector.name}: nobody exports it")
    for matcher in selector.matchers.matchers:
        if matcher.name not in series.labels:
            raise ValueError(f"{selector.name}: has no label {matcher.name}")
        values, is_pattern = series.labels[matcher.name], matcher.op in (promql.MatchOp.Re, promql.MatchOp.NotRe)
        for each in matcher.value.split("|") if is_pattern else [matcher.value]:
            pattern = each if is_pattern else re.escape(each)
            if values is not None and not any(re.fullmatch(pattern, value) for value in values):
                raise ValueError(f"{selector.name}: {matcher.name} is never {each}")
    return frozenset(series.labels)
