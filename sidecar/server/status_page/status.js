// Asks /status again and again, and shows what it says; says so, too, when there is no answer.

import { Charts, timeline } from "./charts.js";
import { find, keep, make, mark, say } from "./dom.js";
import * as tables from "./tables.js";
import { clock, counted, duration, number, passed, visible } from "./words.js";

const EVERY = 2000; // milliseconds between two questions
const PATIENCE = 5000; // milliseconds for an answer
const LONGEST_SENTENCE = 600; // characters
const charts = new Charts(find("charts"));
let timer = 0;
let paused = false;
let last = null; // the last answer
let lostAt = null; // when the sidecar was first found not to answer

async function ask() {
  clearTimeout(timer);
  if (paused || document.hidden) return;
  try {
    const response = await fetch("/status", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (!response.ok) throw new Error(`it answers with ${response.status}`);
    last = await response.json();
    lostAt = null;
    show(last);
  } catch {
    lostAt ??= new Date();
    showLost();
  }
  clearTimeout(timer);
  if (!paused && !document.hidden) timer = setTimeout(ask, EVERY);
}

function show(status) {
  const worst = status.reasons[0];
  const tone = worst ? worst.level : "good";
  mark(document.body, "data-state", tone);
  say(find("chip"), status.state === "healthy" ? "Healthy" : tone === "error" ? "Failing" : "Degraded");
  say(find("title"), worst ? worst.title : "All is well");
  const { recent } = status.requests;
  const ended = recent.error ? `${number(recent.error)} refused for what they asked.` : "each with its prompt.";
  const asked = recent.requests ? `${counted(recent.requests, "request")} in the last two minutes, ${ended}` : "Nothing was asked in the last two minutes.";
  const answers = status.upstream.last_answer_at ? " The config service answers." : "";
  say(find("summary"), worst ? "" : asked + answers);
  document.title = `${worst ? `⚠ ${worst.title}` : "✓ All is well"} · prompt-sidecar`;
  keep(find("reasons"), status.reasons, ({ kind }) => kind, makeReason, (item, reason) => fillReason(item, reason, status));
  say(find("where"), location.host);
  say(find("facts"), `version ${status.version} · up ${duration(passed(status.started_at, status.at))}${status.ready ? "" : " · not ready"}`);
  say(find("live"), paused ? "Paused" : `Live · ${clock(status.at, status.at)}`);
  showFigures(status);
  charts.draw(status);
  keep(find("circuits"), status.circuits, ({ name }) => name, () => make("div", { class: "timeline" }), (element, circuit) => timeline(element, circuit, status));
  tables.nodes(status);
  tables.parts(status);
  tables.minutes(status);
  tables.settings(status);
}

function makeReason() {
  const item = make("li", {});
  item.parts = { sentence: make("p", { class: "sentence" }), since: make("span", { class: "since" }), action: make("span", {}), runbook: make("code", {}) };
  const { sentence, since, action, runbook } = item.parts;
  item.append(sentence, make("p", { class: "action" }, since, action, " Runbook: ", runbook));
  return item;
}

function fillReason(item, reason, status) {
  mark(item, "data-level", reason.level);
  say(item.parts.sentence, visible(reason.sentence.slice(0, LONGEST_SENTENCE)));
  say(item.parts.since, reason.since ? `Since ${clock(reason.since, status.at)}, for ${duration(passed(reason.since, status.at))}. ` : "");
  say(item.parts.action, reason.action);
  say(item.parts.runbook, reason.runbook);
}

function showFigures(status) {
  const { recent } = status.requests;
  const covered = status.nodes.filter(({ cover_left_seconds: left }) => left !== null);
  const oldest = Math.max(0, ...covered.map(({ age_seconds: age }) => age ?? 0));
  const left = Math.min(...covered.map(({ cover_left_seconds: each }) => each));
  const [circuit] = status.circuits;
  const figures = [
    ["Without a prompt", number(recent.failed), recent.failed ? "error" : null, recent.requests ? `of ${number(recent.requests)} in the last two minutes` : "no requests in the last two minutes"],
    ["Served stale", covered.length ? counted(covered.length, "node") : "nobody", covered.length ? "warning" : null, covered.length ? `data up to ${duration(oldest)} old` : "no outage to cover"],
    ["Cover left", covered.length ? duration(left) : "–", covered.length ? (left < 300 ? "error" : "warning") : null, covered.length ? "then requests begin to fail" : "counts down in an outage"],
    ["Circuit", circuit.state, circuit.state === "closed" ? null : "warning", `for ${duration(passed(circuit.since, status.at))}`],
  ];
  keep(find("figures"), figures, ([name]) => name, ([name]) => make("div", {}, make("dt", {}, name), make("dd", { class: "value" }), make("dd", { class: "note" })), (element, [, value, tone, note]) => {
    say(element.children[1], value);
    say(element.children[2], note);
    mark(element, "data-tone", tone);
  });
}

function showLost() {
  const now = new Date();
  mark(document.body, "data-state", "lost");
  say(find("chip"), "Not reached");
  say(find("title"), "The sidecar does not answer");
  const since = `Not reached since ${clock(lostAt, now)} (${duration((now - lostAt) / 1000)}).`;
  const then = last ? ` What is below was true at ${clock(last.at, now)}.` : "";
  say(find("summary"), `${since} LearnFlow gets no prompts from it, or only this listener is away.${then} Runbook: sidecar-down.`);
  keep(find("reasons"), [], ({ kind }) => kind, makeReason, fillReason);
  say(find("live"), paused ? "Paused" : "Not reached, trying again");
  document.title = "✗ Not reached · prompt-sidecar";
}

find("pause").addEventListener("click", () => {
  paused = !paused;
  say(find("pause"), paused ? "Resume" : "Pause");
  if (paused) say(find("live"), "Paused");
  ask();
});
document.addEventListener("visibilitychange", ask);
ask();
