// graphile-worker, with undici for the requests: node graphile_worker.js URL default|tuned
// Tuned is the configuration of its own page on performance.

import { Logger, run } from "graphile-worker";
import { EventEmitter } from "node:events";
import { Pool } from "undici";

const WEBHOOKS = 50;
const CONCURRENT = 24;

const [url, variant] = process.argv.slice(2);
const sink = new Pool(url, { connections: CONCURRENT });

async function deliver(payload) {
  const answer = await sink.request({
    method: "POST",
    path: `/${1 + (payload.n % WEBHOOKS)}`,
    headers: { "content-type": "application/json" },
    body: JSON.stringify(payload),
  });
  await answer.body.dump();
  if (answer.statusCode >= 300) throw new Error(`status ${answer.statusCode}`);
}

const tuned = { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };
const events = new EventEmitter();
events.once("pool:listen:success", () => console.log("ready"));
await run({
  events,
  taskList: { deliver },
  preset: {
    worker: {
      connectionString: "postgresql://", // the rest is in PGHOST, PGUSER, ...
      concurrentJobs: CONCURRENT,
      maxPoolSize: CONCURRENT + 1,
      logger: new Logger(() => (level, message) => {
        if (level === "error" || level === "warning") console.error(message);
      }),
      ...(variant === "tuned" ? tuned : {}),
    },
  },
});
