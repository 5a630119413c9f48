// The page of the to-do list. An item shows at once as pending; the event of the handler that saved it confirms it.

import { subscribe } from "./push.js";

const PAGE = 200;
const LONGEST = 256;

const at = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const saved = new Map(); // rows by the item's id in the database
const pending = new Map(); // rows by the id of the message that asks for the item

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
  const more = !at("more").hidden;
  const items = saved.size === 1 ? "1 item" : `${saved.size.toLocaleString()}${more ? "+" : ""} items`;
  at("count").textContent = pending.size ? `${items}, ${pending.size} on the way` : items;
  at("empty").hidden = saved.size + pending.size > 0;
}

// ---- the list as it is in the database

async function fetchItems(before) {
  const query = new URLSearchParams({ limit: PAGE, ...(before && { before }) });
  for (;;) {
    try {
      const response = await fetch(`/todo?${query}`);
      if (response.ok) return await response.json();
    } catch {
      // the server is away
    }
    at("count").textContent = "The list is not available at the moment; trying again";
    await pause(2000);
  }
}

function show(items) {
  for (const { id, item, date_added } of items) {
    if (saved.has(id)) continue;
    const row = newRow(item, "saved");
    date(row, new Date(date_added));
    saved.set(id, row);
    at("items").append(row);
  }
  at("more").hidden = items.length < PAGE;
  count();
}

async function load() {
  const items = await fetchItems();
  const known = new Set(saved.keys());
  for (const row of saved.values()) row.remove();
  saved.clear();
  // Their confirmation may be among what was missed: then they are in the list, under an id we have not seen yet.
  for (const { item } of items.filter(({ id }) => !known.has(id))) {
    const found = [...pending].find(([, row]) => row.querySelector(".text").textContent === item);
    if (found) forget(found[0]);
  }
  show(items);
}

function forget(id) {
  pending.get(id)?.remove();
  pending.delete(id);
}

at("more").addEventListener("click", () => {
  inTurn(async () => show(await fetchItems(Math.min(...saved.keys()))));
});

// ---- what handlers have done

function itemSaved({ correlation, time, data: { id, item } }) {
  const row = pending.get(correlation);
  if (saved.has(id)) {
    forget(correlation);
  } else if (row) {
    pending.delete(correlation);
    saved.set(id, row);
    mark(row, "saved");
    animate(row, "touched");
  } else {
    const arrived = newRow(item, "saved");
    date(arrived, new Date(time));
    saved.set(id, arrived);
    at("items").prepend(arrived);
    animate(arrived, "touched");
  }
  at("spoken").textContent = row ? `Saved: ${item}` : `New item: ${item}`;
  count();
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

const events = {
  ready: ({ resumed }) => resumed || load(),
  reset: load,
  "events.todo.itemsaved": itemSaved,
  "events.todo.itemmutated": itemMutated,
};

// One after the other, so that what comes while the list loads is applied to the loaded list.
let before = Promise.resolve();

function inTurn(work) {
  before = before.then(work).catch(console.error);
}

function heard(name, data) {
  inTurn(() => events[name](data));
}

function connected(live) {
  at("connection").dataset.state = live ? "live" : "connecting";
  at("connection").textContent = live ? "Live" : "Reconnecting";
}

subscribe("/push", ["events.todo.itemsaved", "events.todo.itemmutated"], heard, connected);

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
      if (response.status < 500) return response.ok ? accepted(id) : refused(id, item, (await response.json()).error);
    } catch {
      // No answer: it may be stored or not. Asking again with the same id never adds it twice.
    }
    if (pending.has(id)) mark(pending.get(id), "sending", "Trying again");
    await pause(Math.min(500 * 2 ** tries, 10000));
  }
}

function accepted(id) {
  if (pending.has(id)) mark(pending.get(id), "queued", "Queued");
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
