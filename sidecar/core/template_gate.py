"""Hold a template's syntax tree to the rules: a tree in, a rejection out."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import nodes

from sidecar.core.template_rules import (
    ADMITTED,
    CONSTANTS,
    CONSTRUCTS,
    MAX_CONSTANT,
    MAX_CONSTANTS,
    MAX_DEPTH,
    MAX_INTEGER_BITS,
    MAX_NODES,
    RESERVED,
    SHAPES,
    TESTS,
    Arg,
    Profile,
    Rule,
)

_LONGEST_NAME = 60  # characters of a name that a message repeats


class TemplateRejected(Exception):
    """Say which construct of a template is refused, where, and what is allowed; its text is never quoted.

    `is_broken`: nobody could render it, while of a construct that is refused somebody else might make something.
    """

    def __init__(self, construct: str, reason: str, line: int | None = None, *, is_broken: bool = False) -> None:
        self.construct = construct
        self.is_broken = is_broken
        self.reason = reason
        self.line = line
        super().__init__(f"{'' if line is None else f'line {line}: '}{construct} is refused: {reason}")


def admit(tree: nodes.Template, profile: Profile) -> None:
    """Raise TemplateRejected at the first construct that the profile does not admit."""
    _Gate(profile).statement(tree, depth=0, loops=0)


class _Gate:
    """Walk one tree: statements by recursion, as deep as is admitted; expressions by a stack, as they come."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._shape = SHAPES[profile]
        self._nodes = 0
        self._constants = 0
        self._line = 1

    def statement(self, node: nodes.Node, *, depth: int, loops: int) -> None:
        self._enter(node)
        if depth > MAX_DEPTH:
            raise self._refuse("a block", f"blocks nest {MAX_DEPTH} deep at most")
        if isinstance(node, nodes.For):
            loops += 1
            if node.recursive and self._profile is Profile.STRICT:
                raise self._refuse("a recursive `for`", ADMITTED[self._profile])
        if loops > self._shape.loop_depth:
            raise self._refuse("`for`", f"loops nest {self._shape.loop_depth} deep at most")
        if isinstance(node, nodes.CallBlock) and not isinstance(node.call.node, nodes.Name):
            raise self._refuse("`call`", "it calls a macro by its name")
        for child in node.iter_child_nodes():
            if isinstance(child, nodes.Expr):
                self._expression(child)
            else:
                self.statement(child, depth=depth + 1, loops=loops)

    def _expression(self, root: nodes.Expr) -> None:
        pending: list[nodes.Node] = [root]
        count = filters = amplifiers = 0
        while pending:
            node = pending.pop()
            self._enter(node)
            self._check(node)
            count += 1
            if isinstance(node, nodes.Filter):
                filters += 1
                amplifiers += self._shape.filters[node.name].amplifies
            for total, limit, what in (
                (count, self._shape.expression_nodes, "terms"),
                (filters, self._shape.expression_filters, "filters"),
                (amplifiers, self._shape.amplifiers, "of the filters that enlarge a value"),
            ):
                if total > limit:
                    raise self._refuse("an expression", f"at most {limit} {what} in one")
            pending.extend(node.iter_child_nodes())

    def _enter(self, node: nodes.Node) -> None:
        self._line = node.lineno or self._line
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._refuse("a template this large", f"{MAX_NODES} parts are admitted")
        if type(node) not in self._shape.nodes:
            raise self._refuse(CONSTRUCTS.get(type(node), type(node).__name__), ADMITTED[self._profile])

    def _check(self, node: nodes.Node) -> None:
        match node:
            case nodes.Const():
                self._constant(node.value)
            case nodes.Name() if node.name in RESERVED and self._profile is Profile.STRICT:
                raise self._refuse(_named("name", node.name), "it stands for something of Jinja's own")
            case nodes.Getattr() | nodes.NSRef():
                self._attribute(node.attr)
            case nodes.Getitem(arg=nodes.Const(value=str() as name)):
                self._attribute(name)
            case nodes.Keyword():
                self._attribute(node.key)
            case nodes.Filter():
                self._use("filter", node, self._shape.filters)
            case nodes.Test():
                self._use("test", node, TESTS)
            case nodes.Call():
                self._no_unpacking(node)
            case _:
                pass

    def _constant(self, value: object) -> None:
        if isinstance(value, str):
            self._constants += len(value)
            if len(value) > MAX_CONSTANT or self._constants > MAX_CONSTANTS:
                raise self._refuse(
                    "a constant", f"{MAX_CONSTANT} characters are admitted in one, {MAX_CONSTANTS} in all"
                )
        elif isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
            raise self._refuse("a number", f"{MAX_INTEGER_BITS} bits are admitted")
        elif isinstance(value, float) and not math.isfinite(value):
            raise self._refuse("a number", "it must be finite")

    def _attribute(self, name: str) -> None:
        if name.startswith("_"):
            raise self._refuse(_named("attribute", name), "names that begin with an underscore are private")

    def _no_unpacking(self, node: nodes.Call | nodes.Filter | nodes.Test) -> None:
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise self._refuse("`*` and `**` arguments", "arguments are written out")

    def _use(self, kind: str, node: nodes.Filter | nodes.Test, rules: Mapping[str, Rule]) -> None:
        what = _named(kind, node.name)
        rule = rules.get(node.name)
        if rule is None:
            raise self._refuse(what, f"admitted are {', '.join(sorted(rules))}")
        self._no_unpacking(node)
        args = node.args
        if Arg.FILTER in rule.args.values() and args:  # `map` hands the other arguments to the filter that it names
            self._argument(what, "filter", Arg.FILTER, args[0])
            rule, args = rules[args[0].as_const()], args[1:]
        positions = [*rule.args.items()]
        for index, value in enumerate(args):
            name, arg = positions[index] if index < len(positions) else (str(index + 1), rule.rest)
            self._argument(what, name, arg, value)
        keywords: Iterable[Any] = node.kwargs  # Jinja's annotation says Pair; its parser makes Keyword
        for keyword in keywords:
            allowed = {**rule.args, **rule.keywords}.get(keyword.key, rule.rest)
            self._argument(what, keyword.key, allowed, keyword.value)

    def _argument(self, what: str, name: str, arg: Arg | None, value: nodes.Expr) -> None:
        if arg is None:
            raise self._refuse(_named("argument", name) + f" of {what}", "it is not admitted")
        if arg is not Arg.ANY:
            admitted, wording = CONSTANTS[arg]
            if not (isinstance(value, nodes.Const) and admitted(value.value)):
                raise self._refuse(_named("argument", name) + f" of {what}", f"it must be {wording}")

    def _refuse(self, construct: str, reason: str) -> TemplateRejected:
        return TemplateRejected(construct, reason, self._line)


def _named(kind: str, name: str) -> str:
    return f"{kind} `{name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + '…'}`"
