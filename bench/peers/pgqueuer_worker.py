"""pgqueuer as its documentation shows it, with uvloop, batches, and aiohttp for the requests.

`python pgqueuer_worker.py URL`
"""

import json
import sys

import aiohttp
import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.models import Job

# The best of five settings that were tried: batches of 50 to 250, fewer and more connections, and
# a pool for the database.
BATCH = 50
CONCURRENT = 100  # pgqueuer wants at least two batches
CONNECTIONS = 50
WEBHOOKS = 50


async def main(url: str) -> None:
    connection = await asyncpg.connect()
    queuer = PgQueuer.from_asyncpg_connection(connection)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def deliver(job: Job) -> None:
            assert job.payload is not None
            webhook_id = 1 + json.loads(job.payload)["n"] % WEBHOOKS
            headers = {"content-type": "application/json"}
            async with session.post(
                f"{url}/{webhook_id}", data=job.payload, headers=headers
            ) as answer:
                await answer.read()
                answer.raise_for_status()

        queuer.entrypoint("deliver")(deliver)
        print("ready", flush=True)
        await queuer.run(batch_size=BATCH, max_concurrent_tasks=CONCURRENT)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
