// How is a chart drawn? Lines, bands and points between two axes, as an SVG that scales, speaks and can be saved.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const LETTER = 6.4; // pixels of a letter at 12 pixels, on average
const FONT = 'Inter, "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif';

function element(name, attributes = {}, ...inside) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}

// Round numbers between two ends: powers of ten and their parts on a log axis, steps of 1, 2 or 5 on a linear one.
function ticksOf(axis, most) {
  if (axis.values) return axis.values.filter((value) => value >= axis.low && value <= axis.high);
  if (!axis.log) {
    const rough = (axis.high - axis.low) / most, ten = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * ten).find((s) => s >= rough * 0.999);
    const first = Math.ceil(axis.low / step - 1e-9);
    const found = [];
    for (let i = first; i * step <= axis.high * (1 + 1e-9) + 1e-12; i++) found.push(Number((i * step).toPrecision(12)));
    return found;
  }
  const from = Math.floor(Math.log10(axis.low)), to = Math.ceil(Math.log10(axis.high));
  const fine = Array.from({ length: 90 }, (_, i) => (10 + i) / 10);
  let found = [];
  for (const parts of [fine, [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8], [1, 2, 3, 4, 5, 7], [1, 2, 3, 5], [1, 2, 5], [1, 3], [1]]) {
    found = [];
    for (let e = from; e <= to; e++)
      for (const part of parts) {
        const tick = Number((part * 10 ** e).toPrecision(6));
        if (tick >= axis.low * 0.9999 && tick <= axis.high * 1.0001) found.push(tick);
      }
    if (found.length <= most) return found;
  }
  const every = Math.ceil(found.length / most);
  return found.filter((_, i) => i % every === 0);
}

function tickText(axis, value) {
  if (axis.style === "power") return words.power(value);
  if (axis.style === "count") return words.count(value);
  return words.g(value, 4);
}

// A scale from values to pixels.
function scaleOf(axis, from, to) {
  const turn = axis.log ? Math.log : (x) => x;
  const low = turn(axis.low), high = turn(axis.high);
  return (value) => from + ((turn(value) - low) / (high - low)) * (to - from);
}

// The ends of an axis about values, with some room.
function axisOver(values, options) {
  const kept = values.filter((value) => Number.isFinite(value) && (!options.log || value > 0));
  let low = Math.min(...kept), high = Math.max(...kept);
  if (options.log) {
    const room = Math.max(Math.log(high / low) * 0.05, 0.05);
    [low, high] = [low * Math.exp(-room), high * Math.exp(room)];
  } else {
    const room = (high - low) * 0.05 || 1;
    [low, high] = [options.zero ? Math.min(0, low) : low - room, high + room];
  }
  return { low, high, ...options };
}

// A legend in lines that fit, above the plot.
function legendOf(items, width, look) {
  const group = element("g");
  let x = 0, y = 10;
  for (const item of items) {
    const wide = 22 + item.label.length * LETTER + 14;
    if (x > 0 && x + wide > width) [x, y] = [0, y + 18];
    if (item.kind === "line") group.append(element("line", { x1: x, x2: x + 14, y1: y, y2: y, stroke: item.color, "stroke-width": 2.5 }));
    else group.append(element("circle", { cx: x + 7, cy: y, r: 5, fill: item.color }));
    group.append(element("text", { x: x + 20, y: y + 4, "font-size": 12, fill: look.soft }, item.label));
    x += wide;
  }
  return { group, height: items.length ? y + 14 : 0 };
}

function axesOf(spec, box, scales, look) {
  const group = element("g", { "font-size": 12, fill: look.soft });
  const most = Math.max(2, Math.floor((box.right - box.left) / (spec.x.style === "power" ? 62 : 54)));
  for (const tick of ticksOf(spec.x, most)) {
    const x = scales.x(tick);
    group.append(element("line", { x1: x, x2: x, y1: box.top, y2: box.bottom, stroke: look.grid }));
    group.append(element("text", { x, y: box.bottom + 17, "text-anchor": "middle" }, tickText(spec.x, tick)));
  }
  for (const tick of ticksOf(spec.y, Math.max(3, Math.floor((box.bottom - box.top) / 40)))) {
    const y = scales.y(tick);
    group.append(element("line", { x1: box.left, x2: box.right, y1: y, y2: y, stroke: look.grid }));
    group.append(element("text", { x: box.left - 7, y: y + 4, "text-anchor": "end" }, tickText(spec.y, tick)));
  }
  group.append(element("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, stroke: look.soft }));
  const name = { fill: look.ink, "font-weight": 500 };
  group.append(element("text", { x: (box.left + box.right) / 2, y: box.bottom + 38, "text-anchor": "middle", ...name }, spec.x.title));
  group.append(element("text", { x: 0, y: box.top - 10, ...name }, spec.y.title));
  return group;
}

function pathOf(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");
}

const SHAPES = {
  circle: (x, y) => element("circle", { cx: x, cy: y, r: 3.6 }),
  diamond: (x, y) => element("path", { d: `M${x},${y - 7}L${x + 7},${y}L${x},${y + 7}L${x - 7},${y}Z` }),
};

// One mark of a chart: band, line, points, span, rule, ticks or label.
function markOf(mark, box, scales, look) {
  const color = mark.color || look.main;
  if (mark.kind === "band") {
    const upper = mark.points.map(([x, , high]) => [scales.x(x), scales.y(high)]);
    const lower = mark.points.map(([x, low]) => [scales.x(x), scales.y(low)]).reverse();
    return element("path", { d: `${pathOf([...upper, ...lower])}Z`, fill: color, opacity: 0.16 });
  }
  if (mark.kind === "line") {
    const path = pathOf(mark.points.map(([x, y]) => [scales.x(x), scales.y(y)]));
    return element("path", { d: path, fill: "none", stroke: color, "stroke-width": mark.wide || 2, "stroke-linejoin": "round" });
  }
  if (mark.kind === "points") {
    const group = element("g", { fill: color, stroke: color, opacity: mark.points.length > 150 ? 0.45 : 1 });
    for (const point of mark.points) {
      const x = scales.x(point.x), y = scales.y(point.y);
      if (Number.isFinite(point.low))
        group.append(element("line", { x1: x, x2: x, y1: scales.y(point.low), y2: scales.y(point.high), "stroke-width": 1.3, opacity: 0.6 }));
      const shape = SHAPES[mark.shape || "circle"](x, y);
      if (mark.shape === "diamond") shape.setAttribute("stroke", look.card);
      else shape.setAttribute("stroke", "none");
      group.append(shape);
    }
    return group;
  }
  if (mark.kind === "span") {
    const low = Math.max(scales.x(mark.low), box.left), high = Math.min(scales.x(mark.high), box.right);
    return element("rect", { x: low, y: box.top, width: Math.max(high - low, 1), height: box.bottom - box.top, fill: color, opacity: 0.14 });
  }
  if (mark.kind === "rule") {
    const [x1, x2, y1, y2] = mark.x === undefined
      ? [box.left, box.right, scales.y(mark.y), scales.y(mark.y)]
      : [scales.x(mark.x), scales.x(mark.x), box.top, box.bottom];
    return element("line", { x1, x2, y1, y2, stroke: color, "stroke-width": 1.4, "stroke-dasharray": mark.dash ? "4 4" : "none" });
  }
  const group = element("g", { stroke: color, "stroke-width": 2 });
  for (const x of mark.values)
    group.append(element("line", { x1: scales.x(x), x2: scales.x(x), y1: box.bottom - 8, y2: box.bottom }));
  return group;
}

// Draws a chart into a host element.
function drawPlot(host, spec, look) {
  const width = Math.max(host.clientWidth || 640, 260), narrow = width < 480;
  const legend = legendOf(spec.legend || [], width, look);
  const labels = ticksOf(spec.y, 8).map((tick) => tickText(spec.y, tick).length);
  const box = { left: Math.max(...labels, 2) * 7 + 12, right: width - 14, top: legend.height + 30 };
  box.bottom = box.top + (narrow ? 230 : 290);
  const height = box.bottom + 48;
  const scales = { x: scaleOf(spec.x, box.left, box.right), y: scaleOf(spec.y, box.bottom, box.top) };
  const clip = `clip-${host.id}`;
  const frame = element("rect", { x: box.left, y: box.top - 1, width: box.right - box.left + 8, height: box.bottom - box.top + 1 });
  const marks = element("g", { "clip-path": `url(#${clip})` });
  for (const mark of spec.marks) marks.append(markOf(mark, box, scales, look));
  const drawing = element(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", tabindex: 0, "aria-label": `${spec.name}. ${spec.says}`, "font-family": FONT },
    element("clipPath", { id: clip }, frame),
    legend.group,
    axesOf(spec, box, scales, look),
    marks,
  );
  const focused = host.contains(document.activeElement);
  host.replaceChildren(drawing);
  if (focused) drawing.focus();
  listen(host, drawing, spec, scales, { width, height, look });
}

// Pointing at a chart, or walking along it with the arrow keys, tells what the nearest point says.
function listen(host, drawing, spec, scales, size) {
  const points = spec.told || [];
  if (!points.length) return;
  const note = document.createElement("div");
  note.className = "tip";
  note.hidden = true;
  note.setAttribute("role", "status");
  const ring = element("circle", { r: 7, fill: "none", stroke: size.look.ink, "stroke-width": 1.5, visibility: "hidden" });
  drawing.append(ring);
  host.append(note);
  let at = -1;
  const show = (index) => {
    at = index;
    const point = points[index], x = scales.x(point.x), y = scales.y(point.y);
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    ring.setAttribute("visibility", "visible");
    note.textContent = point.text;
    note.hidden = false;
    const ratio = host.clientWidth / size.width;
    note.style.left = `${Math.min(Math.max(x * ratio + 12, 0), Math.max(host.clientWidth - note.offsetWidth - 4, 0))}px`;
    note.style.top = `${Math.max(y * ratio - note.offsetHeight - 12, 0)}px`;
  };
  const hide = () => {
    note.hidden = true;
    ring.setAttribute("visibility", "hidden");
  };
  drawing.addEventListener("pointermove", (event) => {
    const frame = drawing.getBoundingClientRect(), ratio = size.width / frame.width;
    const x = (event.clientX - frame.left) * ratio, y = (event.clientY - frame.top) * ratio;
    let best = -1, least = 40 ** 2;
    points.forEach((point, i) => {
      const away = (scales.x(point.x) - x) ** 2 + (scales.y(point.y) - y) ** 2;
      if (away < least) [best, least] = [i, away];
    });
    if (best >= 0) show(best);
    else hide();
  });
  drawing.addEventListener("pointerleave", hide);
  drawing.addEventListener("blur", hide);
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") hide();
    if (step === undefined) return;
    event.preventDefault();
    show(Math.min(Math.max((at < 0 ? (step > 0 ? -1 : points.length) : at) + step, 0), points.length - 1));
  });
}

// ---------------------------------------------------------------------- taken out
function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 5000);
}

function svgText(host, ground) {
  const drawing = host.querySelector("svg").cloneNode(true);
  const [, , width, height] = drawing.getAttribute("viewBox").split(" ");
  drawing.setAttribute("width", width);
  drawing.setAttribute("height", height);
  drawing.prepend(element("rect", { width, height, fill: ground }));
  return new XMLSerializer().serializeToString(drawing);
}

function savePng(host, ground, name) {
  const picture = new Image(), drawing = host.querySelector("svg").viewBox.baseVal;
  picture.onload = () => {
    const canvas = document.createElement("canvas");
    canvas.width = drawing.width * 2;
    canvas.height = drawing.height * 2;
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => save(blob, name));
  };
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svgText(host, ground))}`;
}

// A table as CSV; cells that a spreadsheet would take for a formula are kept as text.
function csvText(table) {
  const cell = (value) => {
    const text = value === null || value === undefined || Number.isNaN(value) ? "" : String(value);
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [table.columns, ...table.rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
