// The published npm client's worker with a no-op handler.
import { Client, Worker } from "@deepnoodle/mobius";

const [url, concurrency, instance] = process.argv.slice(2);
const client = new Client({ apiKey: "mbx_bench", baseURL: url });
const config = { workerInstanceId: instance, concurrency: Number(concurrency), queues: ["default"], logger: null };
await new Worker(client, config).register("bench.noop", async () => ({})).run();
