// What does a reader move? A slider and a box for every number of the question. All words are set as text, never as markup.
"use strict";

function make(name, attributes = {}, ...inside) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") node.textContent = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...inside);
  return node;
}

const shown = [];

// A slider and a box for one number; an optional one may be left blank.
function controlFor(control, optional) {
  const turn = control.log ? Math.log10 : (x) => x, back = control.log ? (x) => 10 ** x : (x) => x;
  const id = `control-${control.name}`, name = control.unit ? `${control.label} (${control.unit})` : control.label;
  const box = make("input", { id, type: "text", inputmode: "decimal", autocomplete: "off", size: 9, placeholder: optional ? "none" : "" });
  const slider = make("input", {
    type: "range", "aria-label": name, tabindex: 0, min: turn(control.low), max: turn(control.high),
    step: control.log ? 0.01 : (control.high - control.low) / 100,
  });
  const refresh = () => {
    const value = valueOf(ask, control), units = value === undefined ? undefined : value / control.factor;
    if (document.activeElement !== box) box.value = units === undefined || !Number.isFinite(units) ? "" : control.name === "compute" ? words.g(units, 4).replace("e+", "e") : words.g(units, 6).replace("e+", "e");
    box.removeAttribute("aria-invalid");
    if (document.activeElement !== slider) slider.value = units ? turn(Math.min(Math.max(units, control.low), control.high)) : control.log ? turn(control.low) : units ?? control.low;
    slider.setAttribute("aria-valuetext", units === undefined ? "no limit" : `${control.name === "compute" ? words.power(units) : words.count(units)} ${control.unit}`.trim());
    slider.classList.toggle("unset", units === undefined);
  };
  const take = (units) => {
    const value = units === undefined ? undefined : (control.whole && control.name !== "clients_per_round" ? Math.round(units) : units) * control.factor;
    setValue(control, value);
    changed();
  };
  slider.addEventListener("input", () => {
    const units = back(Number(slider.value));
    const most = control.name === "clients_per_round" ? Math.min(units, valueOf(ask, CONTROL.clients)) : units;
    take(control.whole ? Math.max(Math.round(most), 1) : Number(most.toPrecision(3)));
  });
  box.addEventListener("input", () => {
    const text = box.value.trim().replaceAll("_", "").replaceAll(",", "");
    const units = readNumber(text);
    if (text === "" && optional) return take(undefined);
    if (units === undefined || units < 0 || (units === 0 && control.log)) return box.setAttribute("aria-invalid", "true");
    box.removeAttribute("aria-invalid");
    take(units);
  });
  box.addEventListener("blur", refresh);
  slider.addEventListener("blur", refresh);
  shown.push(refresh);
  const label = make("label", { for: id, text: control.label });
  const unit = make("span", { class: "unit", text: control.unit });
  const help = control.help ? [make("small", { id: `${id}-help`, text: control.help })] : [];
  if (control.help) box.setAttribute("aria-describedby", `${id}-help`);
  return make("div", { class: "control", "data-name": control.name }, label, make("div", { class: "row" }, slider, box, unit), ...help);
}

// A number as people write it: 3e12, 2.5M, 24k.
function readNumber(text) {
  const found = /^([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([kKmMgGbBtT]?)$/i.exec(text);
  if (!found) return undefined;
  const times = { k: 1e3, m: 1e6, g: 1e9, b: 1e9, t: 1e12, "": 1 }[found[2].toLowerCase()];
  return Number(found[1]) * times;
}

function choiceFor(id, label, options, value, pick) {
  const select = make("select", { id, onchange: () => pick(select.value) }, ...options.map(([key, text]) => make("option", { value: key, text, selected: key === value })));
  return make("div", { class: "control" }, make("label", { for: id, text: label }), make("div", { class: "row" }, select));
}

function buildControls() {
  const goal = goalOf(ask)?.name || "compute", controls = data.controls;
  shown.length = 0;
  const goals = [["compute", GOALS.compute], ...controls.goals.map((one) => [one.name, GOALS[one.name]])];
  const first = make("div", { class: "controls" }, choiceFor("goal", "The question", goals, goal, setGoal));
  first.append(controlFor(goal === "compute" ? controls.compute : CONTROL[goal], false));
  if (goal === "pass_at_k") first.append(choiceFor("k", "Tries at a problem", [1, 10, 100].map((k) => [String(k), String(k)]), String(ask.k || 1), (k) => ((ask.k = Number(k)), changed())));
  controls.setting.forEach((control) => first.append(controlFor(control, false)));
  const levels = Object.keys(data.quantiles).sort().map((level) => [level, words.share(Number(level))]);
  first.append(choiceFor("level", "Coverage of intervals", levels, String(ask.level), (level) => ((ask.level = Number(level)), changed())));
  const limits = make("div", { class: "controls" }, ...controls.limits.map((control) => controlFor(control, true)));
  const more = make("details", { class: "limits" }, make("summary", { text: "Other limits" }), limits);
  more.open = controls.limits.some((control) => ask[control.name] !== undefined);
  byId("controls").replaceChildren(first, more);
}

function setGoal(goal) {
  const compute = last?.compute;
  for (const name of Object.keys(GOALS)) delete ask[name];
  delete ask.k;
  if (goal === "compute") ask.compute = Number((compute || data.controls.compute.value).toPrecision(3));
  else ask[goal] = CONTROL[goal].value * CONTROL[goal].factor;
  if (goal === "pass_at_k") ask.k = 1;
  buildControls();
  byId("goal").focus();
  changed();
}
