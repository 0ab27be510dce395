"""Checks of what is in the queue, the lanes and the registry."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from psycopg import errors

from webhookd.admin import held
from webhookd.admin.doctor.findings import Finding, error, note, warning
from webhookd.admin.doctor.installation import Installation
from webhookd.core.model import MAX_WEBHOOK_ID, WebhookSettings
from webhookd.postgres.retention import Keep, Reference, removals
from webhookd.postgres.rows import defaults_of, settings_of
from webhookd.transport import request
from webhookd.transport.egress import Egress

OVERDUE_S = 300.0
HELD_S = 300.0
LATE_S = 600.0  # at which a round through a table counts as late, besides the time it should take
SETTLE_S = 1.0
# Reading a URL takes some 20 us.
MOST_WEBHOOKS = 20_000
MOST_CIRCUITS = 5


def waiting(installation: Installation) -> Iterator[Finding]:
    """Deliveries that wait for something that does not happen by itself."""
    commands = installation.commands
    for row in installation.rows("doctor_waiting", overdue_s=OVERDUE_S):
        first, which = row["webhook_ids"][0], _some(row["webhook_ids"], row["webhooks"])
        match row["cause"]:
            case "impossible":
                yield warning(
                    f"deliveries wait for {which}, and only ids from 1 to {MAX_WEBHOOK_ID} can be "
                    "registered: correct their webhook_id, or give them up",
                    commands.sql(
                        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed'"
                        f" WHERE webhook_id NOT BETWEEN 1 AND {MAX_WEBHOOK_ID}"
                        " AND delivery_status IN ('pending', 'retrying')"
                    ),
                )
            case "unregistered":
                yield warning(
                    f"deliveries wait for {which}: not registered",
                    commands.webhookd(f"webhook add URL --id {first}"),
                )
            case "gone":
                yield note(
                    f"deliveries wait for {which}, disabled since the receiver answered 410 "
                    "Gone; once it accepts them again:",
                    commands.webhookd(f"webhook resume {first}"),
                )
            case "paused":
                yield note(
                    f"deliveries wait for {which}: paused or disabled",
                    commands.webhookd(f"webhook resume {first}"),
                )
            case "parked":
                yield error(
                    f"deliveries of {which} are due and no worker will look at them: the lane "
                    "lost its timer",
                    commands.sql(
                        "INSERT INTO pggit.webhook_health_metrics (webhook_id, runnable_at) "
                        f"VALUES ({first}, now())"
                        " ON CONFLICT (webhook_id) DO UPDATE SET runnable_at = now()"
                    ),
                )
            case "due" if row["oldest_s"] > OVERDUE_S:
                yield error(
                    f"deliveries of {which} have been due for up to {row['oldest_s']:.0f} s and "
                    "nothing holds them back:"
                    " there are too few workers, or none",
                    commands.start(f"--workers {2 * installation.config.workers}"),
                )


def circuits(installation: Installation) -> Iterator[Finding]:
    """Receivers that failed several times in a row, and get nothing until a probe succeeds."""
    found = installation.rows("doctor_circuits", limit=MOST_CIRCUITS)
    if not found:
        return
    ids = [row["webhook_id"] for row in found]
    since = "; ".join(f"{row['webhook_id']} {_last_success(row['success_s'])}" for row in found)
    yield warning(
        f"the circuit of {_some(ids, found[0]['webhooks'])} is open ({since}): its deliveries "
        "wait until a probe is answered;"
        f" `webhookd webhook test {ids[0]}` tries it; when the receiver is back, this "
        "command closes the circuit",
        installation.commands.sql(
            "UPDATE pggit.webhook_health_metrics SET consecutive_failures = 0, health_status = "
            "'healthy', last_check_at = now()"
            f" WHERE webhook_id IN ({', '.join(map(str, ids))})"
        ),
    )


def _last_success(seconds_ago: float | None) -> str:
    return "never succeeded" if seconds_ago is None else f"last succeeded {seconds_ago:.0f} s ago"


def leases(installation: Installation) -> Iterator[Finding]:
    """Claims that no worker works on and no worker released."""
    found = installation.row("doctor_leases")
    again = (
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending' "
        "WHERE delivery_status = 'sending' AND "
    )
    if found["expired"]:
        yield warning(
            f"{found['expired']} leases expired over a minute ago and no worker released them: "
            "none is alive, or lanes are locked",
            installation.commands.sql(again + "lease_until < now() - interval '1 minute'"),
        )
    if found["unleased"]:
        yield error(
            f"{found['unleased']} deliveries are 'sending' without a lease: they are not sent, "
            "now or later",
            installation.commands.sql(again + "(lease_until IS NULL OR lease_token IS NULL)"),
        )


def quarantine(installation: Installation) -> Iterator[Finding]:
    """Deliveries in quarantine: each may be what kills workers."""
    for row in installation.rows("doctor_quarantined"):
        yield warning(
            f"delivery {row['delivery_id']} for webhook {row['webhook_id']} lost "
            f"{row['leases_lost']} leases: workers died while"
            " they sent it; it is tried alone, and fails after 6; this fails it now",
            installation.commands.sql(
                "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE "
                f"delivery_id = {row['delivery_id']}"
            ),
        )


def locks(installation: Installation) -> Iterator[Finding]:
    """Long transactions of applications and operators that stand in the way."""
    for row in installation.rows("doctor_locks", old_s=HELD_S):
        yield warning(
            f"session {row['pid']} of {row['usename']} ({row['application_name'] or 'no name'}, "
            f"{row['state']}) has been in a"
            f" transaction with {', '.join(row['tables'])} for {row['age_s']:.0f} s: what it "
            "inserted is sent once it commits,"
            " what it locked once it ends",
            installation.commands.sql(f"SELECT pg_terminate_backend({row['pid']})"),
        )


def lanes(installation: Installation) -> Iterator[Finding]:
    """Whether the counters behind --max-in-flight are correct."""

    def wrong() -> set[int]:
        return {row["webhook_id"] for row in installation.rows("doctor_lanes")}

    first = wrong()
    if not first:
        return
    time.sleep(SETTLE_S)
    lasting = sorted(first & wrong())
    if lasting:
        listed = ", ".join(map(str, lasting))
        yield warning(
            f"the count of exchanges in flight is wrong for {_some(lasting, len(lasting))}, "
            "which may be held back for it;"
            " workers correct it within 30 s",
            installation.commands.sql(
                "UPDATE pggit.webhook_health_metrics h SET in_flight = (SELECT count(*) FROM "
                "pggit.alert_delivery_queue q"
                " WHERE q.webhook_id = h.webhook_id AND q.delivery_status = 'sending') WHERE "
                f"h.webhook_id IN ({listed})"
            ),
        )


def rows(installation: Installation) -> Iterator[Finding]:
    """Whether finished deliveries have the columns of finished ones."""
    found = installation.row("doctor_rows")
    update, newest = "UPDATE pggit.alert_delivery_queue SET ", f"delivery_id >= {found['first_id']}"
    if found["undated"]:
        yield warning(
            f"{found['undated']} of the newest deliveries are delivered without delivered_at",
            installation.commands.sql(
                f"{update}delivered_at = coalesce(attempted_at, created_at)"
                f" WHERE delivery_status = 'delivered' AND delivered_at IS NULL AND {newest}"
            ),
        )
    if found["held"]:
        yield warning(
            f"{found['held']} of the newest deliveries are finished and still leased",
            installation.commands.sql(
                f"{update}lease_token = NULL, lease_until = NULL, leased_by = NULL"
                " WHERE delivery_status IN ('delivered', 'failed')"
                f" AND (lease_until IS NOT NULL OR leased_by IS NOT NULL) AND {newest}"
            ),
        )
    if found["overspent"]:
        yield note(
            f"{found['overspent']} of the newest deliveries were retried more often than their "
            "max_retries says now"
        )


def attempts(installation: Installation) -> Iterator[Finding]:
    """Whether no attempt was recorded twice."""
    if found := installation.rows("doctor_attempts"):
        first = found[0]
        yield warning(
            f"{len(found)} of the newest attempts are in the attempt log more than once, the "
            f"first: attempt {first['attempt']} of"
            f" delivery {first['delivery_id']}; something else wrote there or set `attempts` back, "
            "or this is a fault of webhookd's",
            installation.commands.webhookd(f"delivery show {first['delivery_id']}"),
        )


def retention(installation: Installation) -> Iterator[Finding]:
    """Whether old rows are removed, by the doctor's own --keep-... options."""
    try:
        took_s = {row["table_name"]: row["lap_s"] for row in installation.rows("doctor_retention")}
    except errors.UndefinedTable:
        return  # the schema is older, which another check says
    for removal in removals(Keep.of(installation.config)):
        if removal.round_s is None:
            continue
        table = f"pggit.{removal.table_name}"
        references = [
            Reference(**row)
            for row in installation.rows("retention_references", table_name=removal.table_name)
        ]
        for reference in references:
            key = f"the foreign key {reference.name} of {reference.referrer}"
            if not reference.indexed:
                yield warning(
                    f"nothing is removed from {table}: {key} has no index, so each row would "
                    "cost a look at that whole table",
                    installation.commands.sql(
                        f"CREATE INDEX CONCURRENTLY ON {reference.referrer} ({reference.columns})"
                    ),
                )
            elif reference.keeps:
                yield note(f"{key} keeps what it refers to in {table}, however old")
        if (
            all(reference.indexed for reference in references)
            and took_s[removal.table_name] > 2 * removal.round_s + LATE_S
        ):
            yield warning(
                f"old rows of {table} stay: workers should go through it in "
                f"{removal.round_s:.0f} s, and this round has taken "
                f"{took_s[removal.table_name]:.0f} s. Either no worker runs, a session locks the "
                "table, or rows arrive faster than they are removed"
                " (give doctor the service's --keep-... options)",
                installation.commands.start(),
            )


def targets(installation: Installation) -> Iterator[Finding]:
    """Whether requests may be sent to every webhook's URL: what workers hold, and what they would
    hold once deliveries wait. Without a running fleet that is judged by the doctor's own options.
    """
    rows = installation.rows("doctor_requests", limit=MOST_WEBHOOKS + 1)
    if len(rows) > MOST_WEBHOOKS:
        yield note(f"only the newest {MOST_WEBHOOKS:,} enabled webhooks were examined")
    commands = installation.commands
    for one, webhooks in _refused(installation, rows, "url").items():
        which = _some([item.webhook_id for item in webhooks], len(webhooks))
        option = held.missing_option(one.reason)
        added = held.to_add(option, installation.config.allow_port) if option else ""
        pause = commands.webhookd(f"webhook pause {webhooks[0].webhook_id}")
        either = (
            f"; if it may be sent, start the service with {held.in_words(option)}"
            if option
            else "; correct pggit.webhooks.url, or pause the webhook"
        )
        start = commands.start(added) if option else pause
        if one.is_held:
            yield error(
                f"{which} {_are(webhooks)} held, nothing is sent there: {one.reason}{either}", start
            )
        elif installation.is_fleet:
            yield warning(
                f"{which} will be held by the running workers: {one.reason}{either}", start
            )
        else:
            yield warning(
                f"{which} would be held under the options in force here: {one.reason}"
                + ("; if the service has that option, give it to doctor too" if option else ""),
                commands.webhookd(f"doctor {added}") if option else pause,
            )


def secrets(installation: Installation) -> Iterator[Finding]:
    """Whether every secret can sign."""
    rows = installation.rows("doctor_requests", limit=MOST_WEBHOOKS)
    for one, webhooks in _refused(installation, rows, "secret").items():
        which = _some([item.webhook_id for item in webhooks], len(webhooks))
        yield error(
            f"{which} {_are(webhooks)} held, nothing is sent there: {one.reason}; a new one has to "
            "be given to the receiver",
            installation.commands.webhookd(f"webhook rotate-secret {webhooks[0].webhook_id}"),
        )


def headers(installation: Installation) -> Iterator[Finding]:
    """Whether every webhook's headers can be sent, by the list that workers use."""
    rows = installation.rows("doctor_requests", limit=MOST_WEBHOOKS)
    for one, webhooks in _refused(installation, rows, "headers").items():
        which = _some([item.webhook_id for item in webhooks], len(webhooks))
        yield error(
            f"{which} {_are(webhooks)} held, nothing is sent there: {one.reason}; correct "
            "pggit.webhooks.headers, or pause the webhook",
            installation.commands.webhookd(f"webhook pause {webhooks[0].webhook_id}"),
        )


class _Refusal(NamedTuple):
    """*is_held*: workers hold these webhooks; else the doctor's own options would."""

    reason: str
    is_held: bool


def _refused(
    installation: Installation, rows: list[dict[str, Any]], column: str
) -> dict[_Refusal, list[WebhookSettings]]:
    """Return the webhooks to which nothing can be sent because of this *column* of their row."""
    egress = Egress.of(installation.config)
    defaults = defaults_of(installation.config)
    found: dict[_Refusal, list[WebhookSettings]] = {}
    for row in rows[:MOST_WEBHOOKS]:
        stored, *registry = row.values()
        settings = settings_of(tuple(registry), defaults)
        reason = dict(request.refusals(settings, egress)).get(column)
        is_held = column != "url"  # no option changes what workers make of the others
        if not is_held and stored and held.column_of(settings, stored) == "url":
            reason, is_held = stored, True
        if reason is not None:
            found.setdefault(_Refusal(reason, is_held), []).append(settings)
    return found


def _are(webhooks: Sequence[object]) -> str:
    return "is" if len(webhooks) == 1 else "are"


def _some(webhook_ids: list[int], count: int) -> str:
    if count == 1:
        return f"webhook {webhook_ids[0]}"
    shown = webhook_ids[:5]
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return f"webhooks {', '.join(map(str, shown))}{more}"
