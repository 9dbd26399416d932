"""``python -m bench NAME [options]``: runs one comparison; without a name, lists them."""

import ast
import sys
from importlib import import_module
from pathlib import Path


def comparisons() -> dict[str, str]:
    """Name -> first line of the docstring of every module here that has a ``main``, read without importing it."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(file.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[file.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main() -> None:
    known = comparisons()
    name, *arguments = sys.argv[1:] or [""]
    if name not in known:
        listing = "\n".join(f"  {key:<14} {line}" for key, line in known.items())
        sys.exit(f"python -m bench NAME [options], with NAME one of\n{listing}")
    import_module(f"bench.{name}").main(arguments)


if __name__ == "__main__":
    main()
