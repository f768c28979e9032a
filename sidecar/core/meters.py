"""Put meters into a template's tree: on each value that an operation walks, prints or loops over.

A meter is a filter that the gate does not know, so that no template can name it; it takes the cost from the budget of
the rendering before the operation starts. Constants carry none: Jinja folds them when it compiles, as without us.
"""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sized, ValuesView
from typing import Any

from jinja2 import Environment, nodes, pass_context
from jinja2 import Undefined as JinjaUndefined
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, LoopContext, markup_join, str_join
from jinja2.visitor import NodeTransformer

from sidecar.core.budget import Budget, weight
from sidecar.core.guards import Operation
from sidecar.core.template_rules import MAX_CONSTANTS, SHAPES, TESTS, Cost, Profile

CALL_METHOD = "method"
_DATA, _TEXT, _ROWS, _LOOP, _TICK, _CONCAT = "data", "text", "rows", "loop", "tick", "concat"
_BY_COST = {Cost.DATA: _DATA, Cost.TEXT: _TEXT, Cost.ROWS: _ROWS}


class MeteredContext(Context):
    """A template's variables during one rendering, and that rendering's budget."""

    budget: Budget


class Counted:
    """An iterable whose items are taken from the budget; it has a length where the original has one."""

    __slots__ = ("_budget", "_items")

    def __init__(self, items: Iterable[Any], budget: Budget) -> None:
        self._items = items
        self._budget = budget

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._budget.iterate()
            yield item

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type] # a TypeError is the answer, as without us


@pass_context
def _text(context: MeteredContext, value: Any) -> Any:
    context.budget.weigh(value, printable=True)
    return value


@pass_context
def _data(context: MeteredContext, value: Any) -> Any:
    value = _listed(value, context.budget)
    context.budget.weigh(value)
    return value


@pass_context
def _rows(context: MeteredContext, value: Any) -> Any:
    value = _listed(value, context.budget)
    if isinstance(value, Sized) and not isinstance(value, JinjaUndefined):
        context.budget.iterate(len(value))
    context.budget.weigh(value, printable=True)
    return value


@pass_context
def _add(context: MeteredContext, left: Any, right: Any) -> Any:
    context.budget.weigh([left, right])
    return left + right


@pass_context
def _concat(context: MeteredContext, terms: list[Any]) -> str:
    context.budget.weigh(terms, printable=True)
    return markup_join(terms) if context.eval_ctx.autoescape else str_join(terms)


@pass_context
def _loop(context: MeteredContext, value: Any) -> Counted:
    return Counted(value, context.budget)


@pass_context
def _tick(context: MeteredContext, value: Any) -> Any:
    context.budget.tick()
    return value


def _listed(value: Any, budget: Budget) -> Any:
    """Return what can be gone through once, or has no size in sight, as a list."""
    if isinstance(value, Iterator | ItemsView | KeysView | ValuesView | range) and not isinstance(value, LoopContext):
        return list(Counted(value, budget))
    return value


METERS: Mapping[str, Operation] = {
    _DATA: _data,
    _TEXT: _text,
    _ROWS: _rows,
    _LOOP: _loop,
    _TICK: _tick,
    _CONCAT: _concat,
    nodes.Add.operator: _add,
}


def meter(tree: nodes.Template, environment: Environment, profile: Profile) -> None:
    """Put the meters into an admitted tree, in place."""
    _Meter(environment, profile).visit(tree)


class _Meter(NodeTransformer):
    """Visit the children first: what is left without a meter below is constant."""

    def __init__(self, environment: Environment, profile: Profile) -> None:
        self._environment = environment
        self._profile = profile
        self._eval = EvalContext(environment)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802 - the names of the visitors are Jinja's
        self.generic_visit(node)
        node.nodes = [child if self._is_given(child) else self._one(_TEXT, child) for child in node.nodes]
        return node

    def _is_given(self, node: nodes.Expr) -> bool:
        """Tell a value of the caller's, or an item of one: it has a text, which is counted when it is put out."""
        return self._profile is Profile.STRICT and isinstance(node, nodes.Name) and node.name != "loop"

    def visit_If(self, node: nodes.If) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.test = self._always(_TICK, node.test)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = self._always(_LOOP, node.iter)
        if node.test is not None:
            node.test = self._always(_TICK, node.test)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if all(map(self._is_constant, node.nodes)):
            return node
        return self._always(_CONCAT, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice) and not self._is_constant(node):  # Python would warn of a slice of `1`
            node.node = self._always(_TICK, node.node)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.items = self._all(_DATA, node.items)
        return node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.ctx == "load":
            node.items = self._all(_DATA, node.items)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.value = self._one(_DATA, node.value)
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if self._is_constant(node) else self._always(node.operator, node.left, node.right)

    def _operator(self, node: nodes.BinExpr) -> nodes.Node:
        self.generic_visit(node)
        left, right = self._all(_DATA, [node.left, node.right])
        return self._always(node.operator, left, right)

    visit_Mul = visit_Pow = visit_Mod = _operator  # noqa: N815

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        cost = SHAPES[self._profile].filters[node.name].cost
        if cost is not Cost.FREE and node.node is not None:  # None: what a block holds, metered where it was made
            node.node = self._one(_BY_COST[cost], node.node)
        self._arguments(node, _DATA if cost is Cost.FREE else _TEXT)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if TESTS[node.name].cost is Cost.TEXT:
            node.node = self._one(_TEXT, node.node)
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        self._arguments(node, _DATA)
        if not isinstance(node.node, nodes.Getattr):
            return node
        method = self._always(CALL_METHOD, node.node.node, nodes.Const(node.node.attr), *node.args)
        method.kwargs = node.kwargs  # type: ignore[assignment] # Jinja's annotation says Pair, its parser makes Keyword
        return method

    def _arguments(self, node: nodes.Filter | nodes.Call, name: str) -> None:
        node.args = self._all(name, node.args)
        for keyword in node.kwargs:
            keyword.value = self._one(name, keyword.value)

    def _all(self, name: str, expressions: list[nodes.Expr]) -> list[nodes.Expr]:
        return [self._one(name, expression) for expression in expressions]

    def _one(self, name: str, expression: nodes.Expr) -> nodes.Expr:
        return expression if self._is_constant(expression) else self._always(name, expression)

    def _always(self, name: str, expression: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(
            expression, name, list(args), [], None, None, lineno=expression.lineno, environment=self._environment
        )

    def _is_constant(self, expression: nodes.Expr) -> bool:
        try:
            value = expression.as_const(self._eval)
            weight(value, MAX_CONSTANTS, printable=True)
        except Exception:  # noqa: BLE001 - whatever keeps Jinja from folding it shows again when it is rendered
            return False
        return not isinstance(value, JinjaUndefined)
