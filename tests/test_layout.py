"""The layout that docs/architecture.md describes: which package imports which, a core without side
effects, a supervisor without threads, what is packaged, and how long files may be.
"""

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = sorted((ROOT / "webhookd").rglob("*.py"))
OTHERS = [path for name in ("tests", "bench", "monitoring") for path in (ROOT / name).rglob("*.py")]
CODE = [*PRODUCT, *sorted(OTHERS), ROOT / "setup.py"]

# What a package may import besides itself. `cli` may import everything, and nothing imports it.
LEAVES = "cache errors logs text"
MAY_IMPORT = {
    "core": "",
    "config": f"{LEAVES} core",
    "transport": f"{LEAVES} core",
    "metrics": f"{LEAVES} core",
    "postgres": f"{LEAVES} core config",
    "schema": f"{LEAVES} postgres",
    "embedded": LEAVES,
    "supervisor": f"{LEAVES} core config lifeline",
    "worker": f"{LEAVES} core config lifeline postgres transport metrics schema",
    "admin": f"{LEAVES} core config postgres transport metrics schema embedded",
    "demo": f"{LEAVES} core postgres schema embedded",
    **dict.fromkeys([*LEAVES.split(), "lifeline"], LEAVES),
}

# fmt: off
PURE = {
    "base64", "binascii", "bisect", "collections", "collections.abc", "dataclasses", "datetime",
    "email.utils", "enum", "functools", "hashlib", "heapq", "hmac", "itertools", "json", "math",
    "operator", "re", "types", "typing", "uuid",
}
# Calls that read a clock or a random number, or do input or output, in modules that are else fine.
IMPURE_CALLS = {
    "now", "utcnow", "today", "uuid1", "uuid4", "localtime", "formatdate", "open", "print", "input",
}
# fmt: on
NOT_IN_THE_PARENT = {
    "psycopg",
    "psycopg_pool",
    "urllib3",
    "httptools",
    "prometheus_client",
    "threading",
}

MAX_FILE, MAX_FUNCTION, MAX_LINE, MAX_NAMES = 400, 60, 100, 20


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


TREES = {name_of(path): ast.parse(path.read_text("utf-8"), str(path)) for path in PRODUCT}


def imports(module: str, *, also_late: bool = True) -> Iterator[str]:
    """Yield the full names of the modules that *module* imports; *also_late*: in functions too."""
    nodes: list[ast.AST] = [*TREES[module].body]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in TREES else str(node.module) for name in full)
        elif also_late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            nodes.extend(ast.iter_child_nodes(node))


GRAPH = {module: set(imports(module, also_late=False)) for module in TREES}


def reached_from(modules: Iterable[str]) -> set[str]:
    """Return *modules* and every module that importing them imports."""
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(GRAPH.get(name, ()))
    return seen


def package_of(module: str) -> str:
    """Return the name right below webhookd."""
    return module.split(".")[1]


def test_a_package_imports_only_what_it_may() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module in TREES
        for imported in imports(module)
        if module.startswith("webhookd.") and imported.startswith("webhookd.")
        if (package := package_of(module)) not in ("cli", "__main__")
        if package_of(imported) not in (package, *MAY_IMPORT[package].split())
    ]
    assert wrong == []


def test_no_module_imports_itself_through_others() -> None:
    assert [module for module in GRAPH if module in reached_from(GRAPH[module] - {module})] == []


def test_the_top_of_the_package_has_few_names() -> None:
    names = {path.relative_to(ROOT / "webhookd").parts[0] for path in PRODUCT}
    assert len(names) <= MAX_NAMES


@pytest.mark.parametrize(
    "module", [name for name in TREES if name.startswith("webhookd.core")], ids=str
)
def test_the_core_reads_no_clock_and_no_random_number_and_does_no_input_or_output(
    module: str,
) -> None:
    ours = {name for name in imports(module) if name.startswith("webhookd.core")}
    assert set(imports(module)) - ours <= PURE
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            assert called not in IMPURE_CALLS, f"{module}:{node.lineno} calls {called}()"


def test_the_supervisor_imports_no_threads_and_no_database() -> None:
    reached = reached_from(["webhookd.supervisor.supervisor"])
    assert {name for name in reached if name.split(".")[0] in NOT_IN_THE_PARENT} == set()


def test_importing_the_supervisor_loads_no_database_driver_and_no_http_client() -> None:
    # The standard library itself imports threading; what counts is that no thread starts.
    packages = sorted(NOT_IN_THE_PARENT - {"threading"})
    script = (
        "import sys, webhookd.supervisor.supervisor;"
        f"print([name for name in {packages} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_embedded_postgresql_is_started_without_the_database_driver() -> None:
    reached = reached_from(["webhookd.embedded.server"])
    forbidden = NOT_IN_THE_PARENT - {"threading"}
    assert {name for name in reached if name.split(".")[0] in forbidden} == set()


def test_no_file_is_too_long() -> None:
    too_long = [str(path.relative_to(ROOT)) for path in CODE if len(lines_of(path)) > MAX_FILE]
    assert not too_long, "\n".join(too_long)


def test_no_function_is_too_long() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION
    ]
    assert not too_long, "\n".join(too_long)


def test_no_line_is_too_long() -> None:
    # Released migrations never change; a row of a Markdown table cannot be broken.
    patterns = (
        "sql/adopt/*.sql sql/queries/*.sql tests/**/*.sql *.md docs/*.md bench/*.md *.cfg *.toml"
    )
    texts = [path for pattern in patterns.split() for path in ROOT.glob(pattern)]
    too_long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*CODE, *texts]
        for number, line in enumerate(lines_of(path), 1)
        if len(line) > MAX_LINE and not (path.suffix == ".md" and line.lstrip().startswith("|"))
    ]
    assert not too_long, "\n".join(too_long)


def lines_of(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def test_every_folder_of_code_is_a_package() -> None:
    packages = {path.parent for path in PRODUCT if path.name == "__init__.py"}
    assert {path.parent for path in PRODUCT} == packages
    assert (ROOT / "sql" / "__init__.py").exists()


def test_every_folder_of_sql_is_packaged() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = set(setup["options.package_data"]["webhookd.sql"].split())
    assert patterns == {f"{path.parent.name}/*.sql" for path in (ROOT / "sql").glob("*/*.sql")}
