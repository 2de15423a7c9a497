/* Charts in plain SVG: axes, lines with bands, marks with bars, stacked bars. Text is only ever set as text. */
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 380;
const DASHES = ["", "7 4", "2 3", "8 3 2 3"];
const MARKS = [
  "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0",
  "M-4.5,-4.5h9v9h-9z",
  "M0,-6L5.5,4.5H-5.5z",
  "M0,-6.5L6,0L0,6.5L-6,0z",
  "M0,6L5.5,-4.5H-5.5z",
  "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
  "M-6,-3L-3,-6L0,-3L3,-6L6,-3L3,0L6,3L3,6L0,3L-3,6L-6,3L-3,0z",
];

function make(space, name, attributes, ...children) {
  const node = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) if (value !== null) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const html = (name, attributes, ...children) => make(null, name, attributes, ...children);
const svg = (name, attributes, ...children) => make(SVG, name, attributes, ...children);

/** A number as people read it: 4 significant digits, SI prefixes from 10,000 on. */
function short(value) {
  const size = Math.abs(value);
  if (size < 1e4) return String(Number(value.toPrecision(4)));
  const power = Math.min(6, Math.floor(Math.log10(size) / 3));
  return Number((value / 1000 ** power).toPrecision(4)) + ["", " k", " M", " G", " T", " P", " E"][power];
}

/** About `count` round numbers from low to high. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((s) => s * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

/** The range of the values with some air; with zero in it where that costs little. */
function range(values, zero) {
  let low = Math.min(...values), high = Math.max(...values);
  if (zero || (low > 0 && low < 0.3 * high)) low = Math.min(0, low);
  const air = (high - low || Math.abs(high) || 1) * 0.06;
  return [zero ? low : low - air, high + air];
}

/** Axes in `holder`; the drawing, and functions from values to places. `turned`: smaller values are further up. */
function axes(holder, x, y, xs, ys, xZero) {
  const width = Math.max(280, holder.clientWidth || 640);
  const left = 64, right = 16, top = 30, bottom = 48;
  const [x0, x1] = range(xs, xZero), [y0, y1] = range(ys, false);
  const along = (v) => left + ((x.turned ? x1 - v : v - x0) / (x1 - x0)) * (width - left - right);
  const up = (v) => HEIGHT - bottom - ((y.turned ? y1 - v : v - y0) / (y1 - y0)) * (HEIGHT - top - bottom);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "group", "aria-label": `${y.title} against ${x.title}` });
  for (const v of ticks(x0, x1, width / 110)) {
    drawing.append(svg("line", { class: "axis", x1: along(v), x2: along(v), y1: top, y2: HEIGHT - bottom }));
    drawing.append(svg("text", { x: along(v), y: HEIGHT - bottom + 18, "text-anchor": "middle" }, short(v)));
  }
  for (const v of ticks(y0, y1, 6)) {
    drawing.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: up(v), y2: up(v) }));
    drawing.append(svg("text", { x: left - 8, y: up(v) + 4, "text-anchor": "end" }, short(v)));
  }
  drawing.append(svg("text", { class: "faint", x: (left + width - right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, x.title));
  drawing.append(svg("text", { class: "faint", x: 0, y: 12 }, y.title));
  return { drawing, along, up, width };
}

/** A mark that the keyboard reaches; what it stands for is read out and shown below the chart. */
function mark(look, at, words, said) {
  const node = svg(
    "g",
    { tabindex: "0", role: "img", "aria-label": words, transform: `translate(${at[0]} ${at[1]})`, class: `k${look % 8}` },
    svg("title", {}, words),
    svg("path", { class: "mark", d: MARKS[look % MARKS.length] })
  );
  for (const event of ["focus", "pointerenter"]) node.addEventListener(event, () => (said.textContent = words));
  return node;
}

function key(names, looks, dashed) {
  const items = names.map((name) => {
    const look = looks[name];
    const dash = dashed ? svg("line", { class: "line", x1: 0, x2: 34, y1: 7, y2: 7, "stroke-dasharray": DASHES[look % 4] }) : "";
    const sample = svg("svg", { class: `k${look % 8}`, viewBox: "0 0 34 14", "aria-hidden": "true" }, dash);
    sample.append(svg("path", { class: "mark", d: MARKS[look % MARKS.length], transform: "translate(17 7)" }));
    return html("li", {}, sample, " ", name);
  });
  return html("ul", { class: "key" }, ...items);
}

/** The drawn values as a table, for those who read rather than look. */
function values(head, rows) {
  const cell = (text, i) => html(i ? "td" : "th", i ? { class: "number" } : { scope: "row" }, text);
  return html(
    "details",
    {},
    html("summary", {}, "Values"),
    html(
      "div",
      { class: "wide" },
      html(
        "table",
        {},
        html("thead", {}, html("tr", {}, ...head.map((text) => html("th", { scope: "col" }, text)))),
        html("tbody", {}, ...rows.map((row) => html("tr", {}, ...row.map(cell))))
      )
    )
  );
}

const within = (value, half) => short(value) + (half === null ? "" : ` ± ${short(half)}`);

function drawTrade(holder, trade, looks, keep) {
  const spots = trade.spots.filter((spot) => keep(spot.name));
  if (!spots.length) return holder.replaceChildren("No method that is shown has both numbers.");
  const ends = (axis) => spots.flatMap((s) => [s[axis] - (s[`${axis}_half`] || 0), s[axis] + (s[`${axis}_half`] || 0)]);
  const x = { title: trade.x, turned: trade.x_better === "lower" }, y = { title: trade.y, turned: trade.y_better === "lower" };
  const { drawing, along, up } = axes(holder, x, y, ends("x"), ends("y"), false);
  const said = html("p", { class: "said", "aria-live": "polite" });
  const front = trade.front.map((name) => spots.find((s) => s.name === name)).filter(Boolean);
  drawing.append(svg("polyline", { class: "front", points: front.map((s) => `${along(s.x)},${up(s.y)}`).join(" ") }));
  for (const spot of spots) {
    const bars = svg("g", { class: `k${looks[spot.name] % 8}` });
    const [px, py] = [along(spot.x), up(spot.y)];
    if (spot.x_half !== null)
      bars.append(svg("line", { class: "line", x1: along(spot.x - spot.x_half), x2: along(spot.x + spot.x_half), y1: py, y2: py }));
    if (spot.y_half !== null)
      bars.append(svg("line", { class: "line", x1: px, x2: px, y1: up(spot.y - spot.y_half), y2: up(spot.y + spot.y_half) }));
    const words = `${spot.name}: ${trade.x} ${within(spot.x, spot.x_half)}; ${trade.y} ${within(spot.y, spot.y_half)}`;
    drawing.append(bars, mark(looks[spot.name], [px, py], words, said));
  }
  const rows = spots.map((s) => [s.name, within(s.x, s.x_half), within(s.y, s.y_half), trade.front.includes(s.name) ? "yes" : ""]);
  const table = values(["method", trade.x, trade.y, "on the line"], rows);
  holder.replaceChildren(drawing, said, key(spots.map((s) => s.name), looks, false), table);
}

function drawAnytime(holder, panel, axis, looks, keep) {
  const lines = Object.entries(panel.lines[axis] || {}).filter(([name]) => keep(name));
  if (!lines.length) return holder.replaceChildren("No method that is shown has this curve.");
  const points = lines.flatMap(([, line]) => line);
  const ys = points.flatMap(([, mean, half]) => [mean - (half || 0), mean + (half || 0)]);
  const y = { title: `${panel.title} (${panel.better} is better)` };
  const { drawing, along, up } = axes(holder, { title: panel.axes[axis] }, y, points.map((p) => p[0]), ys, true);
  const said = html("p", { class: "said", "aria-live": "polite" });
  for (const [name, line] of lines) {
    const look = looks[name];
    const edge = (sign) => line.map(([paid, mean, half]) => `${along(paid)},${up(mean + sign * (half || 0))}`);
    const group = svg("g", { class: `k${look % 8}` });
    group.append(svg("polygon", { class: "band", points: [...edge(1), ...edge(-1).reverse()].join(" ") }));
    group.append(svg("polyline", { class: "line", points: edge(0).join(" "), "stroke-dasharray": DASHES[look % 4] }));
    drawing.append(group);
    for (const [paid, mean, half] of line) {
      const words = `${name}: ${panel.title} ${within(mean, half)} at ${short(paid)} (${panel.axes[axis]})`;
      drawing.append(mark(look, [along(paid), up(mean)], words, said));
    }
  }
  const rows = lines.flatMap(([name, line]) => line.map(([paid, mean, half]) => [name, short(paid), within(mean, half)]));
  const note = html("p", { class: "soft" }, panel.said);
  const table = values(["method", panel.axes[axis], panel.title], rows);
  holder.replaceChildren(drawing, said, key(lines.map(([name]) => name), looks, true), note, table);
}

function drawLedger(holder, ledger, chargedOnly, keep) {
  const rows = Object.entries(ledger.bars).filter(([name]) => keep(name));
  if (!rows.length) return holder.replaceChildren("No method that is shown has a ledger.");
  const accounts = ledger.accounts.map((name, i) => ({ name, i, charged: ledger.charged.includes(name) }));
  const shown = accounts.filter((account) => account.charged || !chargedOnly);
  const width = Math.max(280, holder.clientWidth || 640), step = 44, left = 4, top = 8;
  const most = Math.max(...rows.map(([, bar]) => shown.reduce((sum, account) => sum + bar[account.i], 0))) || 1;
  const height = top + rows.length * step + 40;
  const along = (v) => left + (v / most) * (width - left - 30);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `ledger in ${ledger.unit}` });
  const defs = svg("defs", {});
  accounts.forEach(({ i }) => {
    const stripes = svg("path", { d: "M-1,1l2,-2M0,6l6,-6M5,7l2,-2", stroke: "currentColor", "stroke-width": 2 });
    defs.append(svg("pattern", { id: `hatch${i}`, class: `k${i % 8}`, width: 6, height: 6, patternUnits: "userSpaceOnUse" }, stripes));
  });
  drawing.append(defs);
  for (const v of ticks(0, most, width / 110)) {
    drawing.append(svg("line", { class: "axis", x1: along(v), x2: along(v), y1: top, y2: height - 36 }));
    drawing.append(svg("text", { x: along(v), y: height - 20, "text-anchor": v ? "middle" : "start" }, short(v)));
  }
  drawing.append(svg("text", { class: "faint", x: width / 2, y: height - 2, "text-anchor": "middle" }, `time, ${ledger.unit}`));
  const said = html("p", { class: "said", "aria-live": "polite" });
  rows.forEach(([name, bar], row) => {
    drawing.append(svg("text", { x: left, y: top + row * step + 14 }, name));
    let from = 0;
    for (const { name: account, i, charged } of shown) {
      if (!(bar[i] > 0)) continue;
      const words = `${name}: ${account}${charged ? " (charged)" : ""} ${short(bar[i])} ${ledger.unit}`;
      const size = { x: along(from), y: top + row * step + 19, width: along(from + bar[i]) - along(from), height: 18, class: `bar k${i % 8}`, fill: charged ? "currentColor" : `url(#hatch${i})` };
      const box = svg("rect", { ...size, tabindex: "0", role: "img", "aria-label": words }, svg("title", {}, words));
      for (const event of ["focus", "pointerenter"]) box.addEventListener(event, () => (said.textContent = words));
      drawing.append(box);
      from += bar[i];
    }
  });
  const items = shown.map(({ name, i, charged }) => {
    const fill = charged ? "currentColor" : `url(#hatch${i})`;
    const swatch = svg("svg", { class: `k${i % 8}`, viewBox: "0 0 34 14", "aria-hidden": "true" }, svg("rect", { width: 34, height: 14, fill }));
    return html("li", {}, swatch, ` ${name}${charged ? " (charged)" : ""}`);
  });
  const table = values(
    ["method", ...shown.map(({ name }) => `${name}, ${ledger.unit}`)],
    rows.map(([name, bar]) => [name, ...shown.map(({ i }) => short(bar[i]))])
  );
  holder.replaceChildren(drawing, said, html("ul", { class: "key" }, ...items), table);
}
