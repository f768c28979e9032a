// The tables: a row for each item, kept as long as the item is there.

import { find, keep, make, mark, say } from "./dom.js";
import { bytes, clock, counted, duration, latency, number, or, passed, percent, short, visible } from "./words.js";

const LONGEST_TITLE = 1000; // characters

// Fills the cells of a row: texts, or [text, tone, whole text]. The first is the row's heading.
function fill(row, cells) {
  cells.forEach((cell, place) => {
    const [text, tone = null, whole = null] = Array.isArray(cell) ? cell : [cell];
    const inner = row.children[place].firstElementChild;
    say(inner, text);
    mark(inner, "data-tone", tone);
    mark(inner, "title", whole === null || whole === text ? null : visible(whole.slice(0, LONGEST_TITLE)));
  });
}

// The roles are said in so many words because cards on a phone are no table in the eyes of a browser.
function makeRow(table) {
  const heads = [...table.querySelectorAll("thead th")];
  const cells = heads.map((head, place) => {
    const attributes = { role: place ? "cell" : "rowheader", "data-label": head.textContent };
    if (head.className) attributes.class = head.className;
    if (!place) attributes.scope = "row";
    return make(place ? "td" : "th", attributes, make("bdi", {}));
  });
  return make("tr", { role: "row" }, ...cells);
}

function table(id, items, key, cells) {
  const body = find(id);
  keep(body, items, key, () => makeRow(body.closest("table")), (row, item) => fill(row, cells(item)));
}

const since = (instant, now) => `${clock(instant, now)} (${duration(passed(instant, now))})`;

function lastAnswer(node) {
  if (node.last_outcome === "error") return ["Error", "error"];
  if (node.parity.set_aside_since) return ["Taken back", "warning"];
  if (node.not_admitted) return ["Not admitted", "warning", node.not_admitted];
  if (node.cover_left_seconds !== null) return ["Stale, covered", "warning"];
  const words = { fresh: ["Fresh", "good"], stale: ["Stale"], miss: ["Fetched", "good"], bypass: ["Bypassed"] };
  return words[node.last_outcome] ?? "–";
}

const RANKS = { error: 0, warning: 1 };
const trouble = (node) => RANKS[lastAnswer(node)[1]] ?? 2;

export function nodes(status) {
  const items = [...status.nodes].sort((a, b) => trouble(a) - trouble(b)); // stable: by name otherwise
  find("no-nodes").hidden = items.length > 0;
  table("nodes", items, ({ name }) => name, (node) => {
    const hour = node.last_hour;
    const left = node.cover_left_seconds;
    const { match, mismatch } = node.parity;
    return [
      [short(node.name), null, node.name],
      lastAnswer(node),
      or(node.age_seconds, duration),
      left === null ? "–" : [duration(left), left < 300 ? "error" : "warning"],
      number(hour.requests),
      percent(hour.hit_ratio),
      [number(hour.stale), node.recent.covered ? "warning" : null],
      [number(hour.error), node.recent.failed ? "error" : null],
      `${node.policy.strategy}, ttl ${node.policy.ttl}, if error +${node.policy.stale_if_error}`,
      node.rollout_ratio === 1 ? "all users" : node.rollout_ratio ? percent(node.rollout_ratio) : "nobody",
      mismatch ? [`${number(mismatch)} of ${number(match + mismatch)} differ`, "warning"] : match ? `${number(match)} match` : "–",
    ];
  });
}

function lastError(error, now, where = "") {
  return error ? [`${short(error.error)}${where}, ${clock(error.at, now)}`, null, error.error] : "none";
}

function service(status) {
  const { upstream, at: now } = status;
  const [state, when] = upstream.failing_since
    ? [["Failing", upstream.circuit === "closed" ? "warning" : "error"], since(upstream.failing_since, now)]
    : upstream.last_answer_at
      ? [["Answers", "good"], `last answer ${clock(upstream.last_answer_at, now)}`]
      : ["Not asked yet", "–"];
  const generation = upstream.generation ? `${upstream.generation} for ${duration(upstream.generation_seconds)}` : "generation not known yet";
  return ["Config service", state, when, lastError(upstream.last_error, now, upstream.last_error_endpoint ? ` (${upstream.last_error_endpoint})` : ""), `${short(upstream.url)}; ${generation}`];
}

function store(status) {
  const { store: it, at: now } = status;
  if (!it) return ["Store", "None", "–", "–", "a restart begins with nothing"];
  const size = `${or(it.entries, (count) => counted(count, "record"))}, ${or(it.bytes, bytes)}${it.lost ? `, ${number(it.lost)} lost` : ""}`;
  const group = it.group ? `; group ${it.group.connected ? "connected" : "not connected"}` : "";
  return [
    `Store (${it.kind})`,
    it.error ? ["Set aside", "warning"] : ["Works", "good"],
    it.failing_since ? since(it.failing_since, now) : "–",
    lastError(it.last_error, now),
    `${size}${it.path ? `; ${short(it.path)}` : ""}${group}`,
  ];
}

export function parts(status) {
  const { cache, reload, templates_file: file, warmup, at: now } = status;
  const rows = [
    service(status),
    ["Memory", ["Works", "good"], "–", "none", `${counted(cache.entries, "entry", "entries")}, ${bytes(cache.bytes)}`],
    store(status),
  ];
  if (file) {
    const state = file.error ? ["Not taken", "warning"] : ["Taken", "good"];
    const error = file.error ? [short(file.error), null, file.error] : "none";
    rows.push(["Template file", state, file.failing_since ? since(file.failing_since, now) : "–", error, `${counted(file.nodes.length, "node")}; ${short(file.path)}`]);
  }
  const problems = reload.problems.join("; ");
  const waiting = reload.waiting_for_restart.length ? `waiting for a restart: ${reload.waiting_for_restart.join(", ")}` : "nothing waits for a restart";
  rows.push([
    "Settings",
    problems ? ["Not taken", "warning"] : ["Taken", "good"],
    since(reload.failing_since ?? reload.last_at, now),
    problems ? [short(problems), null, problems] : "none",
    waiting,
  ]);
  if (warmup) {
    const done = `${number(warmup.done)} of ${or(warmup.total, number)} pairs, ${number(warmup.failed)} failed`;
    rows.push(["Warm-up", warmup.failed ? [warmup.state, "warning"] : warmup.state, "–", warmup.why ? short(String(warmup.why)) : "none", done]);
  }
  table("parts", rows, ([name]) => name, (cells) => cells);
}

export function minutes(status) {
  table("minutes", [...status.requests.minutes].reverse(), ({ at }) => at, ({ at, counts, latency: took }) => [
    clock(at, status.at).slice(0, -3),
    ...[counts.requests, counts.fresh, counts.stale, counts.miss, counts.bypass, counts.error].map(number),
    percent(counts.hit_ratio),
    ...[took.p50_seconds, took.p95_seconds, took.p99_seconds].map(latency),
  ]);
  const changes = status.circuits.flatMap(({ name, transitions }) => transitions.map((change, place) => ({ ...change, name, place })));
  changes.sort((a, b) => Date.parse(b.at) - Date.parse(a.at));
  table("transitions", changes, ({ name, at, to }) => `${name} ${to} ${at}`, ({ name, at, to }) => [clock(at, status.at), name, to]);
}

function* flat(value, path = "") {
  if (value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length) {
    for (const [key, each] of Object.entries(value)) yield* flat(each, path ? `${path}.${key}` : key);
  } else {
    yield [path, typeof value === "string" ? value : JSON.stringify(value)];
  }
}

export function settings(status) {
  table("settings", [...flat(status.settings)], ([key]) => key, ([key, value]) => [[short(key), null, key], [short(value), null, value]]);
}
