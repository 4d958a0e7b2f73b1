"""The mutants of a module: what cosmic-ray changes in it, but for what does not run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

#: The first two put random numbers in the place of variables that are named beforehand. Of what Python has only one of,
#: such as None, small numbers and single bytes, ``is`` and ``==`` say the same.
_LEFT_OUT = {
    *("core/VariableReplacer", "core/VariableInserter"),
    *("core/ReplaceComparisonOperator_Is_Eq", "core/ReplaceComparisonOperator_IsNot_NotEq"),
    *("core/ReplaceComparisonOperator_Eq_Is", "core/ReplaceComparisonOperator_NotEq_IsNot"),
}
#: What explains, in a comment on the same line or alone above it, why no test can kill the mutants of a line.
EXPLAINED = "pragma: no mutate"


class Mutant(NamedTuple):
    """One change of a module.

    Attributes:
        path: the module's file.
        line, column: where it is changed.
        was, becomes: the line before and after.
        code: the whole module after it.
        explained: whether a comment says why no test can tell.
    """

    path: Path
    line: int
    column: int
    was: str
    becomes: str
    code: str
    explained: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}\n- {self.was.strip()}\n+ {self.becomes.strip()}"


def unchanged(path: Path) -> Mutant:
    """Returns the module as it is, which no test may kill."""
    return Mutant(path, 1, 0, "", "", path.read_text(encoding="utf-8"), False)


def mutants(path: Path) -> Iterator[Mutant]:
    """Yields the mutants of a module in the order of its lines; of several that are the same program, the first."""
    code = path.read_text(encoding="utf-8")
    lines, seen, found = code.splitlines(), {_program(code)}, []
    tree = get_ast(code)
    for name in sorted(set(operator_names()) - _LEFT_OUT):
        operator = get_operator(name)()
        places = [place for node in ast_nodes(tree) for place in operator.mutation_positions(node)]
        for number, ((line, column), _) in enumerate(places):
            mutated = mutate_code(code, operator, number) or code
            program = _program(mutated)
            if program is not None and program not in seen:
                seen.add(program)
                changed = mutated.splitlines()
                # The tree's place may be where a statement begins; the text says where it is changed.
                pairs = enumerate(zip(lines, changed, strict=False))
                at = next((i for i, (a, b) in pairs if a != b and a.strip()), line - 1)
                explained = _explained(lines, at) or _explained(lines, line - 1)
                found.append(Mutant(path, at + 1, column, lines[at], changed[at], mutated, explained))
    return iter(sorted(found, key=lambda mutant: (mutant.line, mutant.column)))


def _explained(lines: list[str], at: int) -> bool:
    above = lines[at - 1].lstrip() if at else ""
    return EXPLAINED in lines[at] or (above.startswith("#") and EXPLAINED in above)


def _program(code: str) -> str | None:
    """What runs of a module's code; None where nothing does."""
    try:
        return ast.dump(_Unannotated().visit(ast.parse(code)))
    except (SyntaxError, ValueError):
        return None


class _Unannotated(ast.NodeTransformer):
    """Takes away what only type checkers read: annotations, which nothing evaluates, and their imports.

    Nor does it matter which arguments must be given by name, or must not be.
    """

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        defaults: list[ast.expr | None] = [None] * (len(node.posonlyargs) + len(node.args) - len(node.defaults))
        node.kw_defaults = [*defaults, *node.defaults, *node.kw_defaults]
        node.kwonlyargs = [*node.posonlyargs, *node.args, *node.kwonlyargs]
        node.posonlyargs, node.args, node.defaults = [], [], []
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        if any(isinstance(part, ast.Name) and part.id == "TYPE_CHECKING" for part in ast.walk(node.test)):
            return ast.Pass()
        return self.generic_visit(node)
