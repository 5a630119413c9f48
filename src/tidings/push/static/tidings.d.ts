/** Events of a Tidings push endpoint, by one stream for all tabs of this browser. */

/** An event as it was stored. */
export interface TidingsEvent<T = unknown> {
  id: string;
  subject: string;
  /** When it was stored, ISO 8601. */
  time: string;
  /** Its place in the log. */
  position: number;
  /** Id of the message that began the chain: what the publish answered. */
  correlation: string;
  /** Id of the message from whose handling it came. */
  causation: string | null;
  data: T;
}

/** What has become of a message. */
export interface Outcome {
  /** `working`, `retrying`: not decided; `dead`: a person is needed; `done`: handled, perhaps with `event`. */
  state: "working" | "retrying" | "dead" | "done";
  correlation?: string;
  /** Id and place of the message that failed, or was asked about. */
  id?: string;
  position?: number;
  event?: TidingsEvent;
  group?: string;
  attempts?: number;
  /** `handler_error`, `timeout`, `crash_loop`, `rejected`, `invalid`, `expired`, … */
  reason?: string;
  /** Type name of the exception; its text stays on the server. */
  error?: string;
  /** What the handler wants to be read: the text it gave to `Reject`. */
  text?: string;
}

export interface Push {
  /**
   * Call `heard` for each event on a subject (`*` stands for one part, `>` for the rest), once and in order. Three more
   * names: `live` (the stream comes or goes), `reset` (load what is shown: at the beginning, and when something may have
   * been missed), `outcome` (a group failed, or the answer to what was asked). Returns what ends the listening.
   */
  on(subject: "live", heard: (live: boolean) => void): () => void;
  on(subject: "reset", heard: () => void): () => void;
  on(subject: "outcome", heard: (outcome: Outcome) => void): () => void;
  on<T = unknown>(subject: string, heard: (event: TidingsEvent<T>, subject: string) => void): () => void;

  /**
   * What becomes of a message that was published: resolves when one of the pushed events has come of it (`done`), or
   * when a group has given up on it (`dead`; a redrive may bring the event later). With its position the server is
   * asked, after a second, after each reconnect and every half minute; without, only what is pushed from now on counts.
   */
  outcome(id: string, position?: number): Promise<Outcome>;
}

/** Listen to the endpoint that served this module, or to another one. It goes on until the page ends. */
export function connect(url?: string): Push;
