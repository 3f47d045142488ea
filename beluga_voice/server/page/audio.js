/** The browser's microphone and loudspeaker, each an AudioWorklet behind a small object. */

/**
 * Plays the agent's voice. `onplayed` and `onstopped` are called with {seq, ms, totalMs, idle}: everything before audio
 * message `seq` and `ms` of it was played.
 */
export class Player {
  #node;
  #context;

  /** Open the loudspeaker. Browsers allow it only after the user has pressed something. */
  static async open({ rateHz = 24_000, context = new AudioContext({ sampleRate: rateHz }) } = {}) {
    await context.audioWorklet.addModule(new URL("player.js", import.meta.url));
    return new Player(context);
  }

  constructor(context) {
    this.#context = context;
    this.#node = new AudioWorkletNode(context, "beluga-player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.#node.connect(context.destination);
    this.onplayed = this.onstopped = () => {};
    this.#node.port.onmessage = ({ data: { report, ...position } }) =>
      report === "stopped" ? this.onstopped(position) : this.onplayed(position);
  }

  play(seq, pcm) {
    this.#node.port.postMessage({ play: seq, pcm });
  }

  pause() {
    this.#node.port.postMessage({ do: "pause" });
  }

  goOn() {
    this.#node.port.postMessage({ do: "continue" });
  }

  clear() {
    this.#node.port.postMessage({ do: "clear" });
  }

  /** A telephone call or a locked screen may have suspended it. */
  async wake() {
    if (this.#context.state !== "running" && this.#context.state !== "closed") await this.#context.resume();
  }

  async close() {
    await this.#context.close();
  }
}

/** Hears the user: `onaudio` gets an Int16Array of 20 ms at a time, `onended` is called if the device goes away. */
export class Microphone {
  #stream;
  #context;

  /**
   * Ask for the microphone. `processed` wants the browser's echo cancellation, noise suppression and gain control.
   * Rejects as getUserMedia does ("NotAllowedError", "NotFoundError"), or with an Error on a page that is not secure.
   */
  static async open({ rateHz = 16_000, processed = true, onaudio, onended = () => {} }) {
    if (!navigator.mediaDevices) {
      throw new Error("browsers lend the microphone only to pages from https:// or localhost: open this page from there");
    }
    const wishes = { echoCancellation: processed, noiseSuppression: processed, autoGainControl: processed };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { ...wishes, channelCount: 1 } });
    const microphone = new Microphone(stream);
    try {
      await microphone.#listen(rateHz, onaudio, onended);
    } catch (error) {
      await microphone.close();
      throw error;
    }
    return microphone;
  }

  constructor(stream) {
    this.#stream = stream;
  }

  async #listen(rateHz, onaudio, onended) {
    const [track] = this.#stream.getAudioTracks();
    track.onended = onended;
    const { context, source } = connect(this.#stream, rateHz);
    this.#context = context;
    await context.audioWorklet.addModule(new URL("microphone.js", import.meta.url));
    const node = new AudioWorkletNode(context, "beluga-microphone", {
      numberOfOutputs: 1, // a node that leads nowhere is not run by every browser; this one gives silence
      channelCount: 1,
      channelCountMode: "explicit",
      processorOptions: { rateHz },
    });
    node.port.onmessage = ({ data }) => onaudio(data);
    source.connect(node).connect(context.destination);
  }

  /** Muted, it hears silence: the sound never leaves the browser's device layer. */
  set muted(muted) {
    for (const track of this.#stream.getAudioTracks()) track.enabled = !muted;
  }

  async wake() {
    if (this.#context.state !== "running" && this.#context.state !== "closed") await this.#context.resume();
  }

  async close() {
    for (const track of this.#stream.getTracks()) track.stop();
    await this.#context?.close();
  }
}

/** Some browsers resample a microphone to the context's rate; in the others the worklet does. */
function connect(stream, rateHz) {
  const wished = new AudioContext({ sampleRate: rateHz });
  try {
    return { context: wished, source: wished.createMediaStreamSource(stream) };
  } catch {
    wished.close();
    const context = new AudioContext();
    return { context, source: context.createMediaStreamSource(stream) };
  }
}
