"""Defects planted in webhookd.core, each with the property that must catch it; and steps left out
of the stored breaker.

A property that passes says little until it is seen to fail. `tests/support/planted` has what it
must fail for.
"""

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from hypothesis import HealthCheck, Phase, settings

CHECK = settings(
    max_examples=80, stateful_step_count=30, deadline=None, database=None, derandomize=True
)
# A mutant must be caught; a short example that explains it is not needed.
HUNT = settings(
    CHECK,
    max_examples=5000,
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """webhookd.core.*module* with *was* replaced by *becomes*; the property *killed_by* must fail
    on it.

    *was* matches with any white space between its words and symbols, and with a comma that the
    formatter puts before a bracket.
    """

    module: str
    was: str
    becomes: str
    killed_by: str

    def plant(self) -> ModuleType:
        """Return the changed module; nothing else sees it.

        Raise `LookupError` where *was* does not occur exactly once. Not `AssertionError`: the tests
        expect that of a mutant that was caught, and would take a mutant for caught that was never
        planted.
        """
        original = import_module(f"webhookd.core.{self.module}")
        assert original.__file__ is not None
        source = Path(original.__file__).read_text(encoding="utf-8")
        changed, count = re.subn(_pattern(self.was), lambda _: self.becomes, source)
        if count != 1:
            raise LookupError(f"{self.module}.py contains {count} times: {self.was}")
        mutated = ModuleType(original.__name__)
        exec(compile(changed, f"<{self}>", "exec"), mutated.__dict__)
        return mutated

    def __str__(self) -> str:
        return f"{self.module}: {_change(self.was, self.becomes)}"


@dataclass(frozen=True, slots=True)
class StoredMutant:
    """A step that the stored breaker needs, left out.

    *place* is a statement of sql/queries, or `lane` (the core's), `reset_circuit` (the trigger's
    function), `token` (the dice). A *rare* one takes a long search to be caught: `make storm` does
    that.
    """

    place: str
    was: str
    becomes: str
    rare: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {_change(self.was, self.becomes)}"


def planted_in(module: str) -> list[Mutant]:
    """Return the mutants of webhookd.core.*module*."""
    planted: dict[str, list[tuple[str, str]]] = import_module(
        f"tests.support.planted.{module}"
    ).MUTANTS
    return [
        Mutant(module, was, becomes, killed_by)
        for killed_by, changes in planted.items()
        for was, becomes in changes
    ]


def _pattern(text: str) -> str:
    parts = re.findall(r"\w+|[^\w\s]", text)
    return r"\s*".join(
        rf",?\s*{re.escape(part)}" if part in ")]}" else re.escape(part) for part in parts
    )


def _change(was: str, becomes: str) -> str:
    return f"{' '.join(was.split())} -> {' '.join(becomes.split()) or 'nothing'}"
