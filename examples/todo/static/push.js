// The events of a push endpoint, by one stream for all windows of this browser: it allows only six connections to a
// server. The window that holds the lock has the stream and relays it. When that one is closed or hidden another takes
// over and resumes behind the last event that it has heard.

/** Calls `heard(name, data)` for each event and `connected(live)` when the stream comes or goes, until the page ends. */
export function subscribe(url, names, heard, connected) {
  const relay = new BroadcastChannel(url);
  let stream;
  let lastId = "";
  let asking = false;
  let leave;

  function take({ name, id, data, live, place }) {
    if (live !== undefined) connected(live);
    // Another window is elsewhere in the log: what lies between has been missed here.
    if (place !== undefined && place !== lastId) [lastId, name, data] = [place, "reset", "{}"];
    if (id) lastId = id;
    if (name) heard(name, JSON.parse(data));
  }

  function tell(message) {
    take(message);
    relay.postMessage(message);
  }

  function open() {
    stream?.close();
    // A browser sends the last id by itself when it reconnects, but not when the stream is opened anew.
    const opened = new EventSource(lastId ? `${url}?last-event-id=${encodeURIComponent(lastId)}` : url);
    stream = opened;
    opened.onopen = () => tell({ live: true });
    opened.onerror = () => {
      tell({ live: false });
      // After an answer like 503 browsers give up; but the server is only restarting.
      if (opened.readyState === EventSource.CLOSED) setTimeout(() => opened === stream && open(), 1000 + 1000 * Math.random());
    };
    for (const name of ["ready", "reset", ...names]) {
      opened.addEventListener(name, ({ lastEventId, data }) => tell({ name, data, id: lastEventId }));
    }
  }

  function close() {
    stream?.close();
    stream = undefined;
    leave?.();
  }

  async function follow() {
    relay.postMessage({ hello: true });
    if (asking) return;
    asking = true;
    const lead = () => document.hidden || new Promise((resolve) => { leave = resolve; open(); });
    await (navigator.locks ? navigator.locks.request(`push ${url}`, lead) : lead());
    asking = false;
    if (!document.hidden) follow();
  }

  relay.onmessage = ({ data: message }) => {
    if (!message.hello) take(message);
    else if (stream) relay.postMessage({ place: lastId, live: stream.readyState === EventSource.OPEN });
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : follow()));
  addEventListener("online", () => stream && open());
  if (!document.hidden) follow();
}
