"""The storms' result: a table for each family, below it the faults, and at the end the sum."""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from tests.storm.storm import Account

HEAD = ("storm", "kills", "deliveries", "lost", "repeated (bound)", "to recover: median / worst")
WIDTH = 100


def table(accounts: Sequence[Account]) -> str:
    """Return the result as Markdown, in lines of WIDTH columns where the names of storms allow."""
    total = Account("all", "all")
    for account in accounts:
        total.faults += account.faults
        total.kills += account.kills
        total.deliveries += account.deliveries
        total.lost += account.lost
        total.repeated += account.repeated
        total.allowed += account.allowed
        total.recoveries += account.recoveries
    parts = [
        part
        for family, its in groupby(accounts, lambda account: account.family)
        for part in _family(family, list(its))
    ]
    faults = f"{total.faults.total():,} faults in all storms together."
    return "\n\n".join([*parts, "### all", _rows([total]), faults])


def _family(family: str, accounts: Sequence[Account]) -> Iterator[str]:
    yield f"### {family}"
    yield _rows(accounts)
    lines = [
        f"- {account.storm}: "
        + (", ".join(f"{count} {fault}" for fault, count in account.faults.items()) or "none")
        for account in accounts
    ]
    wrapped = (textwrap.wrap(line, WIDTH, subsequent_indent="  ") for line in lines)
    yield "\n".join(["Faults:", "", *(line for item in wrapped for line in item)])


def _rows(accounts: Sequence[Account]) -> str:
    lines = [HEAD, tuple("---" for _ in HEAD), *map(_cells, accounts)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(account: Account) -> tuple[str, ...]:
    return (
        account.storm,
        str(account.kills),
        f"{account.deliveries:,}",
        str(account.lost),
        f"{account.repeated:,} ({account.allowed:,})",
        account.recovery(),
    )
