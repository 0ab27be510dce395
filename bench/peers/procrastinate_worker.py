"""procrastinate with asynchronous tasks, uvloop, and aiohttp for the requests.

`python procrastinate_worker.py URL`
"""

import sys
from typing import Any

import aiohttp
import procrastinate
import uvloop

CONCURRENT = 50
WEBHOOKS = 50


async def main(url: str) -> None:
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(min_size=4, max_size=20))
    connector = aiohttp.TCPConnector(limit=CONCURRENT)
    async with aiohttp.ClientSession(connector=connector) as session, app.open_async():

        async def deliver(**body: Any) -> None:
            async with session.post(f"{url}/{1 + body['n'] % WEBHOOKS}", json=body) as answer:
                await answer.read()
                answer.raise_for_status()

        app.task(name="deliver", queue="webhooks")(deliver)
        print("ready", flush=True)
        await app.run_worker_async(concurrency=CONCURRENT)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
