/** The page: one call at a time, its controls and its state. */
import { Microphone, Player } from "./audio.js";
import { VoiceClient } from "./beluga-voice.js";
import { Conversation, seconds } from "./conversation.js";

const $ = (id) => document.getElementById(id);
const INPUT_RATE_HZ = 16_000;
const OUTPUT_RATE_HZ = 24_000;
const BANNER_MS = 6_000;

/** ?raw=1 asks for the microphone as it is: no echo cancellation, noise suppression or gain control. */
const RAW = new URLSearchParams(location.search).get("raw") === "1";

const HINTS = {
  connecting: "Opening the line. The browser may ask for the microphone.",
  connected: "The line is open.",
  listening: "Speak when you like.",
  processing: "An answer is being made.",
  responding: "Speak to interrupt.",
  reconnecting: "Keep talking: what you say is kept and sent when the line is back.",
};

const conversation = new Conversation($("conversation"), (text) => ($("spoken").textContent = text));
let call = null; // {client, player, microphone, push, muted}
let accessKey = "";
let bannerTimer = null;
let lostAt = null;

// --- the call -----------------------------------------------------------------------------------------------------------

async function start() {
  problem("");
  conversation.clear();
  const starting = { client: null, player: null, microphone: null, push: $("push").checked, muted: false };
  call = starting;
  showState("connecting");
  try {
    starting.player = await Player.open({ rateHz: OUTPUT_RATE_HZ });
  } catch (error) {
    return finish(starting, `The browser could not open the loudspeaker: ${error.message}.`);
  }
  await listen(starting);
  if (call !== starting) return release(starting);
  const client = new VoiceClient({
    authorize,
    player: starting.player,
    inputRateHz: INPUT_RATE_HZ,
    outputRateHz: OUTPUT_RATE_HZ,
    turnMode: starting.push ? "push" : "vad",
  });
  starting.client = client;
  client.addEventListener("status", ({ detail }) => call === starting && status(detail));
  client.addEventListener("message", ({ detail }) => call === starting && message(detail));
  client.connect();
  showControls();
}

/** The microphone, if there is one: a call without it is typed. */
async function listen(starting) {
  const onaudio = (pcm) => {
    starting.client?.sendAudio(pcm);
    showLevel(starting.muted ? 0 : loudness(pcm));
  };
  const onended = () => problem("The microphone is gone. Start the call anew to use another one; you can still type.");
  try {
    starting.microphone = await Microphone.open({ rateHz: INPUT_RATE_HZ, processed: !RAW, onaudio, onended });
    starting.microphone.muted = starting.push;
  } catch (error) {
    const why = { NotAllowedError: "it was not allowed", NotFoundError: "none was found" }[error.name] ?? error.message;
    problem(`The microphone cannot be used: ${why}. You can still type.`);
  }
}

/** A ticket for one call, from a server that wants one. */
async function authorize() {
  const headers = accessKey ? { Authorization: `Bearer ${accessKey}` } : {};
  const answer = await fetch("v1/sessions", { method: "POST", headers, signal: AbortSignal.timeout(10_000) }).catch(() => {
    throw new Error("the server cannot be reached");
  });
  if (answer.ok) return answer.json();
  if (answer.status === 404 || answer.status === 405) return {}; // it wants no ticket
  const { error } = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(error ?? `the server answered ${answer.status}`), { code: answer.status === 401 ? 4401 : 1006 });
}

function hangUp() {
  if (call.client) call.client.close();
  else finish(call, "");
}

function finish(ended, text) {
  release(ended);
  conversation.end();
  call = null;
  lostAt = null;
  showState("ready");
  showControls();
  showLevel(0);
  if (text) problem(text);
}

function release({ microphone, player }) {
  microphone?.close();
  player?.close();
}

// --- what the client tells ----------------------------------------------------------------------------------------------

function status(detail) {
  if (detail.status === "closed") return closed(detail);
  if (detail.status === "connected") return connected(detail);
  if (detail.status === "reconnecting" && lostAt === null) {
    lostAt = performance.now() - detail.lostForMs;
    tickBanner(detail.moving ? "Moving to another server" : "Line lost, coming back");
  }
  showState(detail.status);
}

function connected({ resumed, gapMs }) {
  lostAt = null;
  showState("connected");
  if (!resumed) return;
  const { lost } = call.client.counters;
  const text = `Line lost, back after ${seconds(gapMs)}.`;
  banner(lost === 0 ? `${text} Nothing was lost.` : `${text} ${lost} messages were lost.`, "back");
  bannerTimer = setTimeout(() => banner(""), BANNER_MS);
  conversation.note(text);
}

function closed({ code, reason, retryAfterMs }) {
  banner("");
  finish(call, code === 1000 ? "" : whyClosed(code, reason, retryAfterMs));
  if (code === 1000) conversation.note("The call has ended.");
  if (code !== 4401) return;
  $("key-form").hidden = false;
  $("key").focus();
}

function whyClosed(code, reason, retryAfterMs) {
  if (code === 1013) return `All lines are busy. Try again in ${Math.ceil(retryAfterMs / 1_000)} s.`;
  if (code === 4401) return accessKey ? "The server did not take this access key." : "This server asks for an access key.";
  return `The call has ended: ${reason || `code ${code}`}.`;
}

function message(detail) {
  conversation.show(detail);
  if (detail.type === "state") showState(detail.state);
  if (detail.type === "turn_end") problem("");
  if (detail.type === "pause") showState("responding", "paused");
  if (detail.type === "continue") showState("responding");
  if (detail.type === "error") problem(`${detail.message.replace(/\.$/, "")}.`);
}

// --- what is shown ------------------------------------------------------------------------------------------------------

function showState(state, note = "") {
  const name = state[0].toUpperCase() + state.slice(1);
  $("state").dataset.state = state;
  $("state-name").textContent = note ? `${name}, ${note}` : name;
  document.body.dataset.state = state;
  let hint = HINTS[state] ?? "Nothing is recorded by this page.";
  if (call?.muted && state !== "reconnecting") hint = "You are muted.";
  else if (call?.push && (state === "listening" || state === "connected")) hint = "Hold the button or the space bar while you speak.";
  $("hint").textContent = hint;
  $("stop").disabled = state !== "responding";
}

function showControls() {
  const inCall = call !== null;
  $("call").querySelector("span").textContent = inCall ? "Hang up" : "Start";
  $("call").classList.toggle("in-call", inCall);
  const pushing = Boolean(call?.push && call.microphone);
  $("controls").classList.toggle("pushing", pushing);
  $("talk").hidden = !pushing;
  $("mute").disabled = !inCall || call.push || !call.microphone;
  $("mute").setAttribute("aria-pressed", String(Boolean(call?.muted)));
  for (const id of ["text", "send", "cut"]) $(id).disabled = !inCall;
  $("push").disabled = inCall;
}

function showLevel(level) {
  document.body.style.setProperty("--level", level.toFixed(2));
}

/** 0 to 1 for -60 to -10 dB of full scale. */
function loudness(pcm) {
  let sum = 0;
  for (const sample of pcm) sum += sample * sample;
  const decibels = 10 * Math.log10(sum / pcm.length / 32_768 ** 2 + 1e-9);
  return Math.min(1, Math.max(0, (decibels + 60) / 50));
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = text === "";
}

function banner(text, kind = "") {
  clearTimeout(bannerTimer);
  $("banner").textContent = text;
  $("banner").className = kind;
  $("banner").hidden = text === "";
}

function tickBanner(text) {
  banner(`${text} …`, "lost");
  const shown = document.createElement("span");
  shown.setAttribute("aria-live", "off");
  $("banner").append(shown);
  const tick = () => {
    if (lostAt === null) return;
    shown.textContent = ` ${((performance.now() - lostAt) / 1_000).toFixed(1)} s`;
    bannerTimer = setTimeout(tick, 100);
  };
  tick();
}

// --- what the user does -------------------------------------------------------------------------------------------------

function setMuted(muted) {
  call.muted = muted;
  call.microphone.muted = muted;
  showControls();
  showState($("state").dataset.state);
}

function holdToTalk(talking) {
  if (!call?.client || $("talk").classList.contains("talking") === talking) return;
  $("talk").classList.toggle("talking", talking);
  $("talk").querySelector("span").textContent = talking ? "Release to send" : "Hold to talk";
  call.microphone.muted = !talking;
  if (talking) call.client.startTurn();
  else call.client.endTurn();
}

$("call").addEventListener("click", () => (call === null ? start() : hangUp()));
$("mute").addEventListener("click", () => setMuted(!call.muted));
$("stop").addEventListener("click", () => call.client.interrupt());
$("cut").addEventListener("click", () => call.client?.cutLine());

$("talk").addEventListener("pointerdown", (event) => {
  $("talk").setPointerCapture(event.pointerId);
  holdToTalk(true);
});
for (const name of ["pointerup", "pointercancel", "blur"]) $("talk").addEventListener(name, () => holdToTalk(false));
document.addEventListener("keydown", (event) => talkKey(event, true));
document.addEventListener("keyup", (event) => talkKey(event, false));

/** The space bar talks, unless it means something where the focus is; on the button itself Enter does too. */
function talkKey(event, down) {
  if ($("talk").hidden) return;
  const onTalk = event.target === $("talk");
  if (!(event.code === "Space" || (onTalk && event.code === "Enter"))) return;
  if (!onTalk && event.target.closest("input, button, a")) return;
  event.preventDefault();
  if (!event.repeat) holdToTalk(down);
}

$("type-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || !call?.client) return;
  conversation.typed(text);
  call.client.sendText(text);
  $("text").value = "";
});

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  accessKey = $("key").value;
  $("key-form").hidden = true;
  if (call === null) start();
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden || call === null) return;
  call.player?.wake();
  call.microphone?.wake();
});
addEventListener("pagehide", () => call?.client?.close());
