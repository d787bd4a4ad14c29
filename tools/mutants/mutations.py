"""Which small mistakes could be made in a module, each as one edit of its syntax tree. It runs nothing.

What people read is left alone: docstrings, messages, the texts of errors; so are annotations and types of casts,
asserts, imports, bodies of protocols and what words an enum's members have, which tests compare with documents.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

BODIES = {"body", "orelse", "finalbody", "handlers", "cases"}
ANNOTATIONS = {"annotation", "returns", "decorator_list", "type_comment", "conversion", "format_spec"}
WORD = re.compile(r"[\w.:/-]*")
COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPPOSITE = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
"""Of these the other one is the negation, so that a condition of one needs no negation beside it."""

CALCULATED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Div,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitAnd,
}
CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
TRUTHS: dict[bool, tuple[bool | None, ...]] = {True: (True, False), False: (None,)}
"""What functions return instead: those that answer a question, and all others."""

DECLARING = {"TypeVar", "NewType", "ParamSpec", "field", "auto"}
"""What is called to declare something: a type checker or the class would complain of a change."""


@dataclass(frozen=True)
class Where:
    """Where the walk is. ``place`` is the outermost function, by whose code it is replaced, or nothing outside of all;
    ``names`` are then what is defined there. ``first`` and ``last`` are the lines of the statement, without its body.
    """

    place: str = ""
    place_line: int = 0
    scope: str = ""
    names: tuple[str, ...] = ()
    first: int = 0
    last: int = 0
    statement: ast.AST | None = None
    message: bool = False
    truth: bool = False
    kept: bool = False


@dataclass
class Mutant:
    """One mistake: an edit that can be made and taken back."""

    module: str
    where: Where
    line: int
    kind: str
    parent: ast.AST
    slot: str
    index: int | None
    old: Any
    new: Any
    key: str = field(default="", compare=False)

    def _put(self, node: Any) -> None:
        if self.index is None:
            setattr(self.parent, self.slot, node)
        else:
            getattr(self.parent, self.slot)[self.index] = node

    def apply(self) -> None:
        self._put(self.new)

    def undo(self) -> None:
        self._put(self.old)

    def texts(self) -> tuple[str, str]:
        """The statement before and after, in one line each."""
        statement = self.where.statement
        replaced = statement is self.old
        before = header(statement)
        if replaced:
            return before, header(self.new)
        self.apply()
        after = header(statement)
        self.undo()
        return before, after


def header(node: Any) -> str:
    """A statement without its body."""
    if node is None:
        return ""
    shallow = type(node)(**{name: value for name, value in ast.iter_fields(node) if name != "decorator_list"})
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        shallow.decorator_list = []
    for name in BODIES:
        if isinstance(getattr(node, name, None), list):
            setattr(shallow, name, [ast.Pass()] if name == "body" else [])
    if isinstance(node, ast.match_case):
        shallow = ast.Match(ast.Name("…"), [shallow])
    if isinstance(node, ast.Match | ast.Try):
        return type(node).__name__.lower()
    text = ast.unparse(ast.fix_missing_locations(shallow)).removesuffix("pass").strip()
    return " ".join(text.split())


def lines_of(node: Any) -> tuple[int, int]:
    """From where to where a statement goes, without its body."""
    first, last = node.lineno, node.end_lineno or node.lineno
    body = getattr(node, "body", None)
    if isinstance(body, list) and body:
        last = max(first, body[0].lineno - 1)
    if isinstance(node, ast.Match):
        last = node.subject.end_lineno or first
    return first, last


def is_stub(node: Any) -> bool:
    """Whether a function has no body: one of a protocol."""
    return all(isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) for part in node.body)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def is_cast(node: ast.AST) -> bool:
    """Whether its first argument is a type, which nobody reads when it runs."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cast"


def opposite_of(test: ast.expr) -> ast.expr | None:
    """The negation of a condition, unless another edit makes the same of it."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return None
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], OPPOSITE):
        return None
    if isinstance(test, ast.Constant):
        return None
    return ast.copy_location(ast.UnaryOp(ast.Not(), test), test)


class Walk:
    """All mistakes of one module, in the order of its text."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.module = module
        self.tree = tree

    def mutants(self) -> list[Mutant]:
        found = list(self._children(self.tree, Where()))
        found.sort(key=lambda mutant: (mutant.line, mutant.kind))
        seen: dict[str, int] = {}
        for mutant in found:
            before, after = mutant.texts()
            key = f"{self.module}::{mutant.where.scope}::{mutant.kind}::{before}::{after}"
            seen[key] = number = seen.get(key, 0) + 1
            mutant.key = f"{key}::{number}"
        return found

    def _children(self, node: ast.AST, where: Where) -> Iterator[Mutant]:
        for slot, value in ast.iter_fields(node):
            if slot in ANNOTATIONS:
                continue
            if isinstance(value, list):
                for index, child in enumerate(value):
                    if isinstance(child, ast.AST) and not (slot == "args" and index == 0 and is_cast(node)):
                        yield from self._visit(child, node, slot, index, where)
            elif isinstance(value, ast.AST):
                yield from self._visit(value, node, slot, None, where)

    def _visit(self, node: ast.AST, parent: ast.AST, slot: str, index: int | None, where: Where) -> Iterator[Mutant]:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.Global | ast.Nonlocal):
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for number, child in enumerate(node.orelse):
                yield from self._visit(child, node, "orelse", number, where)
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield from self._definition(node, where)
            return
        if isinstance(node, ast.stmt | ast.match_case | ast.ExceptHandler):
            where = self._stated(node, where)
            if self._declares(node, where):
                return
        if isinstance(node, ast.Raise | ast.JoinedStr):
            where = replace(where, message=True)
        for kind, new in self._changes(node, parent, slot, where):
            line = getattr(node, "lineno", where.first)
            yield Mutant(self.module, where, line, kind, parent, slot, index, node, new)
        if isinstance(node, ast.Call):
            yield from self._dropped_words(node, where)
        if isinstance(node, ast.Compare):
            for number, operator in enumerate(node.ops):
                new = COMPARED[type(operator)]()
                yield Mutant(self.module, where, node.lineno, "comparison", node, "ops", number, operator, new)
        yield from self._children(node, where)

    def _definition(self, node: ast.AST, where: Where) -> Iterator[Mutant]:
        scope = f"{where.scope}.{getattr(node, 'name', 'lambda')}".lstrip(".")
        if isinstance(node, ast.ClassDef):
            enum = any("StrEnum" in ast.unparse(base) for base in node.bases)
            inside = replace(where, scope=scope, kept=enum)
            for number, child in enumerate(node.body):
                yield from self._visit(child, node, "body", number, inside)
            return
        if isinstance(node, ast.Lambda):
            yield from self._children(node, where)
            return
        if is_stub(node):
            return
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        inside = self._stated(node, where)
        if not where.place:
            outside = replace(inside, scope=scope, first=node.lineno, last=node.end_lineno or node.lineno)
            first = min([node.lineno, *(word.lineno for word in node.decorator_list)])
            inside = replace(inside, place=scope, place_line=first)
        else:
            outside = inside
        truth = isinstance(node.returns, ast.Name) and node.returns.id == "bool"
        inside = replace(inside, scope=scope, truth=truth, kept=False)
        yield from self._children(node.args, outside)
        for number, child in enumerate(node.body):
            yield from self._visit(child, node, "body", number, inside)

    @staticmethod
    def _stated(node: ast.AST, where: Where) -> Where:
        if isinstance(node, ast.match_case):
            first = node.pattern.lineno
            last = node.body[0].lineno
        else:
            first, last = lines_of(node)
        names = where.names
        if not where.place:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = tuple(target.id for target in targets if isinstance(target, ast.Name))
        return replace(where, first=first, last=last, statement=node, names=names, message=False)

    @staticmethod
    def _declares(node: ast.AST, where: Where) -> bool:
        """Whether a statement outside of functions only says of what types something is."""
        if where.place:
            return False
        if where.names == ("__all__",) or (where.kept and where.names):
            return True
        value = getattr(node, "value", None)
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in DECLARING:
            return True
        return isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr)

    def _dropped_words(self, node: ast.Call, where: Where) -> Iterator[Mutant]:
        if where.message or (isinstance(node.func, ast.Name) and node.func.id in DECLARING):
            return
        for number, word in enumerate(node.keywords):
            if word.arg and word.arg != "hint":
                left = [*node.keywords[:number], *node.keywords[number + 1 :]]
                yield Mutant(
                    self.module, where, word.lineno, "word dropped", node, "keywords", None, node.keywords, left
                )

    @staticmethod
    def _changes(node: ast.AST, parent: ast.AST, slot: str, where: Where) -> Iterator[tuple[str, ast.AST | None]]:
        made: list[tuple[str, ast.AST]] = []
        match node:
            case ast.Constant(value=bool(value)):
                made.append(("constant", ast.Constant(not value)))
            case ast.Constant(value=int(value)):
                made.append(("constant", ast.Constant(value + 1)))
                if value > 0:
                    made.append(("constant", ast.Constant(value - 1)))
            case ast.Constant(value=float(value)):
                made.append(("constant", ast.Constant(value + 1.0)))
            case ast.Constant(value=str(value)) if not where.message and WORD.fullmatch(value):
                if not isinstance(parent, ast.JoinedStr):
                    made.append(("string", ast.Constant(f"XX{value}XX")))
            case ast.BoolOp(op=operator, values=values):
                made.append(("and, or", ast.BoolOp(ast.And() if isinstance(operator, ast.Or) else ast.Or(), values)))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                made.append(("not", operand))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                made.append(("sign", operand))
            case ast.BinOp(left=left, op=operator, right=right) if not (is_text(left) or is_text(right)):
                if type(operator) in CALCULATED:
                    made.append(("arithmetic", ast.BinOp(left, CALCULATED[type(operator)](), right)))
            case ast.AugAssign(target=target, op=operator, value=value):
                if not is_text(value):
                    made.append(("arithmetic", ast.AugAssign(target, CALCULATED[type(operator)](), value)))
                made.append(("dropped", ast.Pass()))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=words) if name in CALLED:
                made.append(("function", ast.Call(ast.Name(CALLED[name], ast.Load()), args, words)))
            case ast.Return(value=None):
                made.append(("dropped", ast.Pass()))
            case ast.Return(value=ast.Constant()):
                pass
            case ast.Return():
                made += [("returned", ast.Return(ast.Constant(given))) for given in TRUTHS[where.truth]]
            case ast.Expr(value=ast.Call() | ast.Await()) | ast.Delete() | ast.Raise():
                made.append(("dropped", ast.Pass()))
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.AnnAssign(target=ast.Attribute()):
                made.append(("dropped", ast.Pass()))
            case ast.Break():
                made.append(("break, continue", ast.Continue()))
            case ast.Continue():
                made.append(("break, continue", ast.Break()))
            case _:
                pass
        if slot == "test" and isinstance(parent, ast.If | ast.IfExp | ast.While) and isinstance(node, ast.expr):
            opposite = opposite_of(node)
            made += [("condition", opposite)] if opposite is not None else []
        if slot == "guard" or (slot == "ifs" and isinstance(parent, ast.comprehension)):
            made.append(("condition", ast.Constant(True)))
        for kind, new in made:
            yield kind, ast.copy_location(new, node)


def mutants_of(module: str, source: str) -> tuple[ast.Module, list[Mutant]]:
    """The tree of a module and all edits of it. The same text gives the same edits in the same order."""
    tree = ast.parse(source)
    return tree, Walk(module, tree).mutants()
