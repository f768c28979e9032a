// The last hour as charts. Each has a text alternative; the numbers themselves stand in a table below them.

import { make, makeSvg, mark, say } from "./dom.js";
import { clock, duration, latency, number, OUTCOMES, passed, percent } from "./words.js";

const HOUR = 3600;
const [WIDTH, HEIGHT] = [720, 120]; // units of the drawing, which is stretched to its place
const QUANTILES = [["p50_seconds", "p50"], ["p95_seconds", "p95"], ["p99_seconds", "p99"]];
const [FASTEST, SLOWEST] = [0.00001, 10]; // seconds at the ends of the latency's scale, which is logarithmic
const cursors = [];
let shown = null; // the minute under the pointer; null: none

const high = (share) => HEIGHT * (1 - share);
const round = (value) => Math.round(value * 10) / 10;

class Chart {
  constructor(name, title, series, scale) {
    this.headline = make("span", { class: "headline" });
    this.legend = make("p", { class: "legend" });
    this.paths = Object.fromEntries(series.map(([key]) => [key, makeSvg("path", { class: `series ${key}` })]));
    this.void = makeSvg("rect", { class: "void", x: 0, y: 0, height: HEIGHT, width: 0 });
    this.cursor = makeSvg("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden" });
    cursors.push(this.cursor);
    const lines = scale.map(([share]) => makeSvg("line", { class: "grid", x1: 0, x2: WIDTH, y1: high(share), y2: high(share) }));
    this.svg = makeSvg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title },
      this.void, ...lines, ...Object.values(this.paths), this.cursor,
    );
    this.labels = scale.map(([share, text]) => {
      const label = make("span", { class: "scale", "aria-hidden": "true" }, text);
      label.style.top = `${100 * (1 - share)}%`;
      return label;
    });
    const plot = make("div", { class: "plot" }, this.svg, ...this.labels);
    plot.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      point(Math.floor((1 - (event.clientX - box.left) / box.width) * 60));
    });
    plot.addEventListener("pointerleave", () => point(null));
    this.keys = series.map(([key, label]) => {
      const value = make("b", {});
      this.legend.append(make("span", { class: `key ${key}` }, make("i", { "aria-hidden": "true" }), `${label} `, value));
      return [key, value];
    });
    this.element = make(
      "figure",
      { class: `panel chart ${name}` },
      make("figcaption", {}, make("h3", {}, title), this.headline),
      plot, axis(), this.legend,
    );
  }
}

const axis = () =>
  make("p", { class: "axis", "aria-hidden": "true" }, ...["60 min ago", "45", "30", "15", "now"].map((text) => make("span", {}, text)));

let redraw = () => {};

function point(minute) {
  if (minute === shown) return;
  shown = minute;
  redraw();
}

export class Charts {
  constructor(parent) {
    const outcomes = OUTCOMES.map(([key, label]) => [key, label]);
    const half = [[1, ""], [0.5, ""]];
    this.requests = new Chart("requests", "Requests per minute", outcomes, half);
    this.hits = new Chart("hits", "Hit rate", [["hit_ratio", "fresh, of what is answered from here"]], [[1, "100 %"], [0.5, "50 %"], [0, ""]]);
    const decades = [[1 / 6, "0.1 ms"], [2 / 6, "1 ms"], [3 / 6, "10 ms"], [4 / 6, "100 ms"], [5 / 6, "1 s"]];
    this.latency = new Chart("latency", "Latency", QUANTILES, decades);
    this.hits.paths.below = makeSvg("path", { class: "series below" });
    this.hits.svg.insertBefore(this.hits.paths.below, this.hits.cursor);
    parent.append(this.requests.element, this.hits.element, this.latency.element);
  }

  draw(status) {
    redraw = () => this.draw(status);
    const { at: now, started_at: started, requests } = status;
    const minutes = requests.minutes.map((minute) => {
      const ago = passed(minute.at, now);
      const left = Math.max(0, 1 - ago / HOUR);
      const right = Math.min(1, 1 - (ago - requests.slot_seconds) / HOUR);
      return { ...minute, left: left * WIDTH, right: right * WIDTH };
    });
    const under = shown === null ? null : minutes.find(({ left, right }) => within(shown, left, right)) ?? null;
    for (const chart of [this.requests, this.hits, this.latency]) {
      mark(chart.void, "width", String(round(WIDTH * Math.max(0, 1 - passed(started, now) / HOUR))));
      mark(chart.cursor, "visibility", shown === null ? "hidden" : "visible");
      const x = shown === null ? 0 : (1 - (shown + 0.5) / 60) * WIDTH;
      mark(chart.cursor, "x1", String(x));
      mark(chart.cursor, "x2", String(x));
    }
    const when = shown === null ? null : under ? clock(under.at, now).slice(0, -3) : "no requests";
    this.drawRequests(minutes, requests, under, when, now);
    this.drawHits(minutes, requests, under, when, now);
    this.drawLatency(minutes, requests, under, when, now);
  }

  drawRequests(minutes, requests, under, when) {
    const chart = this.requests;
    const most = Math.max(1, ...minutes.map(({ counts }) => counts.requests));
    const top = rounded(most);
    say(chart.labels[0], number(top));
    say(chart.labels[1], top % 2 ? "" : number(top / 2));
    const bottoms = minutes.map(() => 0);
    for (const [key] of OUTCOMES) {
      const drawn = minutes.map(({ counts, left, right }, place) => {
        if (!counts[key]) return "";
        const from = bottoms[place];
        bottoms[place] += counts[key];
        const gap = Math.min(1, (right - left) / 4);
        return `M${round(left)} ${round(high(from / top))}V${round(high(bottoms[place] / top))}H${round(right - gap)}V${round(high(from / top))}Z`;
      });
      mark(chart.paths[key], "d", drawn.join(""));
    }
    const counts = under?.counts ?? (when === null ? requests.last_hour : null);
    for (const [key, value] of chart.keys) say(value, counts ? number(counts[key]) : "–");
    say(chart.headline, when ?? `${number(requests.last_hour.requests)} in the last hour`);
    mark(chart.svg, "aria-label", `Requests per minute over the last hour: ${number(requests.last_hour.requests)} in all, at most ${number(most)} a minute, ${number(requests.last_hour.stale)} answered stale, ${number(requests.last_hour.error)} errors.`);
  }

  drawHits(minutes, requests, under, when, now) {
    const chart = this.hits;
    const known = minutes.filter(({ counts }) => counts.hit_ratio !== null);
    const level = ({ counts }) => counts.hit_ratio;
    mark(chart.paths.hit_ratio, "d", steps(known, level));
    mark(chart.paths.below, "d", known.map((each) => `M${round(each.left)} ${HEIGHT}V${round(high(level(each)))}H${round(each.right)}V${HEIGHT}Z`).join(""));
    const ratio = (under ?? { counts: when === null ? requests.last_hour : { hit_ratio: null } }).counts.hit_ratio;
    say(chart.headline, when ?? `${percent(requests.last_hour.hit_ratio)} in the last hour`);
    say(chart.keys[0][1], percent(ratio));
    const lowest = known.reduce((low, each) => (low === null || each.counts.hit_ratio < low.counts.hit_ratio ? each : low), null);
    const at = lowest ? `, lowest ${percent(lowest.counts.hit_ratio)} in the minute from ${clock(lowest.at, now)}` : "";
    mark(chart.svg, "aria-label", `Hit rate over the last hour: ${percent(requests.last_hour.hit_ratio)}${at}.`);
  }

  drawLatency(minutes, requests, under, when) {
    const chart = this.latency;
    for (const [key] of QUANTILES) {
      mark(chart.paths[key], "d", steps(minutes, (minute) => logarithmic(minute.latency[key])));
    }
    const values = under?.latency ?? (when === null ? requests.latency : null);
    for (const [key, value] of chart.keys) say(value, values && requests.last_hour.requests ? latency(values[key]) : "–");
    say(chart.headline, when ?? (requests.last_hour.requests ? `p95 ${latency(requests.latency.p95_seconds)} in the last hour` : ""));
    const told = QUANTILES.map(([key, label]) => `${label} ${latency(requests.latency[key])}`).join(", ");
    mark(chart.svg, "aria-label", requests.last_hour.requests ? `Latency over the last hour: ${told}.` : "Latency over the last hour: no requests.");
  }
}

const within = (minute, left, right) => {
  const x = (1 - (minute + 0.5) / 60) * WIDTH;
  return left <= x && x < right;
};

const logarithmic = (seconds) =>
  Math.min(1, Math.max(0, Math.log(Math.max(seconds, FASTEST) / FASTEST) / Math.log(SLOWEST / FASTEST)));

// A level for each minute, joined to the next one where there is one.
function steps(minutes, share) {
  let before = null;
  return minutes
    .map((minute) => {
      const [x1, x2, y] = [round(minute.left), round(minute.right), round(high(share(minute)))];
      const joined = before !== null && Math.abs(before - x1) < 0.5;
      before = x2;
      return `${joined ? "L" : "M"}${x1} ${y}H${x2}`;
    })
    .join("");
}

// The end of a scale: a round number.
function rounded(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 3, 4, 6, 8, 10].find((each) => each * power >= most) * power;
}

const WORDS = { closed: "closed", open: "open", "half-open": "half-open" };
const HEIGHTS = { closed: [9, 4], open: [1, 20], "half-open": [5, 12] }; // top and height: not by colour alone

export function timeline(element, circuit, status) {
  const { at: now, started_at: started } = status;
  const x = (instant) => round(Math.max(0, 1 - passed(instant, now) / HOUR) * WIDTH);
  const changes = [{ at: started, to: "closed" }, ...circuit.transitions];
  const drawn = { closed: "", open: "", "half-open": "" };
  let openSeconds = 0;
  changes.forEach(({ at, to }, place) => {
    const until = changes[place + 1]?.at ?? now;
    const [left, right] = [x(at), x(until)];
    const [top, height] = HEIGHTS[to];
    if (right > left || until === now) drawn[to] += `M${left} ${top}H${Math.max(right, left + 1)}V${top + height}H${left}Z`;
    if (to === "open") openSeconds += Math.max(0, Math.min(HOUR, passed(at, now)) - passed(until, now));
  });
  element.parts ??= makeTimeline(element);
  const { title, told, svg, paths } = element.parts;
  say(title, circuit.name === "upstream" ? "Circuit to the config service" : `Circuit to ${circuit.name}`);
  const wait = circuit.retry_in_seconds === null ? "" : `, next trial in ${duration(Math.ceil(circuit.retry_in_seconds))}`;
  const times = changes.filter(({ at, to }, place) => to === "open" && changes[place - 1].to === "closed" && passed(at, now) <= HOUR).length;
  const opened = times ? `opened ${times === 1 ? "once" : `${times} times`} in the last hour, open for ${duration(openSeconds)} in all` : "not opened in the last hour";
  say(told, `${WORDS[circuit.state]} for ${duration(passed(circuit.since, now))}${wait}; ${opened}`);
  mark(element, "data-circuit", circuit.state);
  mark(svg, "aria-label", `${title.textContent}: ${told.textContent}.`);
  for (const [state, path] of Object.entries(paths)) mark(path, "d", drawn[state]);
}

function makeTimeline(element) {
  const title = make("h3", {});
  const told = make("span", { class: "headline" });
  const paths = Object.fromEntries(Object.keys(HEIGHTS).map((state) => [state, makeSvg("path", { class: `circuit ${state}` })]));
  const svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} 22`, preserveAspectRatio: "none", role: "img" }, ...Object.values(paths));
  element.append(make("div", { class: "caption" }, title, told), svg, axis());
  return { title, told, svg, paths };
}
