/** The conversation as it is read: who said what, what was heard of it, and how long each answer took. */

/** The parts of an answer's delay, in the order in which they pass. */
const PARTS = [
  ["endpointing", "end of turn"],
  ["stt", "words"],
  ["agent", "agent"],
  ["tts", "voice"],
];
const LEAST_SCALE_MS = 1_000;

export class Conversation {
  #root;
  #speak;
  #turns = new Map(); // turn number, or "reply 7" where a reply belongs to no turn -> element
  #replies = new Map(); // reply number -> {line, text, words}
  #pending = []; // typed, and not yet confirmed by the server
  #slowestMs = LEAST_SCALE_MS;
  #following = true; // the newest is kept in view, unless the reader has scrolled back

  /** `root` is filled; `speak(text)` reads out what a person who cannot see it must know. */
  constructor(root, speak) {
    this.#root = root;
    this.#speak = speak;
    let top = 0;
    root.addEventListener("scroll", () => {
      const atEnd = root.scrollHeight - root.scrollTop - root.clientHeight < 40;
      this.#following = atEnd || (this.#following && root.scrollTop >= top);
      top = root.scrollTop;
    });
    new ResizeObserver(() => this.#follow()).observe(root);
  }

  clear() {
    this.#root.replaceChildren();
    this.#turns.clear();
    this.#replies.clear();
    this.#pending = [];
    this.#slowestMs = LEAST_SCALE_MS;
  }

  /** Something that a server's message says, if it is part of the conversation. */
  show(message) {
    const how = {
      transcript: () => this.#transcript(message),
      turn_reopened: () => this.#void(message.turn),
      reply: () => this.#say(message),
      reply_end: () => this.#replied(message),
      metrics: () => this.#latencies(message),
      pause: () => this.#pause(true),
      continue: () => this.#pause(false),
      history: () => this.#history(message.messages),
    }[message.type];
    how?.();
    this.#follow();
  }

  /** A typed turn, shown as not yet arrived until the server repeats it. */
  typed(text) {
    const turn = this.#append(element("article", "turn"));
    const line = utterance("You", "user pending");
    line.querySelector(".words").textContent = text;
    turn.append(line);
    this.#pending.push({ text, turn });
    this.#follow();
  }

  /** A line of its own: something that happened to the call. */
  note(text) {
    this.#append(element("p", "note", text));
    this.#follow();
  }

  /** The call is over: what was being said will not be told to its end. */
  end() {
    for (const { line } of this.#replies.values()) {
      if (line.dataset.reply === "speaking" || line.dataset.reply === "paused") line.dataset.reply = "left";
    }
  }

  // --- the user -------------------------------------------------------------------------------------------------------

  #transcript({ turn, text, final }) {
    const block = this.#turn(turn);
    let line = block.querySelector(".user");
    if (line === null) {
      line = utterance("You", "user");
      block.prepend(line);
    }
    const words = line.querySelector(".words");
    words.querySelector(".interim")?.remove();
    const before = words.textContent === "" ? "" : " ";
    if (!text) return;
    if (!final) return words.append(element("span", "interim", before + text));
    words.append(before + text);
    this.#speak(`You: ${text}`);
    const typed = this.#pending.findIndex((one) => one.text.trim() === text.trim());
    if (typed >= 0) this.#pending.splice(typed, 1)[0].turn.remove();
  }

  /** The user went on before the reply was heard: it never was. */
  #void(turn) {
    for (const line of this.#turn(turn).querySelectorAll(".agent, .latency")) line.remove();
  }

  // --- the agent ------------------------------------------------------------------------------------------------------

  #say({ turn, reply, text }) {
    const said = this.#reply(turn, reply);
    said.text += text;
    said.words.textContent = said.text;
  }

  #pause(paused) {
    for (const { line } of this.#replies.values()) {
      if (line.dataset.reply === "speaking" || line.dataset.reply === "paused") line.dataset.reply = paused ? "paused" : "speaking";
    }
  }

  #replied({ turn, reply, interrupted, heard_text: heard = "" }) {
    if (!this.#replies.has(reply) && !heard) return;
    const said = this.#reply(turn, reply);
    said.line.dataset.reply = interrupted ? "cut" : "done";
    if (!said.line.isConnected) return;
    if (!interrupted) {
      said.words.textContent = said.text || heard;
      return this.#speak(`Agent: ${said.text || heard}`);
    }
    const length = heardLength(said.text, heard);
    const unheard = element("s", "unheard", said.text.slice(length).trim());
    said.words.replaceChildren(said.text.slice(0, length), " ", element("span", "cut", "cut off"), " ", unheard);
    if (unheard.textContent === "") unheard.remove();
    else unheard.prepend(element("span", "unseen", "not heard: "));
    return this.#speak(`Agent, interrupted: ${said.text.slice(0, length)}`);
  }

  #reply(turn, reply) {
    if (!this.#replies.has(reply)) {
      const block = this.#turn(turn ?? -1, reply);
      const line = utterance("Agent", "agent");
      line.dataset.reply = "speaking";
      block.append(line);
      this.#replies.set(reply, { line, text: "", words: line.querySelector(".words") });
    }
    return this.#replies.get(reply);
  }

  /** After another server took the call over: what was said before, of which this page may have missed some. */
  #history(messages) {
    this.clear();
    let turn = null;
    for (const { role, text, content } of messages) {
      const mine = role === "user";
      if (mine || turn === null) turn = this.#append(element("article", "turn"));
      const line = utterance(mine ? "You" : "Agent", mine ? "user" : "agent");
      line.dataset.reply = "done";
      line.querySelector(".words").textContent = text ?? content;
      turn.append(line);
    }
  }

  // --- the wait -------------------------------------------------------------------------------------------------------

  #latencies(message) {
    const wholeMs = message.e2e_latency_ms;
    if (wholeMs === null || wholeMs === undefined) return;
    const spent = Object.fromEntries(["stt", "agent", "tts"].map((part) => [part, message[`${part}_latency_ms`] ?? 0]));
    spent.endpointing = Math.max(0, wholeMs - spent.stt - spent.agent - spent.tts);
    const figure = element("figure", "latency");
    figure.dataset.ms = wholeMs;
    const bar = element("div", "bar");
    bar.setAttribute("aria-hidden", "true");
    const legend = element("figcaption", "parts");
    legend.append(element("b", "", `Waited ${seconds(wholeMs)}`));
    for (const [part, name] of PARTS) {
      const piece = element("span", `part ${part}-part`);
      piece.style.flexGrow = spent[part];
      bar.append(piece);
      legend.append(" ", element("span", `part ${part}-part`, `${name} ${Math.round(spent[part])} ms`));
    }
    figure.append(bar, legend);
    const block = this.#turn(message.turn);
    block.querySelector(".latency")?.remove();
    const user = block.querySelector(".user");
    if (user) user.after(figure);
    else block.prepend(figure);
    this.#slowestMs = Math.max(this.#slowestMs, wholeMs);
    for (const one of this.#root.querySelectorAll(".latency")) {
      one.firstChild.style.width = `${(100 * one.dataset.ms) / this.#slowestMs}%`;
    }
  }

  // --- the page -------------------------------------------------------------------------------------------------------

  #turn(turn, reply) {
    const key = turn >= 0 ? turn : `reply ${reply}`;
    if (!this.#turns.has(key)) this.#turns.set(key, this.#append(element("article", "turn")));
    return this.#turns.get(key);
  }

  #append(child) {
    this.#root.querySelector("#welcome")?.remove();
    this.#root.append(child);
    return child;
  }

  #follow() {
    if (this.#following) this.#root.scrollTop = this.#root.scrollHeight;
  }
}

/** How much of `text` (as the agent gave it) `heard` (as it was spoken) covers: spaces may differ. */
export function heardLength(text, heard) {
  const spoken = heard.replace(/\s+/g, "");
  let length = 0;
  for (let i = 0; i < spoken.length; length++) {
    if (length === text.length) return length;
    if (/\s/.test(text[length])) continue;
    if (text[length] !== spoken[i]) return length;
    i += 1;
  }
  return length;
}

function utterance(who, kind) {
  const line = element("p", kind);
  line.append(element("span", "who", who), element("span", "words"));
  return line;
}

function element(name, kind, text = "") {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  made.textContent = text;
  return made;
}

export function seconds(ms) {
  return ms < 1_000 ? `${Math.round(ms)} ms` : `${(ms / 1_000).toFixed(2)} s`;
}
