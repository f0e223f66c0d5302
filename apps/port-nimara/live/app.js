// The live page of `tidewire dev`: a website form on one side, the staff's view of the same port on the other.
//
// Three rules keep the timeline honest. A row is identified by its position in the port's log, so history, replay and
// live delivery can overlap without showing an event twice. Rows are sorted by position, whatever order they arrive in.
// And what a reconnect brought back is counted from positions, not from a guess about time. Text from the server only
// ever becomes text nodes.

const HISTORY_ROWS = 30;
const HISTORY_PAGE = 200;
const MAX_ROWS = 200;
const MAX_NOTIFICATIONS = 30;
const MAX_TOASTS = 2;
const TOAST_MS = 6000;
const POLL_BUSY_MS = 250;
const POLL_IDLE_MS = 5000;
const BUSY_MS = 3000;
const RETRY_MS = 1000;
const ACK_TIMEOUT_MS = 5000;

const byId = (id) => document.getElementById(id);
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const milliseconds = (ms) => (ms < 1 ? "<1 ms" : ms < 10_000 ? `${Math.round(ms)} ms` : `${Math.round(ms / 1000)} s`);
const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hourCycle: "h23",
});

/** Makes an element. Strings among the children become text nodes, so nothing is ever parsed as HTML. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

async function getJson(url, options) {
  const response = await fetch(url, { cache: "no-store", ...options });
  if (!response.ok) throw Object.assign(new Error(`${url} answered ${response.status}`), { status: response.status });
  return response.json();
}

/** Asks until there is an answer: the page may be open before the server is up again. */
async function insist(url) {
  for (;;) {
    try {
      return await getJson(url);
    } catch (error) {
      if (!socket?.connected) setStatus("offline", "Waiting for the server…");
      console.warn(error.message);
      await pause(RETRY_MS);
    }
  }
}

let socket;
let session;
let renewal;

/** Replaces an expired token. Callers that notice at the same moment share one request. */
function renewSession() {
  renewal ??= insist(`/demo/session?port=${encodeURIComponent(port.id)}`).then((fresh) => {
    session = fresh;
    renewal = undefined;
  });
  return renewal;
}

function setStatus(state, text) {
  const badge = byId("status");
  badge.dataset.state = state;
  if (badge.textContent !== text) badge.textContent = text;
  byId("cut").disabled = !["connected", "lost", "cut"].includes(state);
}

const events = byId("events");
const rows = new Map(); // "position type" -> row
let epoch;
let last = 0; // the highest position seen
let floor = 0; // rows up to here were trimmed; they do not come back
let gap; // the last time this tab was away: {from, until, since, back, count, recovered, mark}
let owed = { limit: HISTORY_ROWS }; // the history request that still has to succeed, if any

/** An offset is `epoch.position`. A new epoch is another log: its positions say nothing about the rows on screen. */
function readOffset(offset) {
  if (typeof offset !== "string") return undefined;
  const dot = offset.lastIndexOf(".");
  const position = Number(offset.slice(dot + 1));
  if (dot < 1 || !Number.isSafeInteger(position)) return undefined;
  const incarnation = offset.slice(0, dot);
  if (epoch !== undefined && epoch !== incarnation) startOver();
  epoch = incarnation;
  return position;
}

function startOver() {
  rows.clear();
  events.replaceChildren();
  byId("notifications").replaceChildren();
  unreadAt = last = floor = 0;
  gap = undefined;
  owed = { limit: HISTORY_ROWS };
}

/** Ids are cut to their tails, which differ; what a person can read comes first. */
function summary(data) {
  if (data === null || typeof data !== "object") return String(data ?? "");
  const fields = Object.entries(data).filter(([, value]) => value !== null && value !== "");
  const isId = ([name]) => name.endsWith("Id");
  return [...fields.filter((field) => !isId(field)), ...fields.filter(isId)]
    .map(([name, value]) => {
      const text = typeof value === "object" ? JSON.stringify(value) : String(value);
      return `${name} ${isId([name]) && text.length > 8 ? `…${text.slice(-6)}` : text}`;
    })
    .join(" · ");
}

/**
 * Puts an item where its position belongs and returns what fell off the end. Most items are the newest, so the walk
 * usually ends at the first one.
 */
function place(list, item, order, limit) {
  item.dataset.order = order;
  let next = list.firstElementChild;
  while (next && Number(next.dataset.order) > order) next = next.nextElementSibling;
  list.insertBefore(item, next);
  const surplus = [...list.children].slice(limit);
  for (const oldest of surplus) oldest.remove();
  return surplus;
}

function placeRow(row, order) {
  for (const { dataset } of place(events, row, order, MAX_ROWS)) {
    if (dataset.key === undefined) continue;
    rows.delete(dataset.key);
    floor = Math.max(floor, Number(dataset.order));
  }
}

/**
 * Shows one event once. `origin` is "live" or "history"; `time` is the commit time where the server told it. Events
 * without a position (they skip the log) are shown each time, after the newest logged one.
 */
function addEvent({ type, data, position, time }, origin) {
  const logged = position !== undefined;
  const key = logged ? `${position} ${type}` : undefined;
  if (logged && (rows.has(key) || position <= floor)) return;
  const caughtUp = logged && gap !== undefined && position > gap.from && position <= gap.until;
  if (caughtUp) {
    gap.count += 1;
    describeGap();
  }
  const fresh = origin === "live" || caughtUp;
  const at = time ? new Date(time) : new Date();
  const row = el(
    "li",
    { "data-testid": "event", "data-type": type, "data-family": type.split(/[:.]/, 1)[0], "data-key": key },
    el("span", { class: "position" }, logged ? `#${position}` : "–"),
    el("span", { class: "type" }, type),
    el("span", { class: "data", title: JSON.stringify(data, null, 2) }, summary(data)),
    caughtUp ? el("span", { class: "tag" }, origin === "live" ? "caught up" : "reloaded") : "",
    el("time", { datetime: at.toISOString(), title: time ? "committed" : "arrived" }, clock.format(at)),
  );
  row.classList.toggle("fresh", fresh);
  if (logged) {
    rows.set(key, row);
    last = Math.max(last, position);
  }
  placeRow(row, logged ? position : last + 0.5);
  markSeen(position);
  if (type === "notification:new") addNotification(data, position ?? last, fresh);
  if (type === "notification:unreadCount") setUnread(data.count, position);
  if (fresh) watchJobs();
}

function openGap() {
  // A gap that was never closed goes on: the tab has seen nothing since it began.
  if (gap?.until === Infinity) return;
  gap = { from: last, until: Infinity, since: Date.now(), count: 0, mark: undefined };
}

function describeGap() {
  if (!gap?.mark) return;
  const caught = `${gap.recovered ? "caught up" : "continuity lost, reloaded"} ${plural(gap.count, "event")}`;
  if (socket.connected) setStatus(gap.recovered ? "connected" : "lost", `Connected · ${caught}`);
  const seconds = ((gap.back - gap.since) / 1000).toFixed(1);
  gap.mark.textContent = `Away for ${seconds} s, ${caught}${gap.recovered ? ", no gap" : ""}`;
}

/** The server's greeting. Its position closes the gap: what is at or below it happened while this tab was away. */
function onConnected(greeting) {
  setStatus("connected", "Connected");
  if (gap?.until === Infinity) {
    gap.until = greeting.position ?? last;
    gap.back = Date.now();
    gap.recovered = socket.recovered;
    gap.mark = el("li", { class: gap.recovered ? "mark" : "mark lost" });
    placeRow(gap.mark, gap.from + 0.25);
    if (!socket.recovered) owed ??= { after: gap.from, limit: HISTORY_PAGE };
    describeGap();
  }
  if (owed) loadHistory();
  watchJobs();
}

/** Pages until nothing is owed. A failed page stays owed and is asked for again after the next connect. */
async function loadHistory() {
  while (owed) {
    const asked = owed;
    let answer;
    try {
      answer = await socket.timeout(ACK_TIMEOUT_MS).emitWithAck("history", asked);
    } catch {
      return;
    }
    if (owed !== asked) continue; // The log was replaced while the answer was on its way.
    const page = answer?.events ?? [];
    for (const event of page) addEvent(event, "history");
    const more = asked.after !== undefined && answer?.complete === false && page.length > 0;
    owed = more ? { ...asked, after: Math.max(...page.map((event) => event.position)) } : undefined;
  }
}

function connect() {
  socket = globalThis.io({ auth: (give) => give({ token: session.token }), reconnectionDelayMax: 2000 });
  socket.onAny((type, ...args) => {
    const position = args.length > 1 ? readOffset(args.at(-1)) : undefined;
    if (type === "connected") onConnected(args[0]);
    else if (type === "auth:expiring") renewSession().then(() => socket.emit("auth", { token: session.token }));
    else if (type === "continuity:lost" || type === "limit:exceeded") console.warn(type, args[0]);
    else addEvent({ type, data: args[0], position }, "live");
  });
  socket.on("disconnect", (reason) => {
    openGap();
    setStatus(cutOff ? "cut" : "reconnecting", cutOff ? "Cut off by you" : "Reconnecting…");
    // The client only comes back by itself after a transport loss, not after a server said goodbye.
    if (reason === "io server disconnect") connectAgain();
  });
  socket.on("connect_error", (error) => {
    setStatus("reconnecting", "Reconnecting…");
    // An active socket is retrying on its own; otherwise the server refused it, most often for an expired token.
    if (!socket.active) {
      console.warn(error.message);
      connectAgain();
    }
  });
}

async function connectAgain() {
  await pause(RETRY_MS);
  await renewSession();
  socket.connect();
}

let cutOff = false;

/** Closes the transport as a lost network would: the server hears no goodbye, the client keeps its place in the log. */
function toggleCut() {
  cutOff = !cutOff;
  byId("cut").textContent = cutOff ? "Reconnect" : "Cut this tab off";
  socket.io.reconnection(!cutOff);
  if (cutOff) {
    socket.io.engine.close();
  } else {
    setStatus("reconnecting", "Reconnecting…");
    socket.connect();
  }
}

let unreadAt = 0;

/** The count is a state: history may bring an older one after a newer one has arrived. */
function setUnread(count, position = last) {
  if (position < unreadAt) return;
  unreadAt = position;
  byId("unread").textContent = count > 99 ? "99+" : String(count);
  byId("unread").dataset.count = count;
  document.title = `${count > 0 ? `(${count}) ` : ""}${port.name}, live on Tidewire`;
}

function addNotification({ title, description }, order, fresh) {
  const entry = el("li", { "data-testid": "notification" }, el("strong", {}, title), el("span", {}, description));
  entry.classList.toggle("fresh", fresh);
  place(byId("notifications"), entry, order, MAX_NOTIFICATIONS);
  if (fresh) toast(title, description);
}

function toast(title, description) {
  const box = byId("toasts");
  const close = el("button", { type: "button", "aria-label": "Dismiss" }, "×");
  const text = el("div", {}, el("strong", {}, title), el("span", {}, description));
  const item = el("div", { class: "toast" }, text, close);
  close.addEventListener("click", () => item.remove());
  setTimeout(() => item.remove(), TOAST_MS);
  box.prepend(item);
  while (box.childElementCount > MAX_TOASTS) box.lastElementChild.remove();
}

const LANES = { scheduled: "pending", blocked: "pending", pending: "pending", processing: "processing" };
const laneOf = (job) => LANES[job.state] ?? "done";
const cards = new Map(); // job id -> card
let jobs = [];
let planted = new Map(); // jobs the commit told of, until a poll that began later knows them
let busyUntil = 0;
let pollTimer;
let polling = false;
let pace = POLL_IDLE_MS;

/** Events and commits cause jobs: look often for a while, then fall back. */
function watchJobs() {
  busyUntil = performance.now() + BUSY_MS;
  if (pace === POLL_IDLE_MS) pollJobs();
}

async function pollJobs() {
  if (polling || document.hidden) return;
  clearTimeout(pollTimer);
  polling = true;
  pace = POLL_BUSY_MS;
  const known = new Set(planted.keys());
  try {
    const headers = { authorization: `Bearer ${session.token}` };
    jobs = (await getJson(`/demo/jobs?port=${encodeURIComponent(port.id)}`, { headers })).items;
    for (const id of known) planted.delete(id);
    showJobs();
    const busy = performance.now() < busyUntil || jobs.some((job) => laneOf(job) !== "done");
    pace = busy ? POLL_BUSY_MS : POLL_IDLE_MS;
  } catch (error) {
    if (error.status === 401 || error.status === 403) await renewSession();
    pace = POLL_IDLE_MS;
  }
  polling = false;
  pollTimer = setTimeout(pollJobs, pace);
}

function jobTimes({ createdAt, startedAt, finishedAt, attempt }) {
  const [created, started, finished] = [createdAt, startedAt, finishedAt].map((time) => time && Date.parse(time));
  const parts = [attempt ? `attempt ${attempt}` : "no attempt yet"];
  if (created && started) parts.push(`waited ${milliseconds(started - created)}`);
  if (started && finished) parts.push(`ran ${milliseconds(finished - started)}`);
  return parts.join(" · ");
}

function showJobs() {
  const listed = new Set(jobs.map((job) => job.id));
  const all = [...[...planted.values()].filter((job) => !listed.has(job.id)), ...jobs];
  const lanes = { pending: [], processing: [], done: [] };
  for (const job of all) {
    let card = cards.get(job.id);
    if (!card) {
      card = el("li", { "data-testid": "job" }, el("strong", {}, job.type), el("span", {}), el("em", {}));
      cards.set(job.id, card);
    }
    card.dataset.state = job.state;
    card.children[1].textContent = jobTimes(job);
    card.children[2].textContent = ["pending", "processing", "completed"].includes(job.state) ? "" : job.state;
    lanes[laneOf(job)].push(card);
    const chip = byId("commit-unit").querySelector(`[data-job="${CSS.escape(job.id)}"]`);
    if (chip) chip.dataset.note = job.state;
  }
  const shown = new Set(all.map((job) => job.id));
  for (const [id, card] of cards) {
    if (!shown.has(id)) {
      card.remove();
      cards.delete(id);
    }
  }
  for (const [name, wanted] of Object.entries(lanes)) {
    const lane = document.querySelector(`[data-lane="${name}"]`);
    // Only cards that are out of place move, because inserting one starts its arrival animation.
    wanted.forEach((card, index) => {
      if (lane.children[index] !== card) lane.insertBefore(card, lane.children[index] ?? null);
    });
  }
}

const form = byId("form");
const FIELDS = ["name", "email", "phone", "berthNumber", "message"];
let sent; // the registration sent last, from which the near duplicate is made

function clearErrors() {
  for (const name of FIELDS) {
    byId(`${name}-error`).textContent = "";
    form.elements[name].removeAttribute("aria-invalid");
  }
  byId("form-error").textContent = "";
}

/** Each error goes to its field; what has no field stands above the buttons. Paths may be `email` or `/email`. */
function showProblem(problem) {
  const rest = [];
  for (const { path, message } of problem.errors ?? []) {
    const name = String(path).split(/[/.]/).at(-1);
    if (FIELDS.includes(name)) {
      byId(`${name}-error`).textContent = message;
      form.elements[name].setAttribute("aria-invalid", "true");
    } else {
      rest.push(`${path}: ${message}`);
    }
  }
  const atField = form.querySelector("[aria-invalid]");
  if (rest.length > 0 || !atField) rest.unshift(problem.detail ?? problem.code ?? "The server refused this.");
  byId("form-error").textContent = rest.join(" ");
  atField?.focus();
}

async function submit(event) {
  event.preventDefault();
  clearErrors();
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  const entries = FIELDS.map((name) => [name, form.elements[name].value.trim()]);
  const registration = { portId: port.id, ...Object.fromEntries(entries.filter(([, value]) => value !== "")) };
  const started = performance.now();
  try {
    const response = await fetch("/api/public/interests", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(registration),
    });
    const answer = await response.json().catch(() => ({ detail: `The server answered ${response.status}.` }));
    const took = performance.now() - started;
    if (response.status === 201) {
      sent = registration;
      byId("twin").disabled = false;
      showCommit(registration, answer, took);
    } else {
      showProblem(answer);
    }
  } catch {
    showProblem({ detail: "The server does not answer. Send it again when it is back." });
  } finally {
    button.disabled = false;
  }
}

function showCommit({ name, berthNumber }, { existingClient, duplicate, committed }, took) {
  const { events: written, jobs: queued } = committed;
  byId("commit-line").replaceChildren(
    el("strong", {}, "One commit"),
    `: client, interest, ${plural(written.length, "event")}, ${plural(queued.length, "job")}, in ${milliseconds(took)}.`,
    duplicate ? ` Looks like a client on file (${duplicate.score}): ${duplicate.reason}.` : "",
  );
  const chip = (text, note, attributes = {}) => el("li", { "data-note": note, ...attributes }, text);
  const group = (title, chips) => el("div", {}, el("h4", {}, title), el("ul", {}, ...chips));
  byId("commit-unit").replaceChildren(
    group("Records", [
      chip(`client ${name}`, existingClient ? "found by email" : "new"),
      chip(`interest in ${berthNumber ? `berth ${berthNumber}` : "the port"}`, "new"),
    ]),
    group("Events", written.map(({ type, position }) => chip(type, `#${position}`, { "data-position": position }))),
    group("Jobs", queued.map(({ id, type, state }) => chip(type, state, { "data-job": id }))),
  );
  byId("commit-unit").classList.remove("empty");
  for (const { type, position } of written) if (rows.has(`${position} ${type}`)) markSeen(position);
  const createdAt = new Date().toISOString();
  for (const job of queued) planted.set(job.id, { ...job, createdAt, attempt: 0 });
  showJobs();
  watchJobs();
}

/** The socket delivered an event of the commit on show. */
function markSeen(position) {
  const chip = position === undefined ? null : byId("commit-unit").querySelector(`[data-position="${position}"]`);
  if (chip) chip.dataset.note = `#${position} live`;
}

const pick = (list) => list[Math.floor(Math.random() * list.length)];
const digits = (n) => String(Math.floor(Math.random() * 10 ** n)).padStart(n, "0");
const FIRST = ["Ada", "Marco", "Ingrid", "Tomás", "Leïla", "Henrik", "Sofia", "Kenji", "Amara", "Pavel", "Noor", "Elise"];
const FAMILY = ["Palmer", "Conti", "Solberg", "Ribeiro", "Haddad", "Lindqvist", "Moreau", "Tanaka", "Okafor", "Novak"];
const BOATS = ["a 14 m sloop", "a classic ketch", "a 22 m motor yacht", "a small catamaran", "a day sailer"];
const WISHES = ["for the season", "from May to October", "for two weeks in July", "all year", "close to the fuel dock"];

function fill(person) {
  clearErrors();
  for (const name of FIELDS) form.elements[name].value = person[name] ?? "";
}

const mailbox = (name) =>
  `${name.normalize("NFD").replace(/[^A-Za-z ]/g, "").trim().toLowerCase().replace(/ +/g, ".")}.${digits(4)}@example.com`;

function randomPerson() {
  const name = `${pick(FIRST)} ${pick(FAMILY)}`;
  return {
    name,
    email: mailbox(name),
    phone: `+44 7700 900${digits(3)}`, // A range kept for fiction.
    berthNumber: `${pick(["A", "B", "C", "D"])}${1 + Math.floor(Math.random() * 40)}`,
    message: `A berth for ${pick(BOATS)}, ${pick(WISHES)}.`,
  };
}

const ports = await insist("/demo/ports");
const wanted = new URLSearchParams(location.search).get("port");
const port = ports.find(({ id }) => id === wanted) ?? ports[0];
if (port.id !== wanted) history.replaceState(null, "", `?port=${encodeURIComponent(port.id)}`);

const picker = byId("port-picker");
picker.append(...ports.map(({ id, name }) => el("option", { value: id }, name)));
picker.value = port.id;
// A port is a tenant: another token, another log. Loading the page anew leaves nothing of the old one behind.
picker.addEventListener("change", () => location.assign(`?port=${encodeURIComponent(picker.value)}`));

const other = ports.find(({ id }) => id !== port.id) ?? port;
byId("other-port").href = `?port=${encodeURIComponent(other.id)}`;
byId("other-port").textContent = other.name;
byId("site-port").textContent = port.name;

const example = { portId: port.id, name: "Night Visitor", email: "night.visitor@example.com", berthNumber: "B7" };
const body = JSON.stringify(example).replaceAll("'", "'\\''");
byId("curl").textContent =
  `until curl -s ${location.origin}/api/public/interests -H 'content-type: application/json' -d '${body}'; do sleep 0.1; done`;
byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(byId("curl").textContent);
    byId("copy").textContent = "Copied";
    setTimeout(() => (byId("copy").textContent = "Copy"), 1500);
  } catch {
    getSelection().selectAllChildren(byId("curl"));
  }
});

form.addEventListener("submit", submit);
byId("fill").addEventListener("click", () => fill(randomPerson()));
byId("twin").addEventListener("click", () => fill({ ...sent, email: mailbox(sent.name) }));
byId("cut").addEventListener("click", toggleCut);
document.addEventListener("visibilitychange", () => !document.hidden && pollJobs());

setUnread(0);
await renewSession();
byId("who").textContent = `signed in as ${session.user.name}`;
pollJobs();
connect();
