"""The layout that docs/architecture.md promises: who imports whom, a pure core, a threadless
parent.
"""

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a package of webhookd may import besides itself and `LEAVES`. The command line may import
# everything.
LEAVES = frozenset({"errors", "logs", "text", "lifeline"})
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    package: frozenset(others.split())
    for package, others in {
        "core": "",
        "config": "core",
        "transport": "core",
        "metrics": "core",
        "postgres": "core config",
        "schema": "postgres",
        "embedded": "",
        "supervisor": "core config",
        "worker": "core config postgres transport metrics schema",
        "admin": "core config postgres transport metrics schema embedded",
        "demo": "core postgres schema embedded",
        "errors": "",
        "logs": "",
        "text": "",
        "lifeline": "",
    }.items()
}

PURE = frozenset(
    {"base64", "binascii", "bisect", "collections", "collections.abc", "dataclasses", "datetime"}
) | {
    *(
        "email.utils",
        "enum",
        "functools",
        "hashlib",
        "heapq",
        "hmac",
        "itertools",
        "json",
        "math",
        "operator",
        "re",
    ),
    *("types", "typing", "uuid"),
}
# What reads a clock, throws dice or talks to the world although its module is fine.
IMPURE_CALLS = frozenset(
    [
        "now",
        "utcnow",
        "today",
        "uuid1",
        "uuid4",
        "localtime",
        "formatdate",
        "open",
        "print",
        "input",
    ]
)
NOT_IN_THE_PARENT = frozenset(
    {"psycopg", "psycopg_pool", "urllib3", "httptools", "prometheus_client", "threading"}
)

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60


def sources() -> list[Path]:
    return sorted((ROOT / "webhookd").rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def imports(path: Path, *, also_late: bool) -> Iterator[str]:
    """Yield the full names of the modules that a file imports, as far as they can be told from
    names in them.
    """
    modules = {name_of(source) for source in sources()}
    body: list[ast.AST] = [*tree_of(path).body]
    while body:
        node = body.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} has a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules else str(node.module)
        elif also_late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            body.extend(ast.iter_child_nodes(node))


def closure(module: str, graph: dict[str, set[str]]) -> set[str]:
    """Return *module* and every module that importing it imports."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(graph.get(name, set()))
    return seen


def graph_of_imports() -> dict[str, set[str]]:
    return {name_of(path): set(imports(path, also_late=False)) for path in sources()}


def package_of(module: str) -> str:
    """Return the name right below webhookd; the command line is everything that has no rule."""
    return [*module.split("."), "cli"][1]


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_a_package_imports_what_it_may(path: Path) -> None:
    package = package_of(name_of(path))
    allowed = MAY_IMPORT.get(package)
    if allowed is not None:
        foreign = {
            package_of(name)
            for name in imports(path, also_late=True)
            if name.startswith("webhookd.")
        } - {package}
        assert foreign <= allowed | (LEAVES if package != "core" else frozenset()), (
            f"{name_of(path)} imports {foreign}"
        )


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = graph_of_imports()
    circles = [
        module
        for module in graph
        for imported in graph[module]
        if imported != module and module in closure(imported, graph)
    ]
    assert circles == []


@pytest.mark.parametrize("path", sorted((ROOT / "webhookd" / "core").glob("*.py")), ids=name_of)
def test_the_core_reads_no_clock_throws_no_dice_and_does_no_input_or_output(path: Path) -> None:
    foreign = {
        name
        for name in imports(path, also_late=True)
        if name not in PURE and not name.startswith("webhookd.core")
    }
    assert foreign == set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            called = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            assert called not in IMPURE_CALLS, f"{name_of(path)}:{node.lineno} calls {called}()"


def test_the_parent_of_the_workers_imports_no_threads_and_no_database() -> None:
    reached = closure("webhookd.supervisor.supervisor", graph_of_imports())
    assert {name for name in reached if name.split(".")[0] in NOT_IN_THE_PARENT} == set()


def test_importing_the_supervisor_loads_no_database_driver_and_no_http_client() -> None:
    # Standard modules bring threading along; what counts there is that nobody starts one.
    packages = sorted(NOT_IN_THE_PARENT - {"threading"})
    script = f"import sys, webhookd.supervisor.supervisor; print([name for name in {packages} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_embedded_postgresql_is_started_without_the_database_driver() -> None:
    reached = closure("webhookd.embedded.server", graph_of_imports())
    assert {
        name for name in reached if name.split(".")[0] in NOT_IN_THE_PARENT - {"threading"}
    } == set()


@pytest.mark.parametrize("path", [*sources(), *sorted((ROOT / "tests").rglob("*.py"))], ids=name_of)
def test_modules_and_functions_are_short_enough_to_be_read(path: Path) -> None:
    if path in sources():
        assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MOST_LINES_OF_A_FUNCTION, (
                f"{node.name} is too long"
            )


def test_every_folder_of_code_is_a_package() -> None:
    assert {path.parent for path in sources()} == {
        path.parent for path in sources() if path.name == "__init__.py"
    }
    assert (ROOT / "sql" / "__init__.py").exists()


def test_every_folder_of_sql_is_packaged() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = set(setup["options.package_data"]["webhookd.sql"].split())
    assert patterns == {f"{path.parent.name}/*.sql" for path in (ROOT / "sql").glob("*/*.sql")}
