/**
 * Turns what the microphone hears into 16-bit samples at the rate of the line, in messages of 20 ms. An AudioWorklet
 * processor; `processorOptions.rateHz` is the line's rate, the context's may be any.
 *
 * Out: an Int16Array at a time.
 */
const MESSAGE_MS = 20;
const LOBES = 16; // of the sinc, on either side: aliases are about 70 dB down

/** From one rate to another by a windowed sinc, position kept in whole numbers so that it never drifts. */
class Resampler {
  #phases; // for each fraction between two input samples, the weights of the samples around it
  #from;
  #to;
  #half;
  #held;
  #phase = 0;

  constructor(fromHz, toHz) {
    const divisor = gcd(fromHz, toHz);
    this.#from = fromHz / divisor;
    this.#to = toHz / divisor;
    const cutoff = Math.min(1, toHz / fromHz) * (1 - 1.6 / LOBES); // the slope ends where aliasing would begin
    this.#half = Math.ceil(LOBES / Math.min(1, toHz / fromHz));
    this.#phases = Array.from({ length: this.#to }, (_, phase) => weights(phase / this.#to, this.#half, cutoff));
    this.#held = new Float32Array(this.#half);
  }

  feed(input) {
    const samples = new Float32Array(this.#held.length + input.length);
    samples.set(this.#held);
    samples.set(input, this.#held.length);
    const out = [];
    let start = 0;
    while (start + 2 * this.#half <= samples.length) {
      const taps = this.#phases[this.#phase];
      let sum = 0;
      for (let i = 0; i < taps.length; i++) sum += taps[i] * samples[start + i];
      out.push(sum);
      this.#phase += this.#from;
      start += Math.floor(this.#phase / this.#to);
      this.#phase %= this.#to;
    }
    this.#held = samples.slice(start);
    return out;
  }
}

function weights(fraction, half, cutoff) {
  const taps = Float32Array.from({ length: 2 * half }, (_, i) => {
    const distance = i - (half - 1) - fraction;
    const window = 0.42 + 0.5 * Math.cos((Math.PI * distance) / half) + 0.08 * Math.cos((2 * Math.PI * distance) / half);
    const angle = Math.PI * distance * cutoff;
    return window * cutoff * (angle === 0 ? 1 : Math.sin(angle) / angle);
  });
  const sum = taps.reduce((total, one) => total + one, 0);
  return taps.map((one) => one / sum);
}

function gcd(a, b) {
  return b === 0 ? a : gcd(b, a % b);
}

class Microphone extends AudioWorkletProcessor {
  #message;
  #filled = 0;
  #resampler = null;

  constructor({ processorOptions: { rateHz } }) {
    super();
    this.#message = new Int16Array((rateHz * MESSAGE_MS) / 1000);
    if (rateHz !== sampleRate) this.#resampler = new Resampler(sampleRate, rateHz);
  }

  process([[heard]]) {
    if (heard === undefined) return true; // nothing is connected
    for (const sample of this.#resampler?.feed(heard) ?? heard) {
      this.#message[this.#filled++] = Math.max(-32_768, Math.min(32_767, Math.round(sample * 32_768)));
      if (this.#filled === this.#message.length) this.#post();
    }
    return true;
  }

  #post() {
    const whole = this.#message;
    this.#message = new Int16Array(whole.length);
    this.#filled = 0;
    this.port.postMessage(whole, [whole.buffer]);
  }
}

registerProcessor("beluga-microphone", Microphone);
