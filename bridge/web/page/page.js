// The status page of the OSCAR Event Bridge: asks the bridge every two seconds, and draws what it answers.
//
// Keys, subjects and answers come from strangers: all is shown by `draw`, which makes no markup of them.

import { draw, h } from "./drawing.js";
import { plot } from "./plot.js";
import { clock, duration, hour, listed, many, number, oldest, rate } from "./words.js";

const POLL_MS = 2000;
const ANSWER_MS = 8000;
const LONG_MS = 65_000; // commands and searches: the bridge takes a minute at most
const SILENCE_MS = 4000; // without an answer, from which on that is told
const IDLE = 15; // times as long between two questions while nobody looks
const HISTORY_MS = 60_000;
const SAID_MS = 12_000;
const ROWS = 25; // of one page of a list
const SHOWN = 6; // parts that one card names; of more it says how many
const MANY = 12; // services, of which those that are well take one line in the flow
const FULL = 0.8; // of the store's budget; from there on it is told

const byId = (id) => document.getElementById(id);
const option = (value, text) => h("option", { key: value, value }, text);
const unseen = (text) => h("span", { class: "unseen" }, text);
const button = (text, onclick, more) => h("button", { type: "button", key: text, onclick, ...more }, text);

/** Tell a person what happened, aloud too. */
function say(text) {
  byId("said").textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (byId("said").textContent = ""), SAID_MS);
}

// --- Asking

const state = {
  token: sessionStorage.getItem("token"),
  status: null,
  turn: 0, // of the questions for the status
  askedAt: 0, // as Date.now() counts
  answeredAt: 0,
  fault: null, // why the last question had no answer
  troubles: [],
  told: null, // of the troubles, those that were told: by key, with their texts
  part: null, // [kind, key] of what the dialog shows
  history: null,
  historyFault: null,
  historyTurn: 0, // of the questions for the history
};

class WrongToken extends Error {}

/** Return the bridge's answer to a question, or to a command, which is posted. Raises WrongToken. */
async function ask(path, { command, within = ANSWER_MS } = {}) {
  const answer = await fetch(path, {
    method: command ? "POST" : "GET",
    headers: { Authorization: `Bearer ${state.token}`, "Content-Type": "application/json" },
    body: command && JSON.stringify(command),
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
    signal: AbortSignal.timeout(within),
  });
  const document = await answer.json().catch(() => ({}));
  if (answer.status === 401) throw new WrongToken(document.error);
  if (!answer.ok) throw new Error(document.error ?? `status ${answer.status}`);
  return document;
}

/** Say why `ask` failed. */
function reason(error) {
  if (error.name === "TimeoutError") return "it gives no answer";
  return error instanceof TypeError ? "no connection to it" : error.message;
}

/** Have `command` carried out, and tell of it by `done`, of its answer. Returns whether it was. */
async function order(command, done) {
  try {
    say(done(await ask("api/commands", { command, within: LONG_MS })));
  } catch (error) {
    if (error instanceof WrongToken) leave(true);
    else say(`Not done: ${reason(error)}`);
    return false;
  }
  await refresh();
  return true;
}

async function refresh() {
  if (!state.token) return;
  const turn = (state.turn += 1);
  state.askedAt = Date.now();
  try {
    const status = await ask("api/status");
    if (turn < state.turn || !state.token) return; // one that was asked later has newer numbers
    Object.assign(state, { status, answeredAt: Date.now(), fault: null });
    sessionStorage.setItem("token", state.token);
  } catch (error) {
    if (error instanceof WrongToken) return leave(true);
    state.fault = reason(error);
  }
  render();
  if (!state.fault) lists.forEach((list) => list.follow());
}

async function refreshHistory() {
  if (!state.token) return;
  const turn = (state.historyTurn += 1);
  let [history, historyFault] = [state.history, null];
  try {
    history = await ask(`api/history?hours=${byId("hours-time").value}`);
  } catch (error) {
    historyFault = reason(error);
  }
  if (turn < state.historyTurn) return; // one that was asked later is of the hours that are chosen now
  Object.assign(state, { history, historyFault });
  render();
}

/** Begin anew without the token: nothing that it showed stays, and no answer that is under way comes back. */
function leave(isRefused) {
  state.token = null;
  sessionStorage.clear();
  if (isRefused) sessionStorage.setItem("refused", "yes");
  location.reload();
}

const partOf = (kind, key) => state.status[`${kind}s`]?.find((each) => each.key === key);
const rowsOf = (kind, key) => state.status.limits.filter((row) => row.kind === kind && row.key === key);
const until = (row) => `Since ${clock(row.since)}, until ${row.until ? clock(row.until) : "a person ends it"}`;

// --- What is wrong

const ADVICE = {
  source: "The bridge connects again by itself and goes on where it was. Until then events wait upstream.",
  service:
    "Its events wait, and go on by themselves once it takes them: mend the service or its credentials. There is " +
    "nothing to replay.",
  cluster:
    "Mend its credentials, or what issues its tokens: the bridge asks again by itself. A token that it has still " +
    "is used until it expires; then events wait.",
  store: "Make room on the disk, raise store.max_bytes, or discard dead letters. Until then events wait upstream.",
  dead: "Mend what made them fail, then replay them: each becomes a job.",
};

/** Return all that a person should know of, the worst first. */
function troubles() {
  const { problems, services, clusters, limits, store } = state.status;
  const found = [];
  const same = Map.groupBy(problems, (each) => `${each.part.split(" ")[0]} ${each.reason}`);
  for (const group of same.values()) {
    const [kind] = group[0].part.split(" ");
    const parts = group.map((each) => partOf(kind, each.part.slice(kind.length + 1))).filter(Boolean);
    const name = group.length > 1 ? many(group.length, kind) : group[0].part;
    const since = parts.length === 1 && standstill(kind, parts[0]);
    found.push({ level: "bad", name, text: group[0].reason, since, advice: ADVICE[kind], kind, parts });
  }
  for (const one of clusters) {
    if (one.credential_ok !== false) continue; // null: none was asked for yet, or it needs none
    const part = { name: `cluster ${one.key}`, kind: "cluster", parts: [one] };
    found.push({ level: "warn", ...part, text: "no access token could be had for it", advice: ADVICE.cluster });
  }
  if (store.used_bytes > FULL * store.limit_bytes) {
    const text = `${Math.floor((100 * store.used_bytes) / store.limit_bytes)} % of its bytes are used`;
    found.push({ level: "warn", name: "store", text, advice: ADVICE.store, parts: [] });
  }
  if (dead.count) {
    const failing = services.filter((one) => one.dead_letters).sort((a, b) => b.dead_letters - a.dead_letters);
    const counts = failing.slice(0, SHOWN).map((one) => `${one.key} ${number(one.dead_letters)}`);
    const rises = failing.map((one) => lastTime("services", one.key, "dead_letters", rose)).filter(Boolean);
    const since = rises.length > 0 && `The last one came at about ${hour(Math.max(...rises))}.`;
    const name = many(dead.count, "dead letter");
    found.push({ level: "warn", name, text: listed(counts), since, advice: ADVICE.dead, parts: [], failing });
  }
  for (const row of limits.filter((each) => each.since !== null)) {
    const paused = row.name === "paused";
    const text = `${paused ? "is paused" : `has ${row.name} ${row.in_force}`} by a person's order`;
    const part = { name: `${row.kind} ${row.key}`, kind: row.kind, parts: [partOf(row.kind, row.key)] };
    found.push({ level: "held", ...part, text, since: `${until(row)}.`, paused });
  }
  return found;
}

/** Say since when a source or a service stands still, as far as is known. */
function standstill(kind, one) {
  const name = { source: "received", service: "accepted" }[kind];
  const last = name && lastTime(`${kind}s`, one.key, name, (values, at) => values[at] > 0);
  const parked = one.parked > 0 && `${many(one.parked, "event")} parked, ${oldest(one.parked_oldest_seconds)}.`;
  return [last && `Nothing ${name} since about ${hour(last)}.`, parked].filter(Boolean).join(" ");
}

const rose = (levels, at) => at > 0 && levels[at] > levels[at - 1];

/** Return the end of the last step of the last hours for which `holds`; undefined where none is known. */
function lastTime(room, key, name, holds) {
  const values = state.history?.[room][key]?.[name] ?? [];
  for (let at = values.length - 1; at >= 0; at--)
    if (holds(values, at)) return state.history.end - (values.length - 1 - at) * state.history.step;
}

function drawTroubles(found) {
  const calm = h("p", { class: "card ok" }, "Nothing is wrong.");
  draw(byId("problems-list"), found.length ? h("ul", { class: "cards" }, found.map(troubleCard)) : calm);
}

function troubleCard({ level, name, text, since, advice, kind, parts, failing, paused }) {
  const [one] = parts.length === 1 ? parts : [{}];
  return h("li", { key: `${level} ${failing ? "" : name}`, class: `card ${level}` }, [
    h("p", {}, h("strong", {}, name), ` ${text}`),
    (since || advice) && h("p", { class: "hint" }, since && h("span", { class: "since" }, `${since} `), advice),
    h("p", { key: "do", class: "row" }, [
      parts.slice(0, SHOWN).map((each) => button(`Show ${each.key}`, () => show(kind, each.key))),
      parts.length > SHOWN && `and ${number(parts.length - SHOWN)} more`,
      failing?.slice(0, SHOWN).map((each) => button(`Those of ${each.key}`, () => dead.choose(each.key))),
      failing && button("All dead letters", () => dead.choose("")),
      one.dead_letters > 0 && button("Its dead letters", () => dead.choose(one.key)),
      one.parked > 0 && button("What is parked", () => parked.choose(one.key)),
      paused && button("Resume", () => resume(kind, one.key)),
    ]),
  ]);
}

/** Tell aloud what has come and what is over since the last time. */
function tell(found) {
  const entry = ({ level, name, text, failing }) => [`${level} ${failing ? "" : name}`, `${name}: ${text}`];
  const texts = new Map(found.map(entry));
  if (state.told !== null) {
    const come = [...texts].filter(([key]) => !state.told.has(key)).map(([, text]) => `New: ${text}.`);
    const over = [...state.told].filter(([key]) => !texts.has(key)).map(([, text]) => `Over: ${text}.`);
    if (come.length || over.length) say([...come, ...over].join(" "));
  }
  state.told = texts;
}

// --- The flow

/** Tell of each kind of part how one is: its level, the word for it, and lines about it, some with a level. */
const LOOKS = {
  source(one) {
    const level = one.paused ? "held" : one.problems.length ? "bad" : one.up ? "ok" : "warn";
    const word = { held: "paused", bad: one.up ? "in trouble" : "down", warn: "not connected" }[level];
    const lines = [
      listed([`${rate(one.rate)} received`, one.lag > 0 && `${number(one.lag)} wait upstream`]),
      one.in_flight > 0 && `${number(one.in_flight)} in hand, ${oldest(one.oldest_seconds)}`,
    ];
    return { level, word, lines };
  },
  service(one) {
    const bad = one.problems.length > 0 || !one.open;
    const level = one.paused ? "held" : bad ? "bad" : one.dead_letters ? "warn" : "ok";
    const word = one.paused ? "paused" : !one.open ? "shut" : bad && "in trouble";
    const set = rowsOf("service", one.key).filter((row) => row.name === "rate" && row.in_force !== "none");
    const lines = [
      `${rate(one.rate)} accepted · ${one.in_flight} of ${one.limit} under way`,
      one.why && { text: one.why, level: bad || one.paused ? level : "" },
      one.queued > 0 && `${number(one.queued)} of ${number(one.queue)} queued`,
      one.parked > 0 && `${number(one.parked)} parked, ${oldest(one.parked_oldest_seconds)}`,
      one.drain_seconds > 0 && `empty in about ${duration(one.drain_seconds)}`,
      one.windows > 0 && many(one.windows, "window collects", "windows collect"),
      one.active_jobs !== null && many(one.active_jobs, "active job"),
      set.length > 0 && `at most ${set[0].in_force}`,
      one.dead_letters > 0 && { text: many(one.dead_letters, "dead letter"), level: "warn" },
    ];
    return { level, word, lines, fill: one.queued / one.queue };
  },
  cluster(one) {
    const found = rowsOf("cluster", one.key).some((row) => row.found !== null);
    const lines = [one.endpoint, `${one.limit} at once${found ? ", as found" : ""}`];
    return { level: one.paused ? "held" : "ok", word: one.paused && "paused", lines };
  },
};

function drawFlow() {
  const { sources, routes, services, clusters } = state.status;
  byId("picture").classList.toggle("many", services.length > MANY);
  const column = (title, name, nodes) =>
    h("div", { class: `column ${name}` }, h("h3", {}, title), h("ul", {}, nodes));
  draw(byId("picture"), [
    h("svg", { "aria-hidden": "true" }),
    column("Sources", "sources", sources.map((one) => node("source", one, one.type))),
    column("Routes", "routes", routes.map(routeNode)),
    column("Services", "services", services.map((one) => node("service", one, one.mode))),
    column("Clusters", "clusters", clusters.map((one) => node("cluster", one, ""))),
  ]);
  drawEdges();
}

function node(kind, one, type) {
  const { level, word, lines, fill } = LOOKS[kind](one);
  const name = { type: "button", class: `node ${kind} ${level}`, "data-node": `${kind} ${one.key}` };
  const line = (each, at) => each && h("span", { key: at, class: `line ${each.level ?? ""}` }, each.text ?? each);
  return h("li", { key: one.key }, [
    h("button", { ...name, onclick: () => show(kind, one.key) }, [
      h("span", { class: "name" }, one.key),
      h("small", {}, type),
      word && h("span", { key: "word", class: "badge" }, word),
      lines.map(line),
      fill > 0 && h("progress", { value: fill, "aria-hidden": "true" }),
    ]),
  ]);
}

const routeNode = (route, at) =>
  h("li", { key: at, class: "route", "data-node": `route ${at}`, title: route.when }, [
    route.when ? h("code", {}, route.when) : "every event",
    route.merges && h("span", { class: "badge" }, "merges"),
    unseen(` of ${route.from} to ${route.to.join(", ")}`),
  ]);

/** Draw lines between what belongs together. A column that the window has no place for is passed by. */
function drawEdges() {
  const { sources, routes, services } = state.status;
  const picture = byId("picture");
  const nodes = new Map(Array.from(picture.querySelectorAll("[data-node]"), (each) => [each.dataset.node, each]));
  const base = picture.getBoundingClientRect();
  const boxes = new Map(Array.from(nodes, ([name, each]) => [name, each.getBoundingClientRect()]));
  const edges = new Map();
  const join = (from, to, stuck, perSecond) => {
    const [a, b] = [boxes.get(from), boxes.get(to)];
    if (!a?.width || !b?.width) return;
    const [x1, x2] = [a.right - base.left, b.left - base.left];
    const [y1, y2] = [a, b].map((box) => box.top + box.height / 2 - base.top);
    const middle = (x1 + x2) / 2;
    edges.set(`${from} → ${to}`, {
      class: stuck ? "stuck" : perSecond > 0 ? "moving" : "still",
      d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`,
      "stroke-width": (1.5 + Math.log10(1 + perSecond)).toFixed(1),
    });
  };
  const isStuck = (one) => one.paused || !one.open;
  routes.forEach((route, at) => {
    const source = sources.find((one) => one.key === route.from);
    const from = boxes.get(`route ${at}`).width ? `route ${at}` : `source ${route.from}`;
    join(`source ${route.from}`, `route ${at}`, source.paused || !source.up, source.rate);
    for (const one of services.filter((each) => route.to.includes(each.key)))
      join(from, `service ${one.key}`, isStuck(one), one.rate);
  });
  for (const one of services) join(`service ${one.key}`, `cluster ${one.cluster}`, isStuck(one), one.rate);
  const svg = picture.querySelector("svg");
  svg.setAttribute("viewBox", `0 0 ${base.width} ${base.height}`);
  draw(svg, Array.from(edges, ([key, attributes]) => h("path", { key, ...attributes })));
}

// --- One part: its numbers, its limits, its pause

function show(kind, key) {
  state.part = [kind, key];
  drawPart();
  openDialog("part");
}

function drawPart() {
  if (state.part === null) return;
  const [kind, key] = state.part;
  const one = partOf(kind, key);
  if (one === undefined) return byId("part").close(); // the bridge has begun anew, with another configuration
  const { key: _key, problems = [], ...about } = one;
  const { level, word } = LOOKS[kind](one);
  const rows = rowsOf(kind, key).filter((row) => row.name !== "paused");
  const badge = word && h("span", { class: `badge ${level}` }, word);
  draw(byId("part"), [
    h("h2", { id: "part-title", tabindex: -1 }, `${kind} ${key}`, badge),
    problems.map((text, at) => h("p", { key: at, class: "card bad" }, text)),
    facts(about),
    rows.length > 0 && h("form", { key: "limits", class: "box", onsubmit: setLimits }, limitFields(rows)),
    h("form", { key: "pause", class: "box", onsubmit: pause }, pauseFields(kind, one)),
    h("p", { key: "end", class: "row" }, [
      one.dead_letters > 0 && button("Its dead letters", () => dead.choose(key)),
      one.parked > 0 && button("What is parked", () => parked.choose(key)),
      button("Close", () => byId("part").close()),
    ]),
  ]);
}

/** Describe all that the bridge tells of something, in its words. */
function facts(one) {
  const known = Object.entries(one).filter(([name, value]) => fact(name, value));
  const line = ([name, value]) => h("div", { key: name }, h("dt", {}, worded(name)), h("dd", {}, fact(name, value)));
  return h("dl", {}, known.map(line));
}

const worded = (name) => name.replace(/_seconds$/, "").replaceAll("_", " ");

function fact(name, value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (value === null || typeof value === "string") return value;
  if (typeof value === "object") return listed(Object.entries(value).map(([key, each]) => `${worded(key)} ${each}`));
  if (name === "rate") return rate(value);
  if (name.endsWith("_seconds")) return value > 0 && duration(value);
  if (/^(first|last)_attempt$|^kept_at$/.test(name)) return clock(value);
  return name === "number" ? String(value) : number(value);
}

const howLong = () =>
  h("label", {}, "How long ", h("select", { name: "seconds" }, [
    option("", "until a person ends it"),
    [900, 3600, 28_800, 86_400].map((seconds) => option(seconds, `for ${duration(seconds)}`)),
  ]));

function limitFields(rows) {
  const [{ kind, key }] = rows;
  const told = () => `${kind} ${key} has the limits of the configuration.`;
  const reset = () => order({ do: "limits", kind, key, reset: true }, told);
  const field = (row) =>
    h("label", { key: row.name, class: "limit" }, [
      h("span", {}, row.name),
      h("input", { name: row.name, value: row.in_force, autocomplete: "off", spellcheck: "false", size: 8 }),
      h("small", {}, listed([
        row.found !== null && `${row.found} as found`,
        row.since !== null && `${until(row)} (configured: ${row.configured})`,
      ])),
    ]);
  return [
    h("h3", {}, "Limits"),
    rows.map(field),
    h("p", { class: "row" }, [
      howLong(),
      h("button", { key: "set" }, "Set limits"),
      rows.some((row) => row.since !== null) && button("As configured", reset),
    ]),
  ];
}

async function setLimits(event) {
  event.preventDefault();
  const form = event.currentTarget;
  const [kind, key] = state.part;
  const given = new FormData(form);
  const seconds = Number(given.get("seconds")) || null;
  const changed = rowsOf(kind, key)
    .map((row) => [row.name, given.get(row.name)?.trim(), row.in_force])
    .filter(([, value, old]) => value && value !== old);
  if (!changed.length) return say("Nothing to set: these are in force.");
  const limits = Object.fromEntries(changed);
  const told = listed(changed.map(([name, value]) => `${name} is ${value}`));
  if (await order({ do: "limits", kind, key, limits, seconds }, () => `${kind} ${key}: ${told}`)) form.reset();
}

function pauseFields(kind, one) {
  const row = rowsOf(kind, one.key).find((each) => each.name === "paused" && each.since !== null);
  if (row)
    return [
      h("h3", {}, "Paused"),
      h("p", { key: "since", class: "hint" }, `${until(row)}.`),
      h("p", { key: "do", class: "row" }, button("Resume", () => resume(kind, one.key))),
    ];
  return [
    h("h3", {}, "Pause"),
    h("p", { key: "do", class: "row" }, howLong(), h("button", { key: "pause" }, "Pause")),
    h("p", { key: "meaning", class: "hint" }, "Nothing is lost: its events wait."),
  ];
}

function pause(event) {
  event.preventDefault();
  const [kind, key] = state.part;
  const seconds = Number(new FormData(event.currentTarget).get("seconds")) || null;
  const time = seconds ? `for ${duration(seconds)}` : "until it is resumed";
  order({ do: "pause", kind, key, seconds }, () => `${kind} ${key} is paused ${time}.`);
}

const resume = (kind, key) => order({ do: "resume", kind, key }, () => `${kind} ${key} is not paused.`);

// --- Lists: dead letters, and what is parked

class List {
  #filter = {};
  #begins = []; // of the pages after the first, to the one shown
  #page = null;
  #fault = null;
  #chosen = new Set();
  #counted = null; // how many there were in all when the page was read
  #readAt = 0; // as Date.now() counts

  /** `count` is the store's name of how many there are, `cells` makes those of one row. */
  constructor(id, { path, count, columns, cells, look, actions }) {
    Object.assign(this, { id, path, countedAs: count, columns, cells, look, actions });
    byId(`${id}-filter`).onsubmit = (event) => {
      event.preventDefault();
      this.#filter = Object.fromEntries(new FormData(event.currentTarget));
      this.#turn();
    };
  }

  /** Return how many there are in all, those of services that are not configured any more too. */
  get count() {
    return state.status.store[this.countedAs];
  }

  /** Read the list again when their number has changed, unless a person is at it, or at a dialog. */
  follow() {
    if (document.querySelector("dialog[open]")) return;
    const used = this.#begins.length || this.#chosen.size || byId(this.id).matches(":hover, :focus-within");
    if (this.#page === null || (this.count !== this.#counted && !used)) this.#read();
  }

  /** Show those of one service, or of all. */
  choose(service) {
    document.querySelectorAll("dialog[open]").forEach((dialog) => dialog.close());
    const form = byId(`${this.id}-filter`);
    form.reset();
    form.elements.service.value = service;
    this.#filter = { service };
    byId(this.id).scrollIntoView();
    byId(this.id).focus({ preventScroll: true });
    this.#turn();
  }

  /** Show the page to which these lead. */
  #turn(begins = []) {
    this.#begins = begins;
    this.#chosen.clear();
    return this.#read();
  }

  async #read() {
    const filter = this.#filter;
    const query = new URLSearchParams({ ...filter, before: this.#begins.at(-1) ?? "", limit: ROWS });
    const readAt = (this.#readAt = Date.now());
    this.#counted = this.count;
    let [page, fault] = [null, null];
    try {
      page = { ...(await ask(`${this.path}?${query}`)), filter };
    } catch (error) {
      if (error instanceof WrongToken) return leave(true);
      fault = reason(error);
    }
    if (readAt !== this.#readAt) return; // another page was asked for since
    this.#page = page ?? this.#page;
    this.#fault = fault;
    this.draw();
  }

  /** Say which are meant: these, or, without `numbers`, all for the filter that were there when it was read. */
  meant(numbers) {
    if (numbers) return { numbers };
    const { filter, now } = this.#page;
    return { service: filter.service || null, cause: filter.cause || null, kept_before: now };
  }

  /** Have `command` carried out with those `meant`. */
  async carryOut(command, meant, done) {
    const left = ([why, count]) => ` ${number(count)} left: ${why}.`;
    const told = ({ changed, refused }) =>
      `${many(changed, "event")} ${done}.${Object.entries(refused).map(left).join("")}`;
    if (await order({ ...command, ...meant }, told)) await this.#turn();
  }

  draw() {
    if (!state.status) return;
    const services = state.status.services.map((one) => option(one.key, one.key));
    const field = (name, more) => h("input", { name, spellcheck: "false", ...more });
    draw(byId(`${this.id}-filter`), [
      h("label", {}, "Service ", h("select", { name: "service" }, option("", "all"), services)),
      this.actions && h("label", { key: "cause" }, "Cause ", field("cause", { size: 12 })),
      h("label", { key: "text", class: "grow" }, "Text ", field("text", { type: "search" })),
      h("button", {}, "Filter"),
    ]);
    draw(byId(`${this.id}-list`), this.#content());
  }

  #content() {
    if (this.#fault !== null) {
      const again = button("Try again", () => this.#read());
      return h("p", { class: "card bad" }, `The list can't be read: ${this.#fault}. `, again);
    }
    if (this.#page === null) return [];
    const { letters } = this.#page;
    const isFiltered = Object.values(this.#filter).some(Boolean);
    return [
      letters.length > 0 && this.actions && this.#bar(),
      letters.length > 0
        ? h("table", { class: "list" }, [
            h("thead", {}, this.#head(letters)),
            h("tbody", {}, letters.map((letter) => this.#row(letter))),
          ])
        : h("p", { key: "none", class: "hint" }, isFiltered ? "There are none of this kind." : "There are none."),
      this.#pages(),
    ];
  }

  /** Describe where this page is among the others: one that was looked through for a text may be short, or empty. */
  #pages() {
    const { letters, total, next } = this.#page;
    const changed = this.count !== this.#counted;
    if (!letters.length && next === null && !this.#begins.length && !changed) return null;
    const shown = total === null ? many(letters.length, "event") : `${number(letters.length)} of ${number(total)}`;
    const before = this.#begins.slice(0, -1);
    const others = [
      button("Page before", () => this.#turn(before), { disabled: !this.#begins.length }),
      button("Next page", () => this.#turn([...this.#begins, next]), { disabled: next === null }),
    ];
    return h("p", { key: "pages", class: "row" }, [
      h("span", {}, `Page ${this.#begins.length + 1}: ${shown}`),
      (this.#begins.length > 0 || next !== null) && others,
      changed && button("Their number has changed: read again", () => this.#turn()),
    ]);
  }

  #head(letters) {
    const all = letters.every((each) => this.#chosen.has(each.number));
    return h("tr", {}, [
      this.actions && h("th", { key: "choose" }, this.#box("Choose all of this page", all, letters)),
      this.columns.map((title) => h("th", { key: title }, title)),
      h("th", { key: "do" }, unseen("What to do")),
    ]);
  }

  #row(letter) {
    const { number: which } = letter;
    const chosen = this.#chosen.has(which);
    const cell = (content, at) =>
      h("td", { key: at, class: at < 2 && "short", "data-title": this.columns[at] }, content);
    return h("tr", { key: which }, [
      this.actions && h("td", { key: "choose" }, this.#box(`Choose ${which}`, chosen, [letter])),
      this.cells(letter).map(cell),
      h("td", { key: "do", class: "do" }, [
        button("Look", () => this.look(letter), { "aria-label": `Look at ${which}` }),
        this.actions && button("Replay", () => this.actions.replay([which], 1), { "aria-label": `Replay ${which}` }),
      ]),
    ]);
  }

  #box(label, checked, letters) {
    const choose = (event) => {
      for (const each of letters) this.#chosen[event.target.checked ? "add" : "delete"](each.number);
      this.draw();
    };
    return h("input", { type: "checkbox", "aria-label": label, checked, onchange: choose });
  }

  /** Describe what can be done with those chosen, or with all: no command chooses by text. */
  #bar() {
    const chosen = this.#chosen.size ? [...this.#chosen] : undefined;
    if (!chosen && this.#filter.text)
      return h("p", { key: "bar", class: "hint" }, "Choose some, to replay or discard them.");
    const count = chosen?.length ?? this.#page.total;
    return h("p", { key: "bar", class: "row bar" }, [
      h("strong", {}, chosen ? `${number(count)} chosen` : `All ${number(count)}`),
      button("Replay", () => this.actions.replay(chosen, count)),
      button("Replay as new jobs", () => this.actions.replay(chosen, count, true)),
      button("Discard", () => this.actions.discard(chosen, count), { class: "danger" }),
    ]);
  }
}

/** Open a dialog at its title: nothing is done by a key that was meant for what was there before. */
function openDialog(id) {
  byId(id).showModal();
  byId(`${id}-title`).focus();
}

/** Ask a person whether it is meant. */
function sure(title, text, yes) {
  const dialog = byId("sure");
  byId("sure-title").textContent = title;
  byId("sure-text").textContent = text;
  byId("sure-yes").textContent = yes;
  dialog.returnValue = "no";
  openDialog("sure");
  return new Promise((resolve) => (dialog.onclose = () => resolve(dialog.returnValue === "yes")));
}

const eventCell = ({ subject, id }) => [h("span", { class: "event" }, subject ?? id), subject && h("small", {}, id)];

const dead = new List("dead", {
  path: "api/dead-letters",
  count: "dead_letters",
  columns: ["Number", "Given up", "Service", "Cause", "Event"],
  cells: (letter) => [
    letter.number,
    clock(letter.kept_at),
    letter.service || "–",
    [h("strong", {}, letter.cause), h("span", { class: "detail" }, letter.detail)],
    eventCell(letter),
  ],
  look: lookAtDeadLetter,
  actions: {
    async replay(numbers, count, asNew = false) {
      const meant = dead.meant(numbers); // before it is asked: what comes meanwhile nobody has seen
      const text = "Each becomes a job, at the pace that the limits allow.";
      if (count > 1 && !(await sure(`Replay ${many(count, "dead letter")}?`, text, "Replay"))) return;
      await dead.carryOut({ do: "replay", as_new: asNew }, meant, "given back to the lanes");
    },
    async discard(numbers, count) {
      const meant = dead.meant(numbers);
      const text = "What is discarded is deleted from this machine. That can't be undone.";
      if (await sure(`Discard ${many(count, "dead letter")}?`, text, "Discard"))
        await dead.carryOut({ do: "discard" }, meant, "discarded");
    },
  },
});

const parked = new List("parked", {
  path: "api/parked",
  count: "waiting",
  columns: ["Number", "Kept", "Service", "Tries", "Event"],
  cells: (event) => [event.number, clock(event.kept_at), event.service || "–", event.attempts, eventCell(event)],
  look(event) {
    const bury = () => {
      byId("letter").close();
      parked.carryOut({ do: "bury" }, { numbers: [event.number] }, "made a dead letter");
    };
    const isStranded = event.service && !partOf("service", event.service);
    drawLetter(`Parked event ${event.number}`, event, isStranded && button("Make it a dead letter", bury));
  },
});

const lists = [dead, parked];

async function lookAtDeadLetter({ number: which }) {
  const act = (action) => () => (byId("letter").close(), action());
  try {
    drawLetter(`Dead letter ${which}`, await ask(`api/dead-letters/${which}`), [
      button("Replay", act(() => dead.actions.replay([which], 1))),
      button("Replay as a new job", act(() => dead.actions.replay([which], 1, true))),
      button("Discard", act(() => dead.actions.discard([which], 1)), { class: "danger" }),
    ]);
  } catch (error) {
    say(`It can't be shown: ${reason(error)}`);
  }
}

/** Show an event that is kept. */
function drawLetter(title, { data, ...letter }, actions) {
  draw(byId("letter"), [
    h("h2", { id: "letter-title", tabindex: -1 }, title),
    facts(letter),
    data !== undefined && h("pre", { tabindex: 0, "aria-label": "Data" }, data),
    h("p", { class: "row" }, actions, button("Close", () => byId("letter").close())),
  ]);
  openDialog("letter");
}

// --- What became of a file

async function find(event) {
  event.preventDefault();
  const query = new URLSearchParams({ query: byId("query").value.trim() });
  byId("found").setAttribute("aria-busy", "true");
  say("Looking …");
  try {
    drawFound(await ask(`api/events?${query}`, { within: LONG_MS }));
    say("");
  } catch (error) {
    if (error instanceof WrongToken) return leave(true);
    draw(byId("found"), h("p", { class: "card bad" }, `It can't be looked for: ${reason(error)}`));
  }
  byId("found").removeAttribute("aria-busy");
}

function drawFound(answer) {
  const { events, more, upstream, notes } = answer;
  const unknown = saidOfUnknown(answer);
  const unsure = upstream.filter(({ whereabouts }) => ["absent", "unknown"].includes(whereabouts));
  const hints = [
    events.length > 0 && more && "There are more: say more of the name.",
    ...unsure.map(({ source, detail }) => `${source}: ${detail}`),
    ...notes.map((note) => `Not looked at: ${note}.`),
  ];
  draw(byId("found"), [
    events.map(foundEvent),
    unknown && h("p", { class: "card" }, unknown),
    hints.filter(Boolean).map((hint) => h("p", { key: hint, class: "hint" }, hint)),
  ]);
}

/** Say where that is of which no event is known, as `oscar-bridge why` does; null where there is no such thing. */
function saidOfUnknown({ query, begins, events, more, upstream }) {
  const back = begins ? `, which begins at ${clock(begins)}` : "";
  const [there, past] = ["there", "past"].map((place) => upstream.find((one) => one.whereabouts === place));
  if (there) return `Still upstream: ${there.source}: ${there.detail}`;
  if (past) return `Older than the journal${back}: ${past.source}: ${past.detail}`;
  if (events.length) return null;
  if (more) return "Not known: not all could be searched in the time there was.";
  if (!begins) return `Nothing is known of “${query}”: nothing of that name is kept, and there is no journal.`;
  return `Never seen: nothing of the name “${query}” is in the journal${back}, or kept.`;
}

function foundEvent({ source, id, subject, key, fates, story }) {
  const fate = ({ service, fate: came, detail, job, status, number: which }, at) => {
    const about = listed([detail, job && `job ${job}`, status]);
    const look = came === "dead letter" && which && button("Look", () => lookAtDeadLetter({ number: which }));
    return h("li", { key: at }, service && `${service}: `, h("strong", {}, came), ` ${about} `, look);
  };
  const line = ({ t, what, service, route, cause, detail, job }, at) => {
    const about = listed([service, route, cause, detail, job && `job ${job}`]);
    return h("li", { key: at }, h("time", {}, clock(t)), " ", h("strong", {}, what), ` ${about}`);
  };
  return h("article", { key: `${source} ${id}`, class: "card" }, [
    h("h3", {}, subject || key || id || "A job whose event is not known any more"),
    h("p", { class: "hint" }, listed([source, id, key && `key ${key}`])),
    h("ul", {}, fates.map(fate)),
    h("ol", {}, story.map(line)),
  ]);
}

// --- The last hours

const PLOTS = [
  { title: "Events a minute", series: { received: "sources", accepted: "services", failed: "services" } },
  { title: "Kept on disk", series: { parked: "services", dead_letters: "services" }, isLevel: true },
];

/** Return the sums of the parts that are meant; undefined where none is of this room. */
function summed(room, name) {
  const [kind, key] = byId("hours-part").value.split(/ (.*)/);
  if (kind !== "all" && `${kind}s` !== room) return undefined;
  const meant = Object.entries(state.history[room]).filter(([each]) => kind === "all" || each === key);
  const all = meant.map(([, numbers]) => numbers[name]);
  const length = Math.max(0, ...all.map((values) => values.length));
  return Array.from({ length }, (_, at) => all.reduce((sum, values) => sum + (values.at(at - length) ?? 0), 0));
}

function drawHours() {
  const parts = ["source", "service"].flatMap((kind) => state.status[`${kind}s`].map((one) => `${kind} ${one.key}`));
  draw(byId("hours-part"), option("all", "all"), parts.map((each) => option(each, each)));
  if (state.history) draw(byId("plots"), PLOTS.map(drawPlot));
  else if (state.historyFault)
    draw(byId("plots"), h("p", { class: "card bad" }, `They can't be read: ${state.historyFault}`));
}

function drawPlot({ title, series, isLevel }) {
  const { step, end } = state.history;
  const lines = Object.entries(series)
    .map(([name, room]) => [name, summed(room, name)?.map((value) => (isLevel ? value : (value * 60) / step))])
    .filter(([, values]) => values !== undefined);
  const seconds = byId("hours-time").value * 3600;
  return plot(title, lines, { step, end, seconds, width: Math.max(280, byId("plots").clientWidth - 28) });
}

// --- All of it

function render() {
  const { status, token, fault } = state;
  const door = byId("door");
  const shut = door.hidden;
  door.hidden = Boolean(token && (status || !fault));
  if (shut && !door.hidden) byId("token").focus();
  byId("main").hidden = byId("nav").hidden = !status;
  state.troubles = status ? troubles() : [];
  drawHead();
  if (!status) return;
  tell(state.troubles);
  drawTroubles(state.troubles);
  drawFlow();
  drawPart();
  drawHours();
  lists.forEach((list) => list.draw());
}

/** Draw what is so in one line, and above all whether it is so still. */
function drawHead() {
  const { status, fault, askedAt, answeredAt } = state;
  const silent = askedAt > answeredAt && Date.now() - askedAt > SILENCE_MS;
  const stale = Boolean(status) && (fault !== null || silent);
  const wrong = state.troubles.filter((each) => each.level === "bad").length;
  const others = state.troubles.length - wrong;
  const up = status && `up for ${duration(status.now - status.started)}`;
  const calm = others ? `${many(others, "thing")} to know` : "All is well";
  const word = stale ? "No answer" : wrong ? `${many(wrong, "thing is", "things are")} wrong` : calm;
  document.body.classList.toggle("stale", stale);
  document.title = `${stale ? "(?) " : wrong ? `(${wrong}) ` : ""}OSCAR Event Bridge`;
  draw(
    byId("summary"),
    status && h("strong", { class: stale || wrong ? "bad" : others ? "warn" : "ok" }, word),
    status && listed([location.host, `version ${status.version}`, up, `as of ${clock(status.now).slice(11)}`]),
  );
  const seen = status ? ` What is shown here is of ${clock(answeredAt / 1000)}.` : "";
  const text = stale || fault !== null ? `The bridge can't be seen${fault ? `: ${fault}` : ""}.${seen}` : "";
  if (byId("banner").textContent !== text) byId("banner").textContent = text; // it is read out anew each time
  byId("banner").hidden = !text;
}

/** Ask now, when somebody looks again, and every `milliseconds`; less often while nobody does. */
async function repeat(milliseconds, question) {
  let wake;
  document.addEventListener("visibilitychange", () => wake?.());
  for (;;) {
    try {
      await question();
    } catch (error) {
      state.fault = `this page has a defect (${error})`; // else it would stand still and say nothing
      drawHead();
    }
    await new Promise((resolve) => {
      wake = resolve;
      setTimeout(resolve, document.hidden ? IDLE * milliseconds : milliseconds);
    });
  }
}

byId("door").onsubmit = (event) => {
  event.preventDefault();
  const token = byId("token").value.trim();
  if (!/^[!-~]+$/.test(token)) return leave(true); // no header could carry it
  state.token = token;
  byId("token").value = byId("refusal").textContent = "";
  refresh()
    .then(() => byId("problems").focus({ preventScroll: true }))
    .then(refreshHistory);
};
byId("forget").onclick = () => leave(false);
byId("find-form").onsubmit = find;
byId("hours-part").onchange = drawHours;
byId("hours-time").onchange = refreshHistory;
byId("part").onclose = () => (state.part = null);
new ResizeObserver(() => state.status && (drawEdges(), drawHours())).observe(byId("picture"));

if (sessionStorage.getItem("refused")) byId("refusal").textContent = "The bridge does not take this token.";
sessionStorage.removeItem("refused");
render();
setInterval(drawHead, 1000);
repeat(POLL_MS, refresh);
repeat(HISTORY_MS, refreshHistory);
