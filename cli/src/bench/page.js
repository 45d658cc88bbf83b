"use strict";
// Draws the report's series as SVG, anew at each change of width. Points are thinned to one per pixel, which keeps peaks.
const data = JSON.parse(document.getElementById("data").textContent);
const NS = "http://www.w3.org/2000/svg";
const MARGIN = { left: 46, right: 8, bottom: 22 };
const LETTERS = { upgrade: "U", canary: "C", rollback: "R", kill: "K", hang: "H" };
const tip = document.getElementById("tip");
// An interval stands at its middle.
const width_s = data.timeline.length > 1 ? (data.timeline[1].at_ms - data.timeline[0].at_ms) / 1000 : 1;
const end_s = Math.max(1, ...data.timeline.slice(-1).map((p) => p.at_ms / 1000 + width_s), ...data.cpu_timeline.slice(-1).map((p) => p.at_ms / 1000));

for (const p of data.timeline) p.at_ms += width_s * 500;

const charts = [
  {
    id: "latency", height: 300, top: 22, log: true, unit: " ms", points: data.timeline,
    series: [
      { name: "max", color: "--max", width: 1, value: (p) => p.max_ms, thin: Math.max },
      { name: "p99", color: "--p99", width: 1.4, value: (p) => p.p99_ms, thin: Math.max },
      { name: "p50", color: "--p50", width: 1.8, value: (p) => p.p50_ms, thin: Math.max },
    ],
  },
  {
    id: "rate", height: 140, top: 8, unit: "/s", points: data.timeline.slice(0, -1),
    series: [
      { name: "replies that came", color: "--p99", width: 1.2, value: (p) => p.replies / width_s, thin: Math.max },
      { name: "requests due", color: "--p50", width: 1.6, value: (p) => p.sent / width_s, thin: (a, b) => (a + b) / 2 },
    ],
  },
  {
    id: "cpu", height: 140, top: 8, unit: " cores", points: data.cpu_timeline,
    series: [
      { name: "whole machine", color: "--max", width: 1, value: (p) => p.machine, thin: Math.max },
      ...["frontend", "backend", "service", "generator"].map((name) => (
        { name: name === "backend" ? "backends" : name, color: "--" + name, width: 1.5, value: (p) => p[name], thin: Math.max })),
    ],
  },
];

function add(parent, name, attributes, text) {
  const node = document.createElementNS(NS, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}

function clock(s) {
  if (s < 60) return (Math.round(s * 10) / 10) + " s";
  const m = Math.floor(s / 60);
  return m + ":" + String(Math.floor(s % 60)).padStart(2, "0");
}

function short(v) {
  if (v >= 1000) return Math.round(v / 100) / 10 + "k";
  return v >= 100 ? String(Math.round(v)) : v >= 1 ? String(Math.round(v * 10) / 10) : String(Math.round(v * 100) / 100);
}

function timeStep(pixels) {
  const wanted = end_s / Math.max(2, pixels / 90);
  return [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200].find((s) => s >= wanted) || 14400;
}

function scale(chart) {
  let most = 0, least = Infinity;
  for (const p of chart.points) for (const s of chart.series) {
    const v = s.value(p);
    if (v > 0) { most = Math.max(most, v); least = Math.min(least, v); }
  }
  if (!chart.log) {
    const rough = (most || 1) / 3, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((n) => n * power >= rough);
    const top = Math.ceil((most || 1) / step) * step, ticks = [];
    for (let v = 0; v <= top * 1.001; v += step) ticks.push(v);
    return { at: (v) => v / top, ticks };
  }
  if (!isFinite(least)) { least = 1; most = 10; }
  const low = Math.floor(Math.log10(least)), high = Math.max(low + 1, Math.ceil(Math.log10(most)));
  const ticks = [];
  for (let e = low; e <= high; e++) ticks.push(10 ** e);
  return { at: (v) => (Math.log10(Math.max(v, 10 ** low)) - low) / (high - low), ticks };
}

// One value per pixel column; `null` breaks the line.
function thinned(points, series, x) {
  const found = [];
  for (const p of points) {
    const column = Math.round(x(p.at_ms / 1000)), value = series.value(p);
    const last = found[found.length - 1];
    if (last && last[0] === column) last[1] = value == null ? last[1] : last[1] == null ? value : series.thin(last[1], value);
    else found.push([column, value == null ? null : value]);
  }
  return found;
}

function line(found, y) {
  let d = "", pen = false;
  for (const [x, v] of found) {
    if (v === null) { pen = false; continue; }
    d += (pen ? "L" : "M") + x + " " + y(v).toFixed(1);
    pen = true;
  }
  return d;
}

function drawEvents(svg, chart, x, bottom) {
  let lastLetter = -Infinity;
  for (const e of data.events) {
    const from = x(e.at_ms / 1000), to = x((e.at_ms + e.settled_ms) / 1000), color = `var(--${e.kind})`;
    add(svg, "rect", { x: from, y: chart.top, width: Math.max(1, to - from), height: bottom - chart.top, fill: color, opacity: 0.16 });
    if (chart.id === "latency") {
      const node = add(svg, "g", {});
      add(node, "title", {}, `${e.kind} at ${clock(e.at_ms / 1000)}: ${e.outcome}; took ${e.took_ms} ms; p99 ${e.p99_ms} ms, max ${e.max_ms} ms`);
      if (from - lastLetter >= 17) {
        lastLetter = from;
        add(node, "rect", { x: from - 7, y: 2, width: 14, height: 15, rx: 4, fill: e.as_planned ? color : "var(--bad)" });
        add(node, "text", { x: from, y: 13.5, "text-anchor": "middle", style: "fill:var(--card);font-weight:700;font-size:10px" }, LETTERS[e.kind] + (e.as_planned ? "" : "!"));
      } else {
        add(node, "rect", { x: from - 1, y: 8, width: 2, height: 9, fill: e.as_planned ? color : "var(--bad)" });
      }
    }
  }
}

function draw(chart) {
  const box = document.getElementById(chart.id);
  const width = Math.max(260, box.clientWidth), height = chart.height;
  box.textContent = "";
  const svg = add(box, "svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": chart.id + " over time" });
  const bottom = height - MARGIN.bottom, right = width - MARGIN.right;
  const x = (s) => MARGIN.left + (right - MARGIN.left) * s / end_s;
  const { at, ticks } = scale(chart);
  const y = (v) => bottom - (bottom - chart.top) * Math.min(1, at(v));
  drawEvents(svg, chart, x, bottom);
  for (const v of ticks) {
    add(svg, "line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(v), y2: y(v) });
    add(svg, "text", { x: MARGIN.left - 6, y: y(v) + 4, "text-anchor": "end" }, short(v));
  }
  const step = timeStep(width);
  for (let s = 0; s <= end_s; s += step) {
    add(svg, "text", { x: x(s), y: height - 6, "text-anchor": s === 0 ? "start" : "middle" }, clock(s));
  }
  for (const s of chart.series) {
    add(svg, "path", { d: line(thinned(chart.points, s, x), y), stroke: `var(${s.color})`, "stroke-width": s.width });
  }
  const cursor = add(svg, "line", { class: "cursor", y1: chart.top, y2: bottom, visibility: "hidden" });
  const point = (event) => {
    const left = svg.getBoundingClientRect().left;
    const s = Math.min(end_s, Math.max(0, (event.clientX - left - MARGIN.left) / (right - MARGIN.left) * end_s));
    cursor.setAttribute("x1", x(s));
    cursor.setAttribute("x2", x(s));
    cursor.setAttribute("visibility", "visible");
    tell(chart, s, event);
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); tip.style.display = "none"; });
}

function tell(chart, s, event) {
  const ms = s * 1000;
  const nearest = chart.points.reduce((best, p) => (!best || Math.abs(p.at_ms - ms) < Math.abs(best.at_ms - ms) ? p : best), null);
  const grace = end_s * 1000 * 0.006;
  const met = data.events.find((e) => ms >= e.at_ms - grace && ms <= e.at_ms + e.settled_ms + grace);
  const lines = [clock(s)];
  if (nearest) for (const series of chart.series.slice().reverse()) {
    const v = series.value(nearest);
    if (v != null) lines.push(`${series.name} ${short(v)}${chart.unit}`);
  }
  if (met) lines.push(`${met.kind}: ${met.outcome}`, `took ${met.took_ms} ms; ${met.requests} requests met it`);
  tip.textContent = "";
  lines.forEach((text, i) => {
    const node = document.createElement(i === 0 ? "b" : "div");
    node.textContent = text;
    tip.appendChild(node);
  });
  tip.style.display = "block";
  tip.style.left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 12) + "px";
}

function legends() {
  const entry = (legend, color, text, letter) => {
    const node = document.createElement("span"), mark = document.createElement("i");
    mark.style.background = `var(${color})`;
    if (letter) { mark.className = "letter"; mark.textContent = letter; }
    node.append(mark, text);
    legend.appendChild(node);
  };
  for (const chart of charts) {
    const legend = document.getElementById(chart.id + "-legend");
    for (const s of chart.series.slice().reverse()) entry(legend, s.color, s.name);
    if (chart.id === "latency") for (const k of data.kinds) entry(legend, "--" + k.kind, `${k.kind} (${k.events})`, LETTERS[k.kind]);
  }
}

legends();
const all = () => charts.forEach(draw);
all();
window.addEventListener("resize", all);
document.documentElement.dataset.drawn = "yes";
