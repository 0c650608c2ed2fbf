// The page: asks /v1/select/stream and shows what comes. All text is set as text, never as markup.

const $ = (id) => document.getElementById(id);
const PARTS = [["requirements", "The task needs"], ["environment", "The picture shows"],
  ["capabilities", "What it has for that"], ["decision", "So"]];
const COVERAGE = 0.9;
const LONGEST_SIDE = 1600, KEEP_BYTES = 3_000_000;

const state = { picture: null, fleet: [], own: [], changed: false, asking: null, asked: null, last: null, history: [] };

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}
const percent = (share) => share > 0.995 ? ">\u00a099%" : share < 0.005 ? "<\u00a01%" : `${Math.round(share * 100)}%`;
const listing = (names) => names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
const either = (names) => names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} or ${names.at(-1)}`;
const headers = () => $("key").value ? { authorization: `Bearer ${$("key").value}` } : {};
const pause = (ms, signal) => new Promise((done, fail) => {
  const timer = setTimeout(done, ms);
  signal.addEventListener("abort", () => { clearTimeout(timer); fail(signal.reason); }, { once: true });
});

// The picture

async function smaller(blob) {
  let bitmap;
  try { bitmap = await createImageBitmap(blob); } catch { return blob; }  // the server says what is wrong with it
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && blob.size <= KEEP_BYTES) return blob;
  const canvas = make("canvas", { width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return await new Promise((done) => canvas.toBlob((made) => done(made ?? blob), "image/jpeg", 0.9));
}
async function usePicture(blob, name, sample = null) {
  const made = blob ? await smaller(blob) : null;
  state.picture = made ? { blob: made, url: URL.createObjectURL(made), name } : null;
  showPicture(sample);
}
function showPicture(sample = null) {
  const { picture } = state;
  $("preview").hidden = !picture;
  $("empty").hidden = Boolean(picture);
  $("clear").hidden = !picture;
  $("drop").classList.toggle("full", Boolean(picture));
  if (picture) { $("preview").src = picture.url; $("preview").alt = `The scene: ${picture.name}`; }
  for (const button of $("samples").children) button.setAttribute("aria-pressed", String(button === sample));
}
$("file").addEventListener("change", (event) => { const [file] = event.target.files; if (file) usePicture(file, file.name); event.target.value = ""; });
$("clear").addEventListener("click", () => { usePicture(null); $("file").focus(); });
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) usePicture(file, file.name);
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
  if (file) { event.preventDefault(); usePicture(file, "pasted picture"); }
});

let stream = null;
function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("camera-dialog").close();
}
$("camera").hidden = !navigator.mediaDevices?.getUserMedia;
$("camera").addEventListener("click", async () => {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    fail(`The camera cannot be used (${error.message}). Choose a picture instead.`);
    return;
  }
  $("video").srcObject = stream;
  $("camera-dialog").showModal();
  await $("video").play();
});
$("shoot").addEventListener("click", () => {
  const video = $("video"), canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => { closeCamera(); if (blob) usePicture(blob, "from the camera"); }, "image/jpeg", 0.9);
});
$("camera-close").addEventListener("click", closeCamera);
$("camera-dialog").addEventListener("cancel", closeCamera);

async function loadSamples() {
  const found = await (await get("/v1/samples")).json();
  $("samples").replaceChildren(...found.map((sample) => {
    const button = make("button", { type: "button", className: "sample", title: sample.title, "aria-pressed": "false" },
      make("img", { src: sample.image, alt: sample.title, width: 96, height: 96 }));
    button.addEventListener("click", async () => {
      await usePicture(await (await fetch(sample.image)).blob(), sample.title, button);
      $("task").value = sample.task;
      $("task-error").textContent = "";
    });
    return button;
  }));
}

// Asking

function fail(message) {
  $("failure").textContent = message;
  $("failure").hidden = !message;
  if (message) $("status").textContent = "";
}
async function get(path) {
  const response = await fetch(path, { headers: headers() });
  if (response.status === 401) $("key-row").hidden = false;
  if (!response.ok) throw new Error(await reason(response));
  return response;
}
async function reason(response) {
  try { return (await response.json()).error.message; } catch { return `the server answered ${response.status}`; }
}
function body({ task, picture, fleet }, coverage) {
  const form = new FormData();
  form.append("task", task);
  if (picture) form.append("image", picture.blob, "scene");
  if (fleet) form.append("fleet", JSON.stringify({ robots: fleet }));
  else if (coverage) form.append("coverage", String(COVERAGE));
  return form;
}
async function post(question, signal) {
  let coverage = true;
  for (let attempt = 0; ; attempt++) {
    const response = await fetch("/v1/select/stream", { method: "POST", body: body(question, coverage), headers: headers(), signal });
    if ((response.status === 429 || response.status === 503) && attempt < 4) {
      const seconds = Number(response.headers.get("retry-after")) || 1;
      $("status").textContent = `The server is busy. Asking again in ${seconds} s.`;
      await pause(seconds * 1000, signal);
      continue;
    }
    if (response.status === 401) { $("key-row").hidden = false; $("key").focus(); }
    if (!response.ok) throw new Error(await reason(response));
    const found = await events(response, signal);
    if (found !== "no coverage") return found;
    coverage = false;
  }
}
async function events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", written = {};
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection ended before the answer");
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const lines = text.slice(0, end).split("\n");
      const name = lines.find((line) => line.startsWith("event: "))?.slice(7);
      const data = JSON.parse(lines.find((line) => line.startsWith("data: ")).slice(6));
      if (name === "result") return data;
      if (name === "error") {
        if (data.error.message.startsWith("no coverage can be promised")) return "no coverage";
        throw new Error(data.error.message);
      }
      written[data.part] = data.text;
      showWriting(written, data.part);
    }
  }
}
function question() {
  const fleet = state.changed ? state.fleet.filter((robot) => robot.send).map(({ send, ...robot }) => robot) : null;
  return { task: $("task").value.trim(), picture: state.picture, fleet };
}
async function ask(asked) {
  $("task-error").textContent = "";
  if (!asked.task) {
    $("task-error").textContent = "Say in a sentence what is to be done.";
    $("task").focus();
    return;
  }
  if (asked.fleet && !asked.fleet.length) { $("fleet-error").textContent = "Leave at least one robot in the fleet."; return; }
  $("fleet-error").textContent = "";
  state.asking?.abort();
  const control = new AbortController();
  state.asking = control;
  state.asked = asked;
  fail("");
  $("status").textContent = "Reading the task …";
  $("stop").hidden = false;
  $("answer").setAttribute("aria-busy", "true");
  const started = performance.now();
  try {
    const answer = await post(asked, control.signal);
    state.last = { ...asked, answer, ms: performance.now() - started };
    show(state.last);
    remember(state.last);
    if (innerWidth < 864) $("answer").scrollIntoView({ behavior: "smooth", block: "start" });
  } catch (error) {
    if (state.asking !== control) return;
    if (control.signal.aborted) $("status").textContent = "Stopped.";
    else fail(`No answer: ${error.message}`);
    if (state.last) show(state.last, false); else $("result").hidden = true;
  } finally {
    if (state.asking === control) {
      state.asking = null;
      $("stop").hidden = true;
      $("answer").removeAttribute("aria-busy");
    }
  }
}
$("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(question()); });
$("stop").addEventListener("click", () => { state.asking?.abort(); $("send").focus(); });
$("task").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(question()); });
$("task").addEventListener("input", () => { $("task-error").textContent = ""; });
$("key").addEventListener("change", start);

// The answer

function showWriting(written, part) {
  if (part === "selection" || part === "plan" || part === "decision") $("status").textContent = part === "plan" ? "Writing the plan …" : "Choosing …";
  if ($("result").hidden) {
    $("result").hidden = false;
    for (const id of ["verdict", "ranking", "plan"]) $(id).replaceChildren();
    $("verdict").hidden = true;
    $("timing").textContent = "";
  }
  const texts = PARTS.map(([name]) => written[name] ?? "");
  showReasoning(texts, PARTS.findIndex(([name]) => name === part));
}
function showReasoning(texts, writing = -1) {
  $("reasoning").replaceChildren(...PARTS.flatMap(([, label], index) => [
    make("dt", {}, label),
    make("dd", { className: index === writing ? "writing" : "" }, texts[index] || (writing < 0 ? "–" : "")),
  ]));
}
function show({ answer, fleet, ms }, announce = true) {
  $("result").hidden = false;
  $("verdict").hidden = false;
  const best = answer.robots[0], unsure = answer.ask_a_person === true;
  const others = answer.selected.slice(1);
  const [kind, tag] = unsure ? ["unsure", "Ask a person"] : answer.prediction_set ? ["", "Send"] : ["open", "Most likely"];
  const detail = unsure ? `One of these is right in 90% of such tasks: ${either(answer.prediction_set)}.`
    : `${percent(best.confidence)} sure that it should lead${others.length ? `, together with ${listing(others)}` : ""}.`;
  const note = !answer.prediction_set && fleet ? " How often this holds was not measured for your own fleet." : "";
  $("verdict").className = `verdict ${kind}`;
  $("verdict").replaceChildren(make("span", { className: "tag" }, tag),
    make("strong", {}, unsure ? `${either(answer.prediction_set)}?` : listing([answer.primary])), make("span", {}, detail + note));
  $("ranking").replaceChildren(...answer.robots.map((robot, index) => {
    const fill = make("i");
    requestAnimationFrame(() => { fill.style.width = `${Math.max(1, robot.confidence * 100)}%`; });
    const mark = robot.selected ? make("span", { className: "mark" }, index === 0 ? "leads" : "goes too") : null;
    return make("li", { className: robot.selected ? "sent" : "" },
      make("span", { className: "name" }, robot.robot, mark), make("span", { className: "share" }, percent(robot.confidence)),
      make("span", { className: "bar", "aria-hidden": "true" }, fill));
  }));
  showReasoning(PARTS.map((_, index) => answer.reasoning[index] ?? ""));
  showPlan(answer.plan);
  $("timing").textContent = `${Math.round(ms)} ms`;
  for (const card of $("fleet").children) card.classList.toggle("lead", card.dataset.name === answer.primary);
  if (announce) $("status").textContent = unsure ? `Not sure enough: ${either(answer.prediction_set)}. Ask a person.` : `Done: ${answer.primary}, ${percent(best.confidence)}.`;
}

function lines(text, width, letter = 7.3) {
  const limit = Math.max(8, Math.floor(width / letter)), made = [];
  for (const word of text.split(/\s+/)) {
    const pieces = word.match(new RegExp(`.{1,${limit}}`, "gu")) ?? [""];
    for (const piece of pieces) {
      const last = made.at(-1);
      if (last !== undefined && last.length + piece.length < limit) made[made.length - 1] = `${last} ${piece}`;
      else made.push(piece);
    }
  }
  return made.length > 5 ? [...made.slice(0, 4), `${made[4]} …`] : made;
}
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function showPlan(plan) {
  const width = Math.max(260, $("plan").clientWidth || 520), gap = 14, down = 34;
  const level = {};
  for (const phase of plan) level[phase.step] = 1 + Math.max(-1, ...phase.depends_on.map((step) => level[step]));
  const rows = [];
  for (const phase of plan) (rows[level[phase.step]] ??= []).push(phase);
  // Where phases side by side would be too narrow, all stand in one column and what follows what runs along its left.
  const narrow = rows.some((row) => (width - gap * (row.length - 1)) / row.length < 165);
  const place = {}, boxes = [], edges = [];
  let top = 1;
  for (const row of narrow ? plan.map((phase) => [phase]) : rows) {
    const indent = narrow ? 26 : 1;
    const box = Math.min(width - indent - 1, 460, (width - 2 - gap * (row.length - 1)) / row.length);
    const texts = row.map((phase) => [lines(phase.robot, box - 50, 8.6), lines(phase.subtask, box - 28)]);
    const high = Math.max(...texts.map(([who, what]) => 20 + 19 * (who.length + what.length) + 8));
    const left = narrow ? indent : (width - box * row.length - gap * (row.length - 1)) / 2;
    row.forEach((phase, index) => {
      const x = left + index * (box + gap), [who, what] = texts[index];
      place[phase.step] = { x: x + box / 2, left: x, top, bottom: top + high };
      const text = [...who.map((line, number) => svg("text", { x: x + 42, y: top + 28 + 19 * number, class: "who" }, line)),
        ...what.map((line, number) => svg("text", { x: x + 14, y: top + 33 + 19 * (who.length + number) }, line))];
      boxes.push(svg("rect", { x, y: top, width: box, height: high, rx: 10 }), svg("circle", { cx: x + 25, cy: top + 23, r: 11 }),
        svg("text", { x: x + 25, y: top + 27.5, class: "number" }, String(phase.step)), ...text);
      for (const step of phase.depends_on) {
        const from = place[step], to = place[phase.step], half = (to.top - from.bottom) / 2;
        const d = narrow ? `M${from.left} ${from.top + 23}H14Q8 ${from.top + 23} 8 ${from.top + 29}V${to.top + 17}Q8 ${to.top + 23} 14 ${to.top + 23}H${to.left - 5}`
          : `M${from.x} ${from.bottom}C${from.x} ${from.bottom + half} ${to.x} ${to.top - half} ${to.x} ${to.top - 5}`;
        edges.push(svg("path", { class: "edge", "marker-end": "url(#arrow)", d }));
      }
    });
    top += high + (narrow ? gap : down);
  }
  top += narrow ? down - gap : 0;
  const words = plan.map((phase) => `${phase.step}. ${phase.robot}: ${phase.subtask}${phase.depends_on.length ? `, after ${listing(phase.depends_on.map(String))}` : ""}`).join("; ");
  const arrow = svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 5, refY: 4, markerWidth: 6, markerHeight: 6, orient: "auto" },
    svg("path", { d: "M0 0L8 4L0 8z" }));
  $("plan").replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${top - down + 2}`, role: "img", "aria-label": `Plan: ${words}` }, svg("defs", {}, arrow), ...edges, ...boxes));
}
let resized = 0;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => { if (state.last && !$("result").hidden) showPlan(state.last.answer.plan); }, 100); });

async function say(button, work) {
  const label = button.textContent;
  try { await work(); button.textContent = "Copied"; $("status").textContent = "Copied."; } catch { button.textContent = "Not allowed to copy"; }
  setTimeout(() => { button.textContent = label; }, 1500);
}
$("copy").addEventListener("click", (event) => say(event.target, () => navigator.clipboard.writeText(JSON.stringify(state.last.answer, null, 2))));
$("tree").addEventListener("click", async () => {
  if (!state.last) return;
  try {
    const response = await fetch("/v1/select?plan_format=behaviortree", { method: "POST", body: body(state.last, false), headers: headers() });
    if (!response.ok) throw new Error(await reason(response));
    const link = make("a", { href: URL.createObjectURL(await response.blob()), download: "plan.xml" });
    link.click();
    URL.revokeObjectURL(link.href);
  } catch (error) { fail(`No behaviour tree: ${error.message}`); }
});

// The fleet

const phrases = (text) => text.split(/[,\n]/).map((each) => each.trim()).filter(Boolean);
let waiting = 0;
function fleetChanged() {
  state.changed = JSON.stringify(state.fleet) !== JSON.stringify(state.own);
  $("reset").hidden = !state.changed;
  clearTimeout(waiting);
  if (state.asked) waiting = setTimeout(() => ask({ ...state.asked, fleet: question().fleet }), 350);
}
function card(robot) {
  const chips = make("ul", { className: "chips", "aria-label": "Capabilities" });
  const name = make("span", {});
  const box = make("input", { type: "checkbox", checked: robot.send, onchange: () => { robot.send = box.checked; draw(); fleetChanged(); } });
  const node = make("li", { className: "robot" }, make("label", { className: "send" }, box, name), chips);
  function draw() {
    name.textContent = robot.name;
    node.dataset.name = robot.name;
    node.classList.toggle("out", !robot.send);
    chips.replaceChildren(...robot.capabilities.map((each) => make("li", {}, each)));
  }
  const id = `robot-${crypto.randomUUID?.() ?? Math.random()}`;
  function field(key, label, rows) {
    const list = Array.isArray(robot[key]);
    const input = make(rows ? "textarea" : "input", { id: `${id}-${key}`, value: list ? robot[key].join(", ") : robot[key] });
    if (rows) input.rows = rows; else input.type = "text";
    input.addEventListener("input", () => { robot[key] = list ? phrases(input.value) : input.value.trim(); draw(); fleetChanged(); });
    return [make("label", { className: "field", htmlFor: input.id }, label), input];
  }
  const remove = make("button", { type: "button", className: "quiet", onclick: () => {
    state.fleet = state.fleet.filter((each) => each !== robot);
    drawFleet(); fleetChanged(); $("add").focus();
  } }, "Remove this robot");
  node.append(make("details", {}, make("summary", {}, "Edit"), ...field("name", "Name"), ...field("capabilities", "Can do", 3),
    ...field("limitations", "Cannot do, suffers from", 2), ...field("environments", "Works in", 2), remove));
  draw();
  return node;
}
function drawFleet() {
  $("fleet").replaceChildren(...state.fleet.map(card));
  if (state.last) for (const node of $("fleet").children) node.classList.toggle("lead", node.dataset.name === state.last.answer.primary);
}
$("add").addEventListener("click", () => {
  const taken = new Set(state.fleet.map((robot) => robot.name));
  let number = 1;
  while (taken.has(`New robot ${number}`)) number++;
  state.fleet.push({ name: `New robot ${number}`, capabilities: ["inspection"], limitations: [], environments: ["indoor"], send: true });
  drawFleet();
  const details = $("fleet").lastElementChild.querySelector("details");
  details.open = true;
  details.querySelector("input").select();
  details.querySelector("input").focus();
  fleetChanged();
});
$("reset").addEventListener("click", () => { state.fleet = structuredClone(state.own); drawFleet(); fleetChanged(); $("add").focus(); });
async function loadFleet() {
  const { robots } = await (await get("/v1/fleet")).json();
  state.own = robots.map(({ name, capabilities, limitations, environments, payload_kg }) => ({ name, capabilities, limitations, environments, ...(payload_kg == null ? {} : { payload_kg }), send: true }));
  state.fleet = structuredClone(state.own);
  drawFleet();
}

// What was asked before

function remember(entry) {
  state.history = [entry, ...state.history].slice(0, 12);
  $("no-history").hidden = true;
  $("history").replaceChildren(...state.history.map((each) => make("li", {}, make("button", { type: "button", onclick: () => recall(each) },
    each.picture ? make("img", { src: each.picture.url, alt: "" }) : make("i", { className: "none" }),
    make("span", {}, make("b", {}, `${each.answer.ask_a_person ? "Ask a person" : each.answer.primary}, ${percent(each.answer.robots[0].confidence)}`), make("small", {}, each.task))))));
}
function recall(entry) {
  state.asking?.abort();
  state.last = entry;
  state.asked = entry;
  state.picture = entry.picture;
  $("task").value = entry.task;
  showPicture();
  fail("");
  show(entry);
  $("answer").focus();
}

// Colours, start

const THEMES = ["system", "light", "dark"];
function theme(name) {
  if (name === "system") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name;
  $("theme").textContent = `Colours: ${name}`;
  try { localStorage.setItem("embervlm-theme", name); } catch { /* not kept */ }
}
let chosen = "system";
try { chosen = THEMES.includes(localStorage.getItem("embervlm-theme")) ? localStorage.getItem("embervlm-theme") : "system"; } catch { /* not kept */ }
theme(chosen);
$("theme").addEventListener("click", () => { chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length]; theme(chosen); });

async function start() {
  try { await loadFleet(); await loadSamples(); fail(""); } catch (error) { fail(`The server cannot be asked: ${error.message}`); }
}
start();
