// Values as people read them.

export const OUTCOMES = [
  ["fresh", "Fresh"],
  ["miss", "Fetched"],
  ["bypass", "Bypassed"],
  ["stale", "Stale"],
  ["error", "Error"],
];
const LONGEST = 120; // characters of a name or a message that are shown; the rest is one hover, or /status, away
const NONE = "–";

export function duration(seconds) {
  const whole = Math.floor(seconds);
  if (whole < 60) return `${whole} s`;
  const [size, unit, below, small] =
    whole < 3600 ? [60, "min", 1, "s"] : whole < 86400 ? [3600, "h", 60, "min"] : [86400, "d", 3600, "h"];
  const rest = whole % size;
  return `${Math.floor(whole / size)} ${unit}` + (rest >= below ? ` ${Math.floor(rest / below)} ${small}` : "");
}

export function latency(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  const milliseconds = seconds * 1000;
  return `${milliseconds >= 100 ? milliseconds.toFixed(0) : milliseconds.toPrecision(2)} ms`;
}

export const number = (value) => value.toLocaleString("en");

export const counted = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

export function percent(ratio) {
  if (ratio === null) return NONE;
  const value = ratio * 100;
  return `${value === 0 || value === 100 || (value >= 10 && value < 99) ? value.toFixed(0) : value.toFixed(1)} %`;
}

export function bytes(count) {
  if (count < 1024) return `${count} B`;
  return count < 1024 * 1024 ? `${(count / 1024).toFixed(1)} KiB` : `${(count / 1024 / 1024).toFixed(1)} MiB`;
}

export const or = (value, write) => (value === null || value === undefined ? NONE : write(value));

// What a name may hold to deceive the eye (controls, direction marks, zero-width) is spelt out.
export const visible = (text) =>
  text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (each) => `\\u{${each.codePointAt(0).toString(16)}}`);

export function short(text) {
  const characters = [...visible(text.slice(0, 2 * LONGEST))];
  return characters.length > LONGEST || text.length > 2 * LONGEST ? `${characters.slice(0, LONGEST).join("")}…` : characters.join("");
}

const two = (value) => String(value).padStart(2, "0");

// The browser's own time zone; the date only where it is another day.
export function clock(instant, now) {
  const at = new Date(instant);
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return at.toDateString() === new Date(now).toDateString() ? time : `${day} ${time}`;
}

export const passed = (instant, now) => Math.max(0, (Date.parse(now) - Date.parse(instant)) / 1000);
