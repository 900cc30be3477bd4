// The tab Live: begins a session, plays it by WebRTC or, if that does not connect, as MP4 fragments over the
// WebSocket; sends microphone sound, texts and button presses; shows what is said and the picture's latency.
const webrtcGiveUpMs = 3000, socketFirstMs = 400, retryForMs = 30000, lateS = 0.4, marginS = 0.08;
const jitterBufferMs = 60;  // sound and picture wait alike from the first second on, so that they stay together
const live = { mode: "mirror", press: 0, saying: new Set() };
window.liveSession = live;  // for tests and debugging

const part = (selector) => element.querySelector(selector);
const given = () => JSON.parse(part(".live").dataset.live);
const word = (key, values = {}) =>
  (given().words[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
const address = (path) => {
  const root = given().root || location.pathname.replace(/\/+$/, "").replace(/\/index\.html$/, "");
  return new URL(`${root}/${path}`, location.origin);
};

function state(text) { part(".live-state").textContent = text; }
function notice(text) {
  const line = part(".live-notice");
  line.textContent = text;
  line.hidden = !text;
}

function stage() {
  let video = document.querySelector("#live-video");
  if (!video) {
    video = Object.assign(document.createElement("video"), { id: "live-video", autoplay: true });
    video.setAttribute("playsinline", "");
    video.setAttribute("aria-label", word("avatar"));
    (document.querySelector("#stage") ?? element).append(video);
  }
  return video;
}

// ---- beginning and ending

function go() {
  if (live.token) return end();
  notice("");
  state(word("starting"));
  live.press += 1;
  live.waits = setTimeout(() => { state(word("idle")); notice(word("no_answer")); buttons(false); }, 20000);
  stage().scrollIntoView({ behavior: "smooth", block: "nearest" });
  if (live.mode !== "type") microphone();  // needs the user's press; does not wait for the answer
  trigger("select", { action: "begin", id: String(live.press), motion: part("[data-motion]").value });
}

setInterval(() => {  // the server's answer to the press
  const ticket = document.querySelector("#live-ticket [data-ticket]");
  const answer = ticket && JSON.parse(ticket.dataset.ticket);
  if (!answer || answer.number !== String(live.press) || live.answered === live.press) return;
  live.answered = live.press;
  clearTimeout(live.waits);
  if (answer.error) {
    state(word("idle"));
    notice(answer.error);
    return silence();
  }
  live.token = answer.token;
  buttons(true);
  connect();
}, 50);

function end() {
  send({ type: "end" });
  over("");
}

function over(reason) {
  const socket = live.socket;
  live.token = live.socket = null;
  socket?.close();
  live.peer?.close();
  live.peer = null;
  clearTimeout(live.webrtcTimer);
  clearTimeout(live.socketTimer);
  unsaid();
  silence();
  document.querySelector("#live-video")?.remove();
  live.player = null;
  buttons(false);
  state(word("over"));
  notice(reason);
}

window.addEventListener("pagehide", () => {
  if (live.token) navigator.sendBeacon(address(`live/${live.token}/leave`));
});

// ---- the socket

function connect() {
  const url = address(`live/${live.token}`);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = (live.socket = new WebSocket(url));
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    live.lostAt = 0;
  };
  socket.onmessage = ({ data }) => (typeof data === "string" ? obey(JSON.parse(data)) : live.player?.add(data));
  socket.onclose = ({ code, reason }) => {
    if (live.socket !== socket) return;
    live.lostAt ||= performance.now();
    if ([1000, 1008, 1009, 4404, 4409].includes(code)
        || performance.now() - live.lostAt > retryForMs) return over(reason);
    state(word("again"));
    setTimeout(() => live.token && live.socket === socket && connect(), 1000);
  };
}

function send(message) {
  if (live.socket?.readyState === WebSocket.OPEN) live.socket.send(JSON.stringify(message));
}

function obey(message) {
  switch (message.type) {
    case "waiting":
      return state(word("waiting", { place: message.place }));
    case "begun":
      return begun(message);
    case "stream":
      return play(message);
    case "pace":
      live.engineMs = message.engine_ms;
      return send({ type: "ping", at: performance.now() });
    case "pong":
      live.tripMs = performance.now() - message.at;
      return tellDelay();
    case "said":
      return saidLater(message);
    case "hearing":
      return note(message.on ? word("hearing") : word("thinking"));
    case "answering":
      return note("");
    case "not_understood":
      return note(word("not_understood"));
    case "interrupted":
      unsaid();
      return note("");
    case "notice":
      if (message.code === "error") note("");
      return notice(message.text);
    case "recording":
      return press("record", message.on, word(message.on ? "record_stop" : "record"));
    case "recorded":
      notice(word(message.id ? "recorded" : "not_recorded"));
      return trigger("submit", { action: "recorded", id: message.id });
    case "end":
      return over(message.reason);
  }
}

function begun(message) {
  live.transport = "";
  live.player = null;
  live.peer?.close();  // of the connection before this one
  live.peer = live.sender = null;
  send({ type: "hello", rate: live.rate ?? 48000, video: "none" });
  tellMode();
  state(word("starting"));
  live.socketTimer = setTimeout(() => live.transport || send({ type: "media", video: "fmp4" }), socketFirstMs);
  live.webrtcTimer = setTimeout(() => live.transport !== "webrtc" && bySocket(), webrtcGiveUpMs);
  byWebrtc(message.ice).catch(() => bySocket());
}

// ---- video down

async function byWebrtc(iceServers) {
  if (!window.RTCPeerConnection) throw new Error("no WebRTC");
  const peer = (live.peer = new RTCPeerConnection({ iceServers }));
  const stream = new MediaStream();
  peer.ontrack = ({ track }) => {
    stream.addTrack(track);
  };
  peer.onconnectionstatechange = () => {
    if (live.peer !== peer) return;
    if (peer.connectionState === "connected") {
      live.transport = "webrtc";
      clearTimeout(live.webrtcTimer);
      send({ type: "media", video: "none" });
      const video = stage();
      live.player = null;
      video.removeAttribute("src");
      video.srcObject = stream;
      video.play().catch(() => {});
      tellDelay();
    } else if (["failed", "disconnected", "closed"].includes(peer.connectionState)) bySocket();
  };
  peer.addTransceiver("video", { direction: "recvonly" });
  live.sender = peer.addTransceiver("audio", { direction: "sendrecv" }).sender;
  for (const receiver of peer.getReceivers()) receiver.jitterBufferTarget = jitterBufferMs;
  const track = live.stream?.getAudioTracks()[0];
  if (track) await live.sender.replaceTrack(track);
  await peer.setLocalDescription(await peer.createOffer());
  await new Promise((done) => {
    if (peer.iceGatheringState === "complete") return done();
    peer.addEventListener("icegatheringstatechange", () => peer.iceGatheringState === "complete" && done());
    setTimeout(done, 1000);
  });
  const answer = await fetch(address(`live/${live.token}/offer`), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ sdp: peer.localDescription.sdp }),
  });
  if (!answer.ok) throw new Error("refused");
  await peer.setRemoteDescription({ type: "answer", sdp: (await answer.json()).sdp });
}

function bySocket() {
  if (!live.token || live.transport === "socket") return;
  clearTimeout(live.webrtcTimer);
  live.transport = "socket";
  const peer = live.peer;
  live.peer = live.sender = null;
  peer?.close();
  if (!live.player) send({ type: "media", video: "fmp4" });
  tellDelay();
}

function play({ codecs }) {
  if (live.transport === "webrtc") return;
  const Source = window.MediaSource ?? window.ManagedMediaSource;
  if (!Source?.isTypeSupported(codecs)) return notice(word("no_player"));
  live.player = new Player(new Source(), codecs);
  tellDelay();
}

class Player {  // plays MP4 fragments with as little delay as the network allows
  constructor(source, codecs) {
    this.waiting = [];
    this.source = source;
    const video = (this.video = stage());
    video.srcObject = null;
    video.disableRemotePlayback = true;
    video.src = URL.createObjectURL(source);
    source.addEventListener("sourceopen", () => {
      if (source.readyState !== "open") return;  // another player took its place meanwhile
      this.buffer = source.addSourceBuffer(codecs);
      this.buffer.addEventListener("updateend", () => this.next());
      this.next();
    });
  }
  add(data) {
    this.waiting.push(data);
    this.next();
  }
  next() {
    const { buffer, source, video } = this;
    if (!buffer || source.readyState !== "open" || buffer.updating || video.error) return;
    if (buffer.buffered.length) this.keepUp();
    const begin = buffer.buffered.length ? buffer.buffered.start(0) : 0;
    if (video.currentTime - begin > 20) return buffer.remove(begin, video.currentTime - 5);
    if (!this.waiting.length) return;
    const size = this.waiting.reduce((sum, one) => sum + one.byteLength, 0);
    const all = new Uint8Array(size);
    let at = 0;
    for (const one of this.waiting.splice(0)) {
      all.set(new Uint8Array(one), at);
      at += one.byteLength;
    }
    buffer.appendBuffer(all);
  }
  get lagS() {
    const ranges = this.source.readyState === "open" ? this.buffer?.buffered : null;
    return ranges?.length ? ranges.end(ranges.length - 1) - this.video.currentTime : 0;
  }
  keepUp() {
    const ranges = this.buffer.buffered, last = ranges.length - 1;
    if (this.lagS > lateS || this.video.currentTime < ranges.start(last)) {
      this.video.currentTime = Math.max(ranges.start(last), ranges.end(last) - marginS);
    }
    this.video.playbackRate = this.lagS > 0.2 ? 1.06 : 1;
    if (this.video.paused) this.video.play().catch(() => {});
  }
}

async function tellDelay() {
  if (!live.token || !live.transport && !live.player) return;
  let playerMs = 1000 * (live.player?.lagS ?? 0);
  if (live.transport === "webrtc" && live.peer) {
    for (const report of (await live.peer.getStats()).values()) {
      if (report.type !== "inbound-rtp" || report.kind !== "video") continue;
      live.frames = report.framesDecoded;
      const [delay, count] = [report.jitterBufferDelay ?? 0, report.jitterBufferEmittedCount ?? 0];
      const [d, c] = live.jitter ?? [0, 0];
      playerMs = count > c ? (1000 * (delay - d)) / (count - c) : 0;
      live.jitter = [delay, count];
    }
  }
  const transport = word(live.transport === "webrtc" ? "on_webrtc" : "on_socket");
  live.delayMs = Math.round((live.engineMs ?? 0) + (live.tripMs ?? 0) + playerMs);
  state(live.engineMs ? word("delay", { transport, ms: live.delayMs }) : transport);
}

// ---- the microphone up

async function microphone() {
  if (live.stream) return;
  if (!navigator.mediaDevices) return notice(word("mic_https"));
  try {
    live.stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
    });
  } catch (error) {
    return notice(word(error.name === "NotFoundError" ? "mic_absent" : "mic_refused"));
  }
  live.context = new AudioContext({ sampleRate: 48000 });
  live.rate = live.context.sampleRate;
  const code = `registerProcessor("up", class extends AudioWorkletProcessor {
    constructor() { super(); this.held = new Float32Array(1920); this.at = 0; }
    process([[samples]]) {
      if (!samples) return true;
      for (const value of samples) {
        this.held[this.at++] = value;
        if (this.at < this.held.length) continue;
        this.port.postMessage(this.held.slice());
        this.at = 0;
      }
      return true;
    }
  });`;
  await live.context.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  const worklet = new AudioWorkletNode(live.context, "up");
  live.context.createMediaStreamSource(live.stream).connect(worklet);
  worklet.port.onmessage = ({ data }) => heard(data);
  listen();
  live.sender?.replaceTrack(live.stream.getAudioTracks()[0]);
  meter(0);
}

function heard(samples) {
  const open = live.stream?.getAudioTracks()[0]?.enabled;
  let power = 0;
  for (const value of samples) power += value * value;
  meter(open ? Math.sqrt(power / samples.length) : 0);
  if (!open || live.transport === "webrtc" || live.socket?.readyState !== WebSocket.OPEN) return;
  const ints = new Int16Array(samples.length);
  samples.forEach((value, at) => (ints[at] = Math.max(-1, Math.min(1, value)) * 32767));
  if (live.transport || live.player) live.socket.send(ints.buffer);
}

function listen() {  // whether the microphone is open now
  const track = live.stream?.getAudioTracks()[0];
  if (track) track.enabled = live.mode !== "type" && !live.muted && (!live.held || Boolean(live.pushed));
}

function silence() {
  live.stream?.getTracks().forEach((track) => track.stop());
  live.context?.close();
  live.stream = live.context = null;
  part(".live-meter").hidden = true;
}

function meter(level) {
  const bar = part(".live-meter");
  const percent = Math.round(Math.max(0, Math.min(100, 100 + (20 * Math.log10(level + 1e-5) * 100) / 60)));
  bar.hidden = live.mode === "type";
  bar.setAttribute("aria-valuenow", String(percent));
  bar.firstElementChild.style.width = `${percent}%`;
}

// ---- what is shown and pressed

function say(who, text) {
  const list = part(".live-said");
  const line = document.createElement("li");
  line.dataset.who = who;
  line.append(Object.assign(document.createElement("b"), { textContent: word(who) }), ` ${text}`);
  list.hidden = false;
  list.append(line);
  while (list.children.length > 100) list.firstElementChild.remove();
  list.scrollTop = list.scrollHeight;
}

function saidLater({ who, text, in_s: inS }) {  // when it is heard
  if (!inS) return say(who, text);
  const timer = setTimeout(() => {
    live.saying.delete(timer);
    say(who, text);
  }, 1000 * inS);
  live.saying.add(timer);
}

function unsaid() {  // what was still to be said is not said any more
  for (const timer of live.saying) clearTimeout(timer);
  live.saying.clear();
}

function note(text) { part(".live-said").dataset.note = text; }

function press(name, on, text) {
  const button = part(`[data-do="${name}"]`);
  button.setAttribute("aria-pressed", String(on));
  if (text) button.textContent = text;
}

function buttons(on) {
  part('[data-do="go"]').textContent = word(on ? "end" : "go");
  element.classList.toggle("is-live", on);
  const spoken = live.mode !== "type";
  for (const name of ["stop", "record"]) part(`[data-do="${name}"]`).hidden = !on;
  part('[data-do="mute"]').hidden = !on || !spoken;
  part(".live-check").hidden = !on || !spoken;
  part('[data-do="push"]').hidden = !on || !spoken || !live.held;
  part(".live-type").hidden = !on || live.mode === "mirror";
  if (!on) part(".live-meter").hidden = true;
}

function tellMode() {  // the mode, who speaks in it, and who answers
  const mode = { type: "mode", mode: live.mode, voice: part(".live-row select").value };
  if (given().chat) {
    mode.part = part("[data-chat-part]").value;
    mode.model = part("[data-chat-model]")?.value ?? "";
  }
  send(mode);
}

function choose(mode) {
  live.mode = mode;
  for (const radio of element.querySelectorAll("[data-mode]")) {
    const chosen = radio.dataset.mode === mode;
    radio.setAttribute("aria-checked", String(chosen));
    radio.tabIndex = chosen ? 0 : -1;
  }
  for (const line of element.querySelectorAll("[data-for]")) line.hidden = line.dataset.for !== mode;
  buttons(Boolean(live.token));
  if (!live.token) return;
  tellMode();
  if (mode !== "type") microphone().then(listen);
  listen();
  part(".live-meter").hidden = mode === "type" || !live.stream;
}

function sayTyped() {
  const box = part(".live-type textarea"), text = box.value.trim();
  if (!text) return;
  const answer = live.mode === "talk";
  if (answer) {
    say("you", text);
    note(word("thinking"));
  }
  send({ type: "say", text, voice: part(".live-row select").value, answer });
  box.value = "";
}

function push(on) {
  live.pushed = on;
  press("push", on);
  listen();
}

element.addEventListener("click", (event) => {
  const mode = event.target.closest("[data-mode]")?.dataset.mode;
  if (mode) return choose(mode);
  switch (event.target.closest("[data-do]")?.dataset.do) {
    case "go":
      return go();
    case "mute":
      live.muted = !live.muted;
      press("mute", live.muted, word(live.muted ? "unmute" : "mute"));
      return listen();
    case "stop":
      return send({ type: "interrupt" });
    case "record":
      return send({ type: "record", on: part('[data-do="record"]').getAttribute("aria-pressed") !== "true" });
    case "say":
      return sayTyped();
    case "held":
      live.held = event.target.checked;
      buttons(true);
      return listen();
  }
});
// On a phone the video stays at the top: what is focused comes to stand below it (its scroll margin in style.css).
element.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && event.target.scrollIntoView({ block: "nearest" }));
element.addEventListener("pointerdown", (event) => event.target.closest('[data-do="push"]') && push(true));
for (const kind of ["pointerup", "pointercancel"]) document.addEventListener(kind, () => live.pushed && push(false));
element.addEventListener("change", (event) => {
  if (live.token && event.target.matches(".live-row select, [data-chat-part], [data-chat-model]")) tellMode();
});
element.addEventListener("keydown", (event) => {
  const radio = event.target.closest("[data-mode]");
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (radio && step) {
    event.preventDefault();
    const all = [...element.querySelectorAll("[data-mode]")];
    const next = all[(all.indexOf(radio) + step + all.length) % all.length];
    next.focus();
    choose(next.dataset.mode);
  } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target.matches(".live-type textarea")) {
    event.preventDefault();
    sayTyped();
  } else if (event.key === " " && event.target.matches('[data-do="push"]') && !event.repeat) {
    event.preventDefault();
    push(true);
  }
});
document.addEventListener("keyup", (event) => event.key === " " && live.pushed && push(false));
document.addEventListener("keydown", (event) => event.key === "Escape" && live.token && send({ type: "interrupt" }));
