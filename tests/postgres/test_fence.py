"""The claim, lease, fence and record protocol on the real database: right as it is, and wrong
without any one of its steps.

A stateful test drives several worker incarnations, their late results, reaping, releases and an
operator, and compares every row with a model. The same test must fail for each planted fault.
"""

from unittest.mock import patch

import psycopg
import pytest
from hypothesis import Phase

from tests.support.engine import register
from tests.support.faults import Fault, replaced
from tests.support.postgres import Database
from tests.support.protocol import WEBHOOKS, run_protocol, staged


@pytest.fixture(scope="module")
def fenced(module_database: Database) -> Database:
    """One database for all runs of the protocol: each begins by emptying it."""
    register(module_database, *WEBHOOKS)
    return module_database


def test_whatever_workers_and_operator_do_each_row_has_one_owner_and_one_end(
    fenced: Database,
) -> None:
    with staged(fenced) as stage:
        run_protocol(stage, examples=60, phases=(Phase.generate, Phase.shrink))


FAULTS = {
    "record does not look at the token": Fault(
        "settle", "q.lease_token = r.token", "q.lease_token IS NOT NULL"
    ),
    "record does not look at the status": Fault(
        "settle", "q.delivery_status IS NOT DISTINCT FROM 'sending'", "true"
    ),
    "record spends no retry": Fault("settle", "retry_count = q.retry_count + r.retries,", ""),
    "record counts no lost lease": Fault("settle", "leases_lost = q.leases_lost + r.losses,", ""),
    "record keeps the token": Fault(
        "settle", "lease_token = NULL, lease_until = NULL", "lease_until = NULL"
    ),
    "record keeps the lease": Fault(
        "settle", "lease_until = NULL, leased_by = NULL", "leased_by = NULL"
    ),
    "record keeps the owner": Fault(
        "settle", "lease_until = NULL, leased_by = NULL", "lease_until = NULL"
    ),
    "record writes no log": Fault("settle", "WHERE event IS NOT NULL", "WHERE false"),
    "record forgets what is in flight": Fault("update_lanes", "in_flight = r.in_flight,", ""),
    "claim forgets what is in flight": Fault("claim", "in_flight = l.in_flight + t.n,", ""),
    "claim sets no token": Fault("claim", "lease_token = %(token)s,", ""),
    "claim sets no lease": Fault(
        "claim", ", lease_until = now() + %(lease_s)s * interval '1 s'\n     WHERE", " WHERE"
    ),
    "claim names no owner": Fault("claim", "leased_by = %(incarnation)s,", ""),
    "claim takes what others hold": Fault(
        "claim",
        "w.routed AND w.delivery_status IN ('pending', 'retrying')\n AND w.leases_lost < 3",
        "w.routed",
    ),
    "claim takes quarantined rows with the rest": Fault(
        "claim",
        "AND w.leases_lost < 3 AND w.next_retry_at BETWEEN to_timestamp(l.mark) AND now()",
        "",
    ),
    "quarantined row is claimed without a token": Fault(
        "claim_quarantined", "lease_token = %(token)s,", ""
    ),
    "quarantined row is not counted as in flight": Fault(
        "claim_quarantined", ", in_flight = %(in_flight)s::int + 1", ""
    ),
    "reap takes leases that have not run out": Fault(
        "expired_leases", "AND q.lease_until <= now()", ""
    ),
    "reap finds nothing": Fault("expired_leases", "q.lease_until <= now()", "false"),
    "release takes everybody's leases": Fault("leases_of", "AND q.leased_by = %(incarnation)s", ""),
    "sweep does not count": Fault("sweep_lanes", "in_flight = coalesce(c.leases, 0),", ""),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_the_protocol_is_wrong_without_any_one_of_its_steps(fenced: Database, fault: Fault) -> None:
    with staged(fenced, fault) as stage, pytest.raises((AssertionError, psycopg.Error)):
        run_protocol(stage, examples=300, phases=(Phase.generate,))


def test_the_protocol_is_wrong_if_a_token_ever_repeats(fenced: Database) -> None:
    with (
        staged(fenced) as stage,
        patch("webhookd.postgres.claim.secrets.randbits", lambda bits: 4),
        pytest.raises((AssertionError, psycopg.Error)),
    ):
        run_protocol(stage, examples=300, phases=(Phase.generate,))


def test_the_protocol_is_wrong_if_an_operators_requeue_leaves_the_token(database: Database) -> None:
    register(database, *WEBHOOKS)
    [(definition,)] = database.execute("SELECT pg_get_functiondef('pggit.requeue'::regproc)")
    database.execute(replaced(str(definition), "NEW.lease_token := NULL;", ""))
    with staged(database) as stage, pytest.raises((AssertionError, psycopg.Error)):
        run_protocol(stage, examples=300, phases=(Phase.generate,))
