// Numbers over time as lines.

import { h } from "./drawing.js";
import { hour, number } from "./words.js";

const [HEIGHT, LEFT, RIGHT, TOP, FOOT] = [150, 44, 8, 8, 20]; // of a plot, and what is left free for its texts

/** Describe a plot of `lines`, by name: one value for each `step` seconds of the last `seconds`, up to `end`. */
export function plot(title, lines, { step, end, seconds, width }) {
  const most = roundUp(Math.max(1, ...lines.flatMap(([, values]) => values)));
  const x = (time) => (LEFT + (1 - (end - time) / seconds) * (width - LEFT - RIGHT)).toFixed(1);
  const y = (value) => (TOP + (1 - value / most) * (HEIGHT - FOOT - TOP)).toFixed(1);
  const path = (values) =>
    values.map((value, at) => `${at ? "L" : "M"}${x(end - (values.length - 1 - at) * step)} ${y(value)}`).join("");
  const whole = (value) => number(Math.round(value));
  const told = ([name, values]) =>
    `${name.replace("_", " ")} ${whole(values.at(-1) ?? 0)}, at most ${whole(Math.max(0, ...values))}`;
  const text = (key, shown, place) => h("text", { key, ...place }, shown);
  const spans = width > 500 ? 6 : 3;
  const times = Array.from({ length: spans + 1 }, (_, at) => end - (at * seconds) / spans);
  const attributes = { role: "img", "aria-label": `${title}: ${lines.map(told).join("; ")}` };
  return h("figure", { key: title }, [
    h("figcaption", {}, [
      h("strong", {}, title),
      lines.map((line) => h("span", { key: line[0], class: `legend ${line[0]}` }, told(line))),
    ]),
    h("svg", { ...attributes, viewBox: `0 0 ${width} ${HEIGHT}` }, [
      [0, most / 2, most].map((value, at) => [
        h("path", { key: `grid ${at}`, class: "grid", d: `M${LEFT} ${y(value)}H${width - RIGHT}` }),
        text(`value ${at}`, number(value), { x: LEFT - 6, y: Number(y(value)) + 4, "text-anchor": "end" }),
      ]),
      times.map((time, at) =>
        text(`time ${at}`, hour(time), { x: x(time), y: HEIGHT - 4, "text-anchor": at ? "middle" : "end" }),
      ),
      lines.map(([name, values]) => h("path", { key: name, class: `series ${name}`, d: path(values) })),
    ]),
  ]);
}

/** Return the least number that is no less than `value` and at which a scale may end. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.6, 2, 3, 4, 6, 8, 10].map((each) => each * power).find((each) => each >= value);
}
