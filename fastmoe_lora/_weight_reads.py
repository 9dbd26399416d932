"""Which layers a module's code reads the weight of instead of calling them, found in the source of its ``forward``."""

import ast
import inspect
import operator
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

from torch import nn

Path = tuple[str, ...]  # attributes from a module down; "*" is an index that is not known

# What may be asked of a weight without computing with it; the last ones give a tensor its dtype or device.
_ASKED = {"dtype", "device", "shape", "size", "dim", "ndim", "numel", "is_cuda", "is_meta", "requires_grad", "layout"}
_ASKED |= {"is_quantized", "element_size", "stride", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}
_ASKING_CALLS = {"isinstance", "hasattr", "type", "id", "len", "print", "to", "type_as"}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
}
_COMPARISONS |= {ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not}
_UNKNOWN = object()
# PyTorch's fused inference, which is switched off where there are adapters (`_fused_paths`).
_EXEMPT: set[Callable[..., Any]] = {nn.TransformerEncoder.forward, nn.TransformerEncoderLayer.forward}


class Read(NamedTuple):
    """A read of the weight of the layer at ``path``, and where: "Attention.forward (beit.py, line 225)"."""

    path: Path
    where: str

    def is_of(self, path: Path) -> bool:
        return len(path) == len(self.path) and all(
            mine in ("*", theirs) for mine, theirs in zip(self.path, path, strict=True)
        )


def weight_reads(module: nn.Module, settings: Mapping[str, Any]) -> list[Read]:
    """The reads in ``module``'s forward and in what it calls with itself or parts of itself.

    Branches that the module's own attributes, with ``settings`` in their place, leave out do not count; all others do.
    Code without source is not looked into.
    """
    scan = _Scan(module, settings)
    forward = inspect.unwrap(module.forward)
    function = getattr(forward, "__func__", forward)
    if isinstance(function, FunctionType):
        scan.function(function, {0: {()}})
    return scan.reads


@lru_cache(maxsize=4096)
def _parsed(function: FunctionType) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    found = tree.body[0]
    return found if isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef)) else None


@lru_cache(maxsize=4096)
def _changing(kind: type) -> frozenset[str]:
    """Attributes that methods of the class set after construction: what they are now says nothing about later."""
    names = {"training"}
    for function in (value for base in kind.__mro__ for value in vars(base).values()):
        if isinstance(function, FunctionType) and function.__name__ not in ("__init__", "__setstate__"):
            tree = _parsed(function) if _is_foreign(function) else None
            for node in ast.walk(tree) if tree else ():
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    names.add(node.attr)
    return frozenset(names)


def _is_foreign(function: FunctionType) -> bool:
    return function.__module__ != nn.Module.__module__


class _Scan:
    def __init__(self, module: nn.Module, settings: Mapping[str, Any]):
        self.module, self.settings = module, settings
        self.reads: list[Read] = []
        self._seen: set[tuple[FunctionType, frozenset[tuple[int | str, frozenset[Path]]]]] = set()

    def function(self, function: FunctionType, given: Mapping[int | str, set[Path]]) -> None:
        """Scans ``function`` whose arguments ``given``, by place or name, are parts of the module."""
        key = (function, frozenset((name, frozenset(paths)) for name, paths in given.items()))
        tree = None if key in self._seen or function in _EXEMPT else _parsed(function)
        self._seen.add(key)
        if tree is None:
            return
        names = [argument.arg for argument in (*tree.args.posonlyargs, *tree.args.args)]
        held = {names[name] if isinstance(name, int) else name: set(paths) for name, paths in given.items()
                if not isinstance(name, int) or name < len(names)}  # fmt: skip
        _Function(self, function, held).block(tree.body)

    def value(self, path: Path) -> Any:
        """What an attribute of the module is, if that is sure to stay."""
        if len(path) == 1 and path[0] in self.settings:
            return self.settings[path[0]]
        value: Any = self.module
        for name in path:
            if name == "*" or (isinstance(value, nn.Module) and name in _changing(type(value))):  # type: ignore[arg-type] # a class is hashable
                return _UNKNOWN
            try:
                value = getattr(value, name)
            except Exception:
                return _UNKNOWN
        return value


class _Function:
    """One function, ``held`` being the parts of the module that its variables may be."""

    def __init__(self, scan: _Scan, function: FunctionType, held: dict[str, set[Path]]):
        self.scan, self.code, self.held = scan, function, held

    def block(self, statements: list[ast.stmt]) -> bool:
        """Scans statements; whether it is sure that they return or raise."""
        for statement in statements:
            if isinstance(statement, ast.If):
                decided = self.truth(statement.test)
                self.visit(statement.test)
                ends = [self.block(part) for part, left_out in ((statement.body, False), (statement.orelse, True))
                        if decided is not left_out]  # fmt: skip
                if all(ends):
                    return True
                continue
            self.visit(statement)
            if isinstance(statement, (ast.Return, ast.Raise)):
                return True
        return False

    def visit(self, node: ast.AST, parent: ast.AST | None = None) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self.bind(target, node.value)
        elif isinstance(node, (ast.NamedExpr, ast.AnnAssign)) and node.value is not None:
            self.bind(node.target, node.value)
        elif isinstance(node, (ast.For, ast.comprehension)):
            self.bind_each(node.target, node.iter)
        elif isinstance(node, ast.Call):
            self.call(node)
        for path in self.paths(node):
            if path[-1:] == ("weight",) and not _only_asks(node, parent):
                where = f"{self.code.__qualname__} ({self.code.__code__.co_filename.rpartition('/')[2]}, "
                line = self.code.__code__.co_firstlineno + getattr(node, "lineno", 1) - 1
                self.scan.reads.append(Read(path[:-1], f"{where}line {line})"))
        if isinstance(node, ast.IfExp):
            decided = self.truth(node.test)
            parts = [
                node.test,
                *([node.body] if decided is not False else []),
                *([node.orelse] * (decided is not True)),
            ]
            for part in parts:
                self.visit(part, parent if part is not node.test else node)
            return
        for _, field in ast.iter_fields(node):
            for child in field if isinstance(field, list) else [field]:
                if isinstance(child, ast.stmt) and isinstance(field, list):
                    self.block(field)
                    break
                if isinstance(child, ast.AST):
                    self.visit(child, node)

    def paths(self, node: ast.AST) -> set[Path]:
        """The parts of the module that an expression may be."""
        if isinstance(node, ast.Name):
            return self.held.get(node.id, set()) if isinstance(node.ctx, ast.Load) else set()
        if isinstance(node, ast.Attribute):
            return {(*path, node.attr) for path in self.paths(node.value)} if isinstance(node.ctx, ast.Load) else set()
        if isinstance(node, ast.Subscript):
            within = {path for path in self.paths(node.value) if path[-1:] != ("weight",)}
            if isinstance(node.slice, ast.Slice):
                return within
            return {(*path, str(node.slice.value) if isinstance(node.slice, ast.Constant) else "*") for path in within}
        if isinstance(node, ast.NamedExpr):
            return self.paths(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            name = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else "*"
            return {(*path, str(name)) for path in self.paths(node.args[0])} if node.args else set()
        return set()

    def bind(self, target: ast.AST, value: ast.AST) -> None:
        if isinstance(target, ast.Name):
            parts = (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,)
            self.held.setdefault(target.id, set()).update(*map(self.paths, parts))
        elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (ast.Tuple, ast.List)):
            for one, other in zip(target.elts, value.elts, strict=False):
                self.bind(one, other)

    def bind_each(self, target: ast.AST, iterable: ast.AST) -> None:
        """A loop's variables: the elements of what is looped over."""
        if isinstance(iterable, ast.Call):
            function, arguments, name = iterable.func, iterable.args, _name_of(iterable.func)
            if name in ("enumerate", "zip", "items") and isinstance(target, ast.Tuple):
                over = [function.value] if isinstance(function, ast.Attribute) and name == "items" else arguments
                for one, each in zip(target.elts[0 if name == "zip" else 1 :], over, strict=False):
                    self.bind_each(one, each)
                return
            if isinstance(function, ast.Attribute) and name in ("children", "values", "modules"):
                iterable = function.value
            elif name in ("reversed", "list", "tuple", "iter") and arguments:
                iterable = arguments[0]
        if isinstance(iterable, (ast.Tuple, ast.List)):
            for element in iterable.elts:
                self.bind(target, element)
        elif isinstance(target, ast.Name):
            self.held.setdefault(target.id, set()).update((*path, "*") for path in self.paths(iterable))

    def call(self, node: ast.Call) -> None:
        """Follows a call of the module's own methods, and of any function that is handed a part of the module."""
        given: dict[int | str, set[Path]] = {}
        arguments: list[tuple[int | str, ast.expr]] = [*enumerate(node.args)]
        arguments += ((keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg)
        for place, argument in arguments:
            if paths := {path for path in self.paths(argument) if path[-1:] != ("weight",)}:
                given[place] = paths
        for function, owner in self.functions(node.func):
            shifted = {place + 1 if isinstance(place, int) else place: paths for place, paths in given.items()}
            self.scan.function(function, {0: {()}, **shifted} if owner else given)

    def functions(self, called: ast.AST) -> Iterator[tuple[FunctionType, bool]]:
        """(function, whether it is a method of the module)."""
        kind = type(self.scan.module)
        if isinstance(called, ast.Attribute) and _is_super(called.value):
            for base in kind.__mro__[1:]:
                if isinstance(function := vars(base).get(called.attr), FunctionType) and function is not self.code:
                    yield inspect.unwrap(function), True
        elif isinstance(called, ast.Attribute) and () in self.paths(called.value):
            function = inspect.getattr_static(self.scan.module, called.attr, None)
            static = isinstance(function, staticmethod)
            function = inspect.unwrap(getattr(function, "__func__", function))
            if isinstance(function, FunctionType) and _is_foreign(function):
                yield function, not static and called.attr not in vars(self.scan.module)
        elif isinstance(called, ast.Name):
            function = self.code.__globals__.get(called.id)
            if isinstance(function, FunctionType):
                yield inspect.unwrap(function), False

    def truth(self, test: ast.AST) -> bool | None:
        """Whether a condition holds; None if that is not known from the module's attributes."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.truth(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            parts = [self.truth(value) for value in test.values]
            decisive = isinstance(test.op, ast.Or)
            return decisive if decisive in parts else None if None in parts else not decisive
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and type(test.ops[0]) in _COMPARISONS:
            values = [self.value(test.left), self.value(test.comparators[0])]
            simple = all(value is None or isinstance(value, (bool, int, float, str)) for value in values)
            if _UNKNOWN in values or not (simple or isinstance(test.ops[0], (ast.Is, ast.IsNot))):
                return None
            try:
                return _COMPARISONS[type(test.ops[0])](*values)
            except TypeError:
                return None
        if isinstance(test, ast.Call):
            return False if _name_of(test.func) == "is_scripting" else None
        value = self.value(test)
        known = value is None or isinstance(value, (bool, int, float, str))
        return bool(value) if known else None

    def value(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        paths = self.paths(node)
        return self.scan.value(next(iter(paths))) if len(paths) == 1 else _UNKNOWN


def _name_of(function: ast.AST) -> str:
    return getattr(function, "id", getattr(function, "attr", ""))


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _name_of(node.func) == "super"


def _only_asks(weight: ast.AST, parent: ast.AST | None) -> bool:
    """Whether this use of a weight asks for its kind or gives it another name, which is followed."""
    if isinstance(parent, ast.Attribute):
        return parent.attr in _ASKED
    if isinstance(parent, ast.Call) and weight is not parent.func:
        return _name_of(parent.func) in _ASKING_CALLS or (
            _name_of(parent.func) == "getattr" and weight is parent.args[0]
        )
    if isinstance(parent, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
        return True
    return isinstance(parent, ast.Compare) and all(isinstance(op, (ast.Is, ast.IsNot)) for op in parent.ops)
