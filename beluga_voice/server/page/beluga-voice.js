/**
 * A call to a beluga-voice server over a WebSocket that may break and come back. No dependencies, no build step.
 *
 *     import { VoiceClient } from "./beluga-voice.js";
 *     import { Microphone, Player } from "./audio.js";
 *
 *     const player = await Player.open();
 *     const client = new VoiceClient({ url: "wss://voice.example.org/v1/voice", player });
 *     client.addEventListener("message", ({ detail }) => console.log(detail.type, detail));
 *     client.addEventListener("status", ({ detail }) => console.log(detail.status));
 *     const microphone = await Microphone.open({ onaudio: (pcm) => client.sendAudio(pcm) });
 *     client.connect();
 *
 * Events, each a CustomEvent with its facts in `detail`:
 *   status   {status, ...}: "connecting"; "connected" {sessionId, resumed, gapMs, limits};
 *            "reconnecting" {attempt, lostForMs, moving}; "closed" {code, reason, retryAfterMs}, the last one
 *   message  a numbered message of the server (JSON, see the protocol), once and in order
 *   audio    {seq, pcm}: a piece of the agent's voice as Int16Array, once and in order
 */
import { Outbox } from "./outbox.js";

export const SUBPROTOCOL = "beluga.voice.v1";

const LOST_CODES = new Set([1001, 1006, 1012]);
const FULL = 1013;

/** Periods and bounds in ms. The first three are the protocol's; the fourth is told by the welcome. */
const TIMING = Object.freeze({
  pingEveryMs: 5_000,
  silenceMs: 9_500,
  ackEveryMs: 1_000,
  resumeWindowMs: 30_000,
  connectMs: 10_000, // a new call that nobody has taken by then is given up
  attemptMs: 5_000, // a connection that has not said welcome by then is tried anew
  firstDelayMs: 250, // of the exponential back-off, after a first try at once
  earlyDelayMs: 2_000, // of the first eight tries: somebody waits, and most breaks are over within seconds
  maxDelayMs: 10_000,
  tickMs: 250,
});

const EARLY_TRIES = 8;

export class VoiceClient extends EventTarget {
  #options;
  #timing;
  #outbox;
  #socket = null;
  #attached = false;
  #resume = null; // {session_id, resume_token} once the server has said welcome
  #url;
  #leftUrl = null; // where the server was that asked us to leave
  #received = -1;
  #acknowledged = -1;
  #position = null; // how far the agent's voice was played: {seq, ms}
  #attempt = 0;
  #lostAtMs = null;
  #heardAtMs = 0;
  #sentAtMs = 0;
  #ackedAtMs = 0;
  #leaveAtMs = null;
  #serverState = "";
  #timer = null;
  #ticker = null;
  #over = false;
  #gaps = 0;
  #reconnects = 0;
  #online = () => this.#retryNow();

  /**
   * @param {object} options
   * @param {string} [options.url] where the server listens for calls; relative to the page if there is one
   * @param {string} [options.token] a session ticket, if the server wants one
   * @param {() => Promise<{url?: string, token?: string}>} [options.authorize] gets a ticket; asked before each try of a
   *     new call, as a ticket works once. If it rejects, the call is closed with the error's `code` and message
   * @param {object} [options.player] plays what comes: `play(seq, pcm)`, `pause()`, `goOn()`, `clear()`, and calls its
   *     `onplayed({seq, ms})` while playing and `onstopped({seq, ms})` in answer to pause and clear
   * @param {number} [options.inputRateHz] of the audio given to `sendAudio`
   * @param {number} [options.outputRateHz] of the audio wanted
   * @param {"vad"|"push"} [options.turnMode] who decides when a turn begins and ends
   * @param {object} [options.metadata] told to the server with the hello
   * @param {object} [options.timing] any of `TIMING`
   */
  constructor(options = {}) {
    super();
    this.#options = { url: "v1/voice", inputRateHz: 16_000, outputRateHz: 24_000, turnMode: "vad", metadata: {}, ...options };
    this.#timing = { ...TIMING, ...options.timing };
    this.#url = this.#options.url;
    this.#outbox = new Outbox(this.#timing.resumeWindowMs);
    this.status = "idle";
    const player = this.#options.player;
    if (player) {
      player.onplayed = (position) => this.#played("played", position);
      player.onstopped = (position) => this.#played("stopped", position);
    }
  }

  get sessionId() {
    return this.#resume?.session_id ?? "";
  }

  /** gaps in what the server sent, reconnects, and messages of ours that were lost because a break outlasted the memory. */
  get counters() {
    return { gaps: this.#gaps, reconnects: this.#reconnects, lost: this.#outbox.lost };
  }

  /** Open the call. A client is for one call: make a new one for the next. */
  connect() {
    if (this.status !== "idle") throw new Error(`this call is ${this.status} already: make a new VoiceClient`);
    globalThis.addEventListener?.("online", this.#online);
    this.#ticker = setInterval(() => this.#tick(), this.#timing.tickMs);
    this.#lostAtMs = performance.now();
    this.#open();
  }

  /** Send the caller's voice: an Int16Array at `inputRateHz`, about 20 ms. While the line is lost it is kept. */
  sendAudio(pcm) {
    if (this.#over) return;
    this.#send(this.#outbox.audio(pcm, (pcm.length * 1000) / this.#options.inputRateHz));
  }

  /** A turn that was typed. */
  sendText(text) {
    this.#sendMessage({ type: "text", text });
  }

  /** Push-to-talk: the turn begins. */
  startTurn() {
    this.#sendMessage({ type: "start_turn" });
  }

  /** Push-to-talk: the turn is over. */
  endTurn() {
    this.#sendMessage({ type: "end_turn" });
  }

  /** Stop the reply. */
  interrupt() {
    this.#sendMessage({ type: "interrupt" });
  }

  /** A telephone key: 0-9, *, #, A-D. */
  sendDtmf(digit) {
    this.#sendMessage({ type: "dtmf", digit });
  }

  /** Hang up. */
  close() {
    if (this.#over) return;
    this.#sendMessage({ type: "bye" });
    this.#end(1000, "hung up");
  }

  /** Break the line, as a test: the client comes back by itself. */
  cutLine() {
    if (this.#socket !== null) this.#lost();
  }

  // --- the line: opening, losing, ending ------------------------------------------------------------------------------

  async #open() {
    this.#timer = null;
    this.#attached = false;
    if (this.#resume === null) this.#tell("connecting", { attempt: this.#attempt });
    let token = this.#options.token;
    if (this.#resume === null && this.#options.authorize) {
      try {
        const ticket = await this.#options.authorize();
        token = ticket.token ?? token;
        this.#url = ticket.url ?? this.#url;
      } catch (error) {
        return this.#end(error.code ?? 1006, error.message);
      }
      if (this.#over) return;
    }
    const socket = new WebSocket(absolute(this.#url), SUBPROTOCOL);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#heardAtMs = performance.now();
    // A socket that was given up may still speak; only the newest is listened to.
    const current = (listen) => (event) => this.#socket === socket && listen(event);
    socket.onopen = current(() => socket.send(this.#hello(token)));
    socket.onmessage = current((event) => this.#receive(event.data));
    socket.onclose = current((event) => this.#closed(event.code, event.reason));
  }

  #hello(token) {
    const { inputRateHz, outputRateHz, turnMode, metadata } = this.#options;
    const hello = { type: "hello", sample_rate_hz: inputRateHz, output_rate_hz: outputRateHz, encoding: "pcm16" };
    Object.assign(hello, { turn_mode: turnMode, metadata });
    if (this.#resume !== null) {
      hello.resume = { ...this.#resume, received_seq: this.#received };
      if (this.#position !== null) hello.resume.played = this.#position;
    } else if (token) {
      hello.token = token;
    }
    return JSON.stringify(hello);
  }

  #closed(code, reason) {
    if (LOST_CODES.has(code)) return this.#lost();
    const retryAfterMs = code === FULL ? Number(/retry_after_ms=(\d+)/.exec(reason)?.[1] ?? 1_000) : null;
    if (code === FULL && this.#resume !== null) return this.#lost({ delayMs: retryAfterMs });
    this.#end(code, reason, retryAfterMs);
  }

  /** The line is gone: try again, at once the first time, unless it has been away too long. */
  #lost({ delayMs = null, moving = false } = {}) {
    this.#drop();
    const now = performance.now();
    this.#lostAtMs ??= now;
    const lostForMs = now - this.#lostAtMs;
    const patience = this.#resume === null ? this.#timing.connectMs : this.#timing.resumeWindowMs;
    if (lostForMs > patience) return this.#end(1006, "the server cannot be reached");
    if (this.#resume !== null) this.#tell("reconnecting", { attempt: this.#attempt, lostForMs, moving });
    const longest = this.#attempt < EARLY_TRIES ? this.#timing.earlyDelayMs : this.#timing.maxDelayMs;
    const most = Math.min(longest, this.#timing.firstDelayMs * 2 ** this.#attempt);
    const wait = delayMs ?? (this.#attempt === 0 ? 0 : Math.random() * most);
    this.#attempt += 1;
    this.#timer = setTimeout(() => this.#open(), wait);
  }

  #retryNow() {
    if (this.#timer === null) return;
    clearTimeout(this.#timer);
    this.#open();
  }

  /** Let go of the socket; what it says from now on is not heard. A dead one would take minutes to close by itself. */
  #drop() {
    this.#leaveAtMs = null;
    const socket = this.#socket;
    this.#socket = null;
    this.#attached = false;
    if (socket === null) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    if (socket.readyState <= WebSocket.OPEN) socket.close(4000, "the line is taken up again");
  }

  #end(code, reason, retryAfterMs = null) {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    clearInterval(this.#ticker);
    globalThis.removeEventListener?.("online", this.#online);
    const socket = this.#socket;
    this.#socket = null;
    this.#attached = false;
    if (socket !== null && socket.readyState === WebSocket.OPEN) socket.close(1000);
    else if (socket !== null && socket.readyState === WebSocket.CONNECTING) socket.close();
    this.#tell("closed", { code, reason, retryAfterMs });
  }

  #tick() {
    const now = performance.now();
    if (this.#socket === null) return;
    const patience = this.#attached ? this.#timing.silenceMs : this.#timing.attemptMs;
    if (now - this.#heardAtMs > patience) return this.#lost();
    if (!this.#attached) return;
    if (now - this.#ackedAtMs >= this.#timing.ackEveryMs) this.#acknowledge();
    if (now - this.#sentAtMs >= this.#timing.pingEveryMs) this.#ping();
    if (this.#leaveAtMs !== null && (now >= this.#leaveAtMs || this.#mayLeave())) this.#lost({ moving: true });
  }

  /** Asked to leave, it goes to another server between two replies; from one that names no other it is sent away in time. */
  #mayLeave() {
    return this.#url !== this.#leftUrl && this.#serverState === "listening";
  }

  // --- what comes in --------------------------------------------------------------------------------------------------

  #receive(data) {
    this.#heardAtMs = performance.now();
    if (typeof data !== "string") return this.#receiveAudio(data);
    const message = JSON.parse(data);
    switch (message.type) {
      case "welcome":
        return this.#welcome(message);
      case "ack":
        return this.#outbox.acknowledge(message.seq, message.safe_seq ?? message.seq);
      case "ping":
        return this.#control({ type: "pong", t_ms: message.t_ms });
      case "pong":
        return undefined;
    }
    if (message.seq !== undefined && !this.#isNew(message.seq)) return undefined;
    this.#obey(message);
    return this.dispatchEvent(new CustomEvent("message", { detail: message }));
  }

  #obey(message) {
    const player = this.#options.player;
    switch (message.type) {
      case "pause":
        return player?.pause();
      case "continue":
        return player?.goOn();
      case "clear":
        return player?.clear();
      case "state":
        this.#serverState = message.state;
        return undefined;
      case "turn_end":
      case "reply_end":
        return this.#acknowledge();
      case "goaway":
        this.#leftUrl = this.#url;
        this.#resume = { ...this.#resume, resume_token: message.resume_token ?? this.#resume.resume_token };
        this.#url = message.url ?? this.#url;
        this.#leaveAtMs = performance.now() + 0.8 * message.deadline_ms;
        return undefined;
    }
    return undefined;
  }

  #receiveAudio(buffer) {
    const seq = new DataView(buffer).getUint32(0, true);
    if (!this.#isNew(seq)) return;
    const pcm = new Int16Array(buffer.slice(4));
    this.#options.player?.play(seq, pcm);
    this.dispatchEvent(new CustomEvent("audio", { detail: { seq, pcm } }));
  }

  #isNew(seq) {
    if (seq <= this.#received) return false;
    if (seq > this.#received + 1) this.#gaps += 1;
    this.#received = seq;
    return true;
  }

  #welcome(message) {
    const gapMs = message.resumed ? performance.now() - this.#lostAtMs : 0;
    this.#resume = { session_id: message.session_id, resume_token: message.resume_token };
    if (message.resumed) this.#reconnects += 1;
    if (message.limits?.resume_window_ms) {
      this.#timing.resumeWindowMs = message.limits.resume_window_ms;
      this.#outbox.boundMs = message.limits.resume_window_ms;
    }
    this.#attached = true;
    this.#attempt = 0;
    this.#lostAtMs = null;
    this.#outbox.acknowledge(message.received_seq, -1);
    this.#ping(); // proves that the new resume token arrived
    for (const data of this.#outbox.after(message.received_seq)) this.#send(data);
    this.#tell("connected", { sessionId: message.session_id, resumed: message.resumed, gapMs, limits: message.limits ?? {} });
  }

  // --- what goes out --------------------------------------------------------------------------------------------------

  #played(type, { seq, ms }) {
    this.#position = { seq, ms };
    this.#control({ type, seq, ms });
  }

  #acknowledge() {
    if (this.#received === this.#acknowledged) return;
    this.#acknowledged = this.#received;
    this.#ackedAtMs = performance.now();
    this.#control({ type: "ack", seq: this.#received });
  }

  #ping() {
    this.#control({ type: "ping", t_ms: Math.round(performance.now()) });
  }

  #sendMessage(message) {
    if (!this.#over) this.#send(this.#outbox.text(message));
  }

  #control(message) {
    this.#send(JSON.stringify(message));
  }

  #send(data) {
    if (!this.#attached || this.#socket.readyState !== WebSocket.OPEN) return;
    this.#sentAtMs = performance.now();
    this.#socket.send(data);
  }

  #tell(status, facts) {
    this.status = status;
    this.dispatchEvent(new CustomEvent("status", { detail: { status, ...facts } }));
  }
}

function absolute(url) {
  const found = new URL(url, globalThis.document?.baseURI);
  found.protocol = found.protocol.replace("http", "ws");
  return found.href;
}
