"""The storms' table: a line for each, and the sum."""

from collections.abc import Sequence

from tests.storm.storm import Account

HEAD = (
    "family",
    "storm",
    "faults",
    "of them kills",
    "deliveries",
    "lost",
    "repeated (bound)",
    "to recover: median / worst",
)


def table(accounts: Sequence[Account]) -> str:
    """Return the table as Markdown."""
    total = Account("all", "")
    for account in accounts:
        total.faults += account.faults
        total.kills += account.kills
        total.deliveries += account.deliveries
        total.lost += account.lost
        total.repeated += account.repeated
        total.allowed += account.allowed
        total.recoveries += account.recoveries
    lines = [HEAD, tuple("---" for _ in HEAD), *map(_cells, accounts), _cells(total)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(account: Account) -> tuple[str, ...]:
    faults = ", ".join(f"{count} {fault}" for fault, count in account.faults.items())
    return (
        account.family,
        account.storm,
        faults if account.storm else str(account.faults.total()),
        str(account.kills),
        f"{account.deliveries:,}",
        str(account.lost),
        f"{account.repeated:,} ({account.allowed:,})",
        account.recovery(),
    )
