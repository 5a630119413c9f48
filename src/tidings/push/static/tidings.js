// See tidings.d.ts. The tab with the lock has the stream and relays.

const AGAIN = 30_000; // ms

const pattern = (filter) =>
  RegExp(`^${filter.replace(/[$+?()[\]{}|^\\.]/g, "\\$&").replace(/\*/g, "[^.]+").replace(/>$/, ".+")}$`);

export function connect(url = new URL("./", import.meta.url).href) {
  const relay = new BroadcastChannel(url);
  const listeners = new Set();
  const asked = new Map();
  let place = "";
  let last, live, asking, stream, wake;

  const behind = (id) => {
    const [log, mine, other, theirs] = `${place || "-"}-${id}`.split("-");
    return log !== other || +mine < +theirs;
  };

  function emit(name, data) {
    for (const it of listeners) if (it[0].test(name)) queueMicrotask(() => listeners.has(it) && it[1](data, name));
    const id = data?.correlation;
    const result = name === "outcome" ? data : { state: data?.id !== id && "done", event: data };
    if (result.state !== "done" && result.state !== "dead") return;
    asked.get(id)?.done.forEach((resolve) => resolve(result));
    asked.delete(id);
  }

  function take({ event, id, data = "{}", now }) {
    if (now !== undefined && now !== live) {
      emit("live", (live = now));
      if (now) askAll();
    }
    if (event === "ready") event = id && behind(id) && "reset";
    else if (id && event !== "reset" && !behind(id)) return;
    if (id) place = id;
    if (event) emit(event, JSON.parse(data));
  }

  function tell(message) {
    take(message);
    relay.postMessage(message);
  }

  async function read(begun) {
    stream = new AbortController();
    const { ok, body } = await fetch(url, { headers: { "Last-Event-ID": place }, signal: stream.signal });
    if (!ok) return;
    tell({ now: true });
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", part; !(part = await reader.read()).done; last = Date.now()) {
      const frames = (rest + part.value).split("\n\n");
      rest = frames.pop();
      for (const frame of frames) {
        const fields = frame.split("\n").map((line) => line.split(/: ?(.*)/, 2));
        tell(Object.fromEntries(fields));
      }
    }
    return last > begun + 9000;
  }

  async function lead() {
    for (let fails = 0; !document.hidden; fails++) {
      try { while (await read((last = Date.now()))); } catch {}
      if (live) fails = 0;
      tell({ now: false });
      const wait = Math.min(1000 * 2 ** fails, AGAIN) * (0.5 + Math.random());
      if (!document.hidden) await new Promise((go) => setTimeout((wake = go), wait));
    }
    stream = null;
  }

  async function follow() {
    relay.postMessage({ hello: true });
    if (asking || document.hidden) return;
    asking = true;
    await (navigator.locks ? navigator.locks.request(url, lead) : lead());
    asking = false;
    follow();
  }

  const renew = () => (stream?.abort(), wake?.());

  async function ask(id) {
    const position = asked.get(id)?.position;
    if (!position) return;
    const query = new URLSearchParams({ id, position });
    const answer = await fetch(url.replace(/\/?$/, `/outcome?${query}`)).catch(() => {});
    if (answer?.ok) emit("outcome", await answer.json());
  }

  const askAll = () => [...asked.keys()].forEach(ask);

  relay.onmessage = ({ data }) => {
    if (!data.hello) take(data);
    else if (live && stream) relay.postMessage({ event: "ready", id: place, now: true });
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? renew() : follow()));
  addEventListener("online", renew);
  setInterval(() => (Date.now() - last > AGAIN && renew(), askAll()), AGAIN);
  follow();

  return {
    on(subject, heard) {
      const listener = [pattern(subject), heard];
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    outcome: (id, position) =>
      new Promise((resolve) => {
        asked.set(id, { position, done: [resolve, ...(asked.get(id)?.done ?? [])] });
        setTimeout(() => ask(id), 1000);
      }),
  };
}
