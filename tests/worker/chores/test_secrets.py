"""Old secrets leave the table once they have ended, and unused entries leave the caches."""

from tests.support.engine import register
from tests.support.postgres import Database
from webhookd.cache import ByteCache
from webhookd.postgres import statements
from webhookd.worker.chores.chore import Pool
from webhookd.worker.chores.secrets import OldSecrets, UnusedEntries

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


def test_what_has_ended_is_erased_and_what_still_signs_stays(
    database: Database, pool: Pool
) -> None:
    register(database, 1, 2, 3, secret=SECRET)
    database.execute(
        "UPDATE pggit.webhooks SET old_secret = %s,"
        " old_secret_until = now() + (webhook_id - 2) * interval '1 hour' WHERE webhook_id <> 2",
        [OLD_SECRET],
    )
    OldSecrets().run(pool)
    assert database.execute(
        "SELECT webhook_id, secret, old_secret, old_secret_until IS NULL FROM pggit.webhooks"
        " ORDER BY 1"
    ) == [(1, SECRET, None, True), (2, SECRET, None, True), (3, SECRET, OLD_SECRET, False)]


def test_a_row_that_a_session_holds_is_left_for_the_next_run(
    database: Database, pool: Pool
) -> None:
    register(database, 1, 2, secret=SECRET)
    database.execute(
        "UPDATE pggit.webhooks SET old_secret = %s, old_secret_until = now()", [OLD_SECRET]
    )
    remaining = "SELECT webhook_id FROM pggit.webhooks WHERE old_secret IS NOT NULL"
    with database.connect(autocommit=False) as operator:
        operator.execute("UPDATE pggit.webhooks SET name = 'mine' WHERE webhook_id = 1")
        OldSecrets().run(pool)
        assert database.execute(remaining) == [(1,)]
    OldSecrets().run(pool)
    assert database.execute(remaining) == []


def test_old_secrets_are_found_by_their_index(database: Database) -> None:
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url)"
        " SELECT i, 'https://example.com/' FROM generate_series(1, 20000) i; ANALYZE pggit.webhooks"
    )
    plan = database.execute("EXPLAIN " + statements.load("erase_old_secrets"), {"limit": 1000})
    assert "using webhooks_old_secret on" in str(plan)


def test_unused_entries_leave_with_the_second_run(pool: Pool) -> None:
    cache: ByteCache[int, str] = ByteCache(1000)
    cache.put(1, "used", 0)
    cache.put(2, "not used", 0)
    chore = UnusedEntries()
    for _ in range(2):
        chore.run(pool)
        cache.get(1)
    assert (cache.get(1), cache.get(2)) == ("used", None)
