// The page of the to-do list. An item shows at once as pending; the event of the handler that saved it confirms it.
// The database is right: what is shown is loaded from the server, and kept up with by the events behind that.

import { connect } from "/push/tidings.js";

const PAGE = 200;
const LONGEST = 256;

const at = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const saved = new Map(); // rows by the item's id in the database
const pending = new Map(); // rows by the id of the message that asks for the item
const push = connect();
let loaded = false; // before that nobody knows whether there is nothing to do

// ---- rows

function newRow(text, state, label = "") {
  const row = at("row").content.firstElementChild.cloneNode(true);
  row.querySelector(".text").textContent = text; // never as HTML: anybody may have written it
  mark(row, state, label);
  date(row, new Date());
  return row;
}

function mark(row, state, label = "") {
  row.dataset.state = state;
  row.querySelector(".state").textContent = label;
}

const REASONS = {
  handler_error: ({ attempts, error }) => `the handler failed ${attempts} times, at last with ${error}`,
  timeout: () => "the handler takes too long",
  crash_loop: () => "the handler crashes on it",
  invalid: () => "it is not an item",
  expired: () => "nobody handled it in time",
};

/** How far a pending row is: `sending`, `queued`, `failed` for good, with what to say of it. */
function progress(row, { state, group, attempts, ...failure }) {
  const why = row.querySelector(".why");
  why.hidden = state !== "dead";
  why.textContent = "";
  if (state === "dead") {
    const reason = failure.text || REASONS[failure.reason]?.({ attempts, ...failure }) || failure.reason;
    mark(row, "failed", "Not saved");
    why.textContent = `${group}: ${reason}. It is kept; in the clone ./tidings dlq redrive --all puts it back`;
    at("spoken").textContent = `Not saved: ${row.querySelector(".text").textContent}`;
  } else {
    mark(row, "queued", state === "retrying" ? `Failed ${attempts} ${attempts === 1 ? "time" : "times"}, trying again` : "Queued");
  }
  count();
}

function date(row, when) {
  const time = row.querySelector("time");
  const today = when.toDateString() === new Date().toDateString();
  time.dateTime = when.toISOString();
  time.title = when.toLocaleString();
  time.textContent = when.toLocaleString([], today ? { timeStyle: "short" } : { dateStyle: "medium" });
}

function animate(row, name) {
  row.classList.remove("arrived", "touched");
  void row.offsetWidth; // lets the same animation run again
  row.classList.add(name);
}

function count() {
  if (!loaded) return;
  const more = !at("more").hidden;
  const items = saved.size === 1 ? "1 item" : `${saved.size.toLocaleString()}${more ? "+" : ""} items`;
  const failed = [...pending.values()].filter((row) => row.dataset.state === "failed").length;
  const rest = [[pending.size - failed, "on the way"], [failed, "not saved"]].filter(([number]) => number);
  at("count").textContent = [items, ...rest.map(([number, how]) => `${number} ${how}`)].join(", ");
  at("empty").hidden = saved.size + pending.size > 0;
}

// ---- the list as it is on the server

async function fetchList(path, query = {}) {
  for (;;) {
    try {
      const response = await fetch(`${path}?${new URLSearchParams(query)}`);
      if (response.ok) return await response.json();
    } catch {
      // the server is away
    }
    at("count").textContent = "The list is not available at the moment; trying again";
    await pause(2000);
  }
}

const fetchItems = (query) => fetchList("/todo", query);

function show(items, limit = PAGE) {
  for (const { id, item, date_added } of items) {
    if (saved.has(id)) continue;
    const row = newRow(item, "saved");
    date(row, new Date(date_added));
    insert(row, id);
  }
  at("more").hidden = items.length < limit;
  count();
}

async function load() {
  const limit = Math.max(PAGE, saved.size);
  const [items] = await Promise.all([fetchItems({ limit }), loadPending()]);
  for (const row of saved.values()) row.remove();
  saved.clear();
  loaded = true;
  show(items, limit);
}

/** The rows that wait, as the server knows them; those that it does not have yet are still being sent. */
async function loadPending() {
  const items = await fetchList("/todo/pending");
  const known = new Set(items.map(({ id }) => id));
  for (const [id, row] of pending) if (!known.has(id) && row.dataset.state !== "sending") forget(id);
  for (const item of items) wanted(item);
  count();
}

function wanted({ id, item, date_added, ...state }) {
  if (!pending.has(id)) {
    const row = newRow(item, "queued");
    pending.set(id, row);
    at("items").prepend(row);
  }
  date(pending.get(id), new Date(date_added));
  progress(pending.get(id), state);
}

function forget(id) {
  pending.get(id)?.remove();
  pending.delete(id);
}

at("more").addEventListener("click", () => {
  inTurn(async () => show(await fetchItems({ limit: PAGE, before: Math.min(...saved.keys()) })));
});

// ---- what handlers have done

function itemSaved({ correlation, time, data: { id, item } }) {
  const waited = pending.get(correlation);
  if (saved.has(id)) {
    forget(correlation);
  } else {
    const row = waited ?? newRow(item, "saved");
    if (!waited) date(row, new Date(time));
    pending.delete(correlation);
    row.querySelector(".why").hidden = true;
    mark(row, "saved");
    insert(row, id);
    animate(row, "touched");
  }
  at("spoken").textContent = waited ? `Saved: ${item}` : `New item: ${item}`;
  count();
}

/** Put a saved row where it stands after a reload too: newest first, below those that wait. */
function insert(row, id) {
  saved.set(id, row);
  row.dataset.id = id;
  const older = [...at("items").children].find((other) => other !== row && Number(other.dataset.id) < id);
  at("items").insertBefore(row, older ?? null);
}

function itemMutated({ data: { id, item } }) {
  const row = saved.get(id);
  if (!row) return;
  const text = row.querySelector(".text");
  if (text.textContent === item) return;
  row.querySelector("del").textContent = text.textContent;
  row.querySelector(".note").hidden = false;
  text.textContent = item;
  animate(row, "touched");
  at("spoken").textContent = `Changed: ${item}`;
}

function itemWanted({ id, time, data: { item } }) {
  if (!pending.has(id)) wanted({ id, item, date_added: time });
  count();
}

function failed({ correlation, ...failure }) {
  const row = pending.get(correlation);
  if (row) progress(row, failure);
}

// One after the other, so that what comes while the list loads is applied to the loaded list.
let before = Promise.resolve();

function inTurn(work) {
  before = before.then(work).catch(console.error);
}

const heard = (work) => (event) => inTurn(() => work(event));

push.on("reset", heard(load));
push.on("outcome", heard(failed));
push.on("events.todo.newitem", heard(itemWanted));
push.on("events.todo.itemsaved", heard(itemSaved));
push.on("events.todo.itemmutated", heard(itemMutated));
push.on("live", (live) => {
  at("connection").dataset.state = live ? "live" : "connecting";
  at("connection").textContent = live ? "Live" : "Reconnecting";
  if (live) inTurn(loadPending); // failures are told to those who listen; what was missed is asked for
});

// ---- new items

async function send(id, item) {
  for (let tries = 0; ; tries++) {
    try {
      const response = await fetch("/todo", {
        method: "POST",
        headers: { "Content-Type": "application/json", "Idempotency-Key": id },
        body: JSON.stringify({ item }),
        signal: AbortSignal.timeout(15000),
      });
      if (response.status < 500) {
        const answer = await response.json();
        return response.ok ? accepted(answer) : refused(id, item, answer.error);
      }
    } catch {
      // No answer: it may be stored or not. Asking again with the same id never adds it twice.
    }
    if (pending.has(id)) mark(pending.get(id), "sending", "Trying again");
    await pause(Math.min(500 * 2 ** tries, 10000));
  }
}

async function accepted({ id, position }) {
  const row = pending.get(id);
  if (row?.dataset.state === "sending") mark(row, "queued", "Queued");
  const { state, event } = await push.outcome(id, position);
  // Saved before we could hear of it: we have asked twice, and the answer to the first time was lost.
  if (state === "done" && !event && pending.has(id)) inTurn(load);
}

function refused(id, item, why) {
  forget(id);
  problem(`“${item}” was not added: ${why}.`);
  at("item").value ||= item;
  count();
}

function problem(text) {
  at("problem").textContent = text;
  at("item").setAttribute("aria-invalid", Boolean(text));
}

at("new").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = at("item");
  const item = input.value.trim();
  const length = [...item].length;
  input.focus();
  if (!length) return problem("Write what needs doing first.");
  if (length > LONGEST) return problem(`That is ${length} characters; there is room for ${LONGEST}.`);
  problem("");
  const id = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const row = newRow(item, "sending", "Sending");
  pending.set(id, row);
  at("items").prepend(row);
  animate(row, "arrived");
  count();
  input.value = "";
  input.dispatchEvent(new Event("input"));
  send(id, item);
});

at("item").addEventListener("input", () => {
  const length = [...at("item").value.trim()].length;
  at("length").hidden = length < LONGEST - 56;
  at("length").textContent = `${length} / ${LONGEST}`;
  at("length").toggleAttribute("data-over", length > LONGEST);
  if (at("problem").textContent && length && length <= LONGEST) problem("");
});

// With a keyboard one can write at once; on a phone the keyboard would hide the list.
if (matchMedia("(pointer: fine)").matches) at("item").focus();
