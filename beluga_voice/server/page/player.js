/**
 * Plays the agent's voice and knows to the sample what was played. An AudioWorklet processor; its context runs at the
 * rate of what it is given.
 *
 * In:  {play: seq, pcm: Int16Array}, {do: "pause" | "continue" | "clear"}
 * Out: {report: "played", seq, ms, totalMs, idle} every 100 ms while playing and when nothing is left;
 *      {report: "stopped", seq, ms, totalMs} at once in answer to pause and clear
 */
const REPORT_EVERY_MS = 100;
const FADE_SAMPLES = 128; // a voice cut in mid-wave clicks

class Player extends AudioWorkletProcessor {
  #queue = []; // {seq, pcm}
  #offset = 0; // samples of the first that are played
  #position = { seq: -1, ms: 0 }; // nothing yet
  #total = 0;
  #unreported = 0;
  #paused = false;
  #tail = null; // what still sounds after a stop
  #rising = false; // the next samples follow a pause

  constructor() {
    super();
    this.port.onmessage = ({ data }) => {
      if (data.pcm) this.#queue.push({ seq: data.play, pcm: data.pcm });
      else if (data.do === "continue") this.#continue();
      else this.#stop(data.do === "clear");
    };
  }

  process(_inputs, [[out]]) {
    if (this.#tail !== null) {
      out.set(this.#tail);
      this.#tail = null;
    } else if (!this.#paused) {
      this.#play(out);
    }
    return true;
  }

  #play(out) {
    const taken = this.#take(out);
    if (taken === 0) return;
    if (this.#rising) ramp(out, 0, 1);
    this.#rising = false;
    this.#unreported += taken;
    const idle = this.#queue.length === 0;
    if (idle || this.#unreported * 1000 >= REPORT_EVERY_MS * sampleRate) this.#report("played", { idle });
  }

  #stop(clear) {
    if (!this.#paused && this.#queue.length > 0) {
      this.#tail = new Float32Array(FADE_SAMPLES);
      this.#take(this.#tail);
      ramp(this.#tail, 1, 0);
    }
    if (clear) {
      this.#queue = [];
      this.#offset = 0;
    }
    this.#paused = !clear;
    this.#rising = false;
    this.#report("stopped");
  }

  #continue() {
    this.#rising = this.#paused;
    this.#paused = false;
  }

  /** Fill `out` from the queue as far as it goes: returns how many samples that were. */
  #take(out) {
    let taken = 0;
    while (taken < out.length && this.#queue.length > 0) {
      const { seq, pcm } = this.#queue[0];
      const count = Math.min(out.length - taken, pcm.length - this.#offset);
      for (let i = 0; i < count; i++) out[taken + i] = pcm[this.#offset + i] / 32_768;
      taken += count;
      this.#offset += count;
      this.#position = { seq, ms: milliseconds(this.#offset) };
      if (this.#offset === pcm.length) {
        this.#queue.shift();
        this.#offset = 0;
      }
    }
    this.#total += taken;
    return taken;
  }

  #report(report, facts = {}) {
    this.#unreported = 0;
    this.port.postMessage({ report, ...this.#position, totalMs: milliseconds(this.#total), ...facts });
  }
}

function ramp(samples, from, to) {
  const step = (to - from) / samples.length;
  for (let i = 0; i < samples.length; i++) samples[i] *= from + step * i;
}

function milliseconds(samples) {
  return Math.round((samples * 1e6) / sampleRate) / 1000;
}

registerProcessor("beluga-player", Player);
