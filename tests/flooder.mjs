// A worker thread that floods a server from sockets of its own, so that the test's own clients keep their thread.

import { parentPort, workerData } from "node:worker_threads";

import { WebSocket } from "ws";

const { url, tokens, key } = workerData;
let stopping = false;
parentPort.on("message", () => (stopping = true));

const told = { sent: 0, closed: 0, published: 0, refused: 0 };
const turn = () => new Promise((done) => setImmediate(done));

/** Sends as fast as the connection takes it, and comes back whenever it is closed. */
async function flood(token) {
  while (!stopping) {
    const ws = new WebSocket(`${url.replace("http", "ws")}/socket.io/?EIO=4&transport=websocket`);
    ws.on("error", () => {});
    const ended = new Promise((done) => ws.once("close", done));
    const joined = new Promise((done) => {
      ws.on("message", (data) => {
        const text = data.toString();
        if (text.startsWith("0{")) ws.send(`40${JSON.stringify({ token })}`);
        else if (text.startsWith("40")) done(true);
        else if (text.startsWith("44")) ws.close();
      });
    });
    if (await Promise.race([joined, ended.then(() => false)])) {
      while (!stopping && ws.readyState === WebSocket.OPEN) {
        for (let n = 0; n < 100; n += 1) ws.send(`42${told.sent++}["leave","item:none"]`);
        do await turn();
        while (ws.bufferedAmount > 100_000 && ws.readyState === WebSocket.OPEN && !stopping);
      }
    }
    if (stopping) ws.terminate();
    await ended;
    told.closed += 1;
  }
}

/** Publishes as fast as answers come, without waiting for anybody else. */
async function publish() {
  const body = JSON.stringify(Array.from({ length: 50 }, (_, amount) => ({ type: "item:added", data: { itemId: "flood", amount } })));
  while (!stopping) {
    const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
    const answer = await fetch(`${url}/v1/events`, { method: "POST", headers, body }).catch(() => ({ status: 0 }));
    if (answer.status === 201) told.published += 50;
    else told.refused += 1;
    await answer.arrayBuffer?.();
  }
}

await Promise.all([...tokens.map(flood), publish(), publish()]);
parentPort.postMessage(told);
parentPort.close();
