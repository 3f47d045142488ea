/**
 * What one side of a call has sent and may have to send again.
 *
 * Every message gets the next number; it is kept until the far end says that it is safe. Audio beyond `boundMs` (and
 * anything beyond 1,000 other messages) pushes the oldest out: `lost` counts what nobody had received by then.
 */
export class Outbox {
  #kept = [];
  #audioMs = 0;
  #events = 0;
  #received = -1;
  #boundMs;

  constructor(boundMs) {
    this.#boundMs = boundMs;
    this.next = 0;
    this.lost = 0;
  }

  set boundMs(boundMs) {
    this.#boundMs = boundMs;
    this.#trim();
  }

  /** Number a text message: returns what goes over the line. */
  text(message) {
    return this.#keep(JSON.stringify({ ...message, seq: this.next }), 0);
  }

  /** Number `pcm` (Int16Array), which lasts `ms`: returns what goes over the line. */
  audio(pcm, ms) {
    const bytes = new Uint8Array(4 + pcm.byteLength);
    new DataView(bytes.buffer).setUint32(0, this.next, true);
    bytes.set(new Uint8Array(pcm.buffer, pcm.byteOffset, pcm.byteLength), 4);
    return this.#keep(bytes, ms);
  }

  /** The far end received everything up to `received`, and never needs again what is up to `safe`. */
  acknowledge(received, safe = received) {
    this.#received = Math.max(this.#received, received);
    while (this.#kept.length > 0 && this.#kept[0].seq <= safe) this.#drop();
  }

  /** What is kept after number `seq`, oldest first. */
  after(seq) {
    return this.#kept.filter((one) => one.seq > seq).map((one) => one.data);
  }

  get keptMs() {
    return this.#audioMs;
  }

  #keep(data, ms) {
    this.#kept.push({ seq: this.next, data, ms });
    this.next += 1;
    this.#audioMs += ms;
    this.#events += ms === 0 ? 1 : 0;
    this.#trim();
    return data;
  }

  #trim() {
    while (this.#audioMs > this.#boundMs || this.#events > 1000) {
      if (this.#drop().seq > this.#received) this.lost += 1;
    }
  }

  #drop() {
    const one = this.#kept.shift();
    this.#audioMs -= one.ms;
    this.#events -= one.ms === 0 ? 1 : 0;
    return one;
  }
}
