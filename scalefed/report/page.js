// The page itself: the answer, charts that follow it, and what can be taken out.
"use strict";

// ---------------------------------------------------------------------- the answer
let last = null, context = null, waiting = 0;

function range(answer, name, write) {
  const [low, high] = [answer[`${name}_low`], answer[`${name}_high`]];
  return Number.isFinite(low) ? ` (${write(low)} to ${write(high)})` : "";
}

function factsOf(answer) {
  const short = (value) => words.g(value, 3), found = [];
  const add = (value, text) => found.push([value, text]);
  if (goalOf(ask)) add(words.power(answer.compute), "FLOPs needed, all clients");
  add(words.count(answer.tokens), `training tokens in all${range(answer, "tokens", words.count)}`);
  if (Number.isFinite(answer.rounds)) add(words.count(answer.rounds), `rounds${range(answer, "rounds", words.count)}`);
  add(words.g(answer.tokens / answer.params, 3), "tokens per parameter");
  add(words.four(answer.loss), `predicted ${data.target_told}${range(answer, "loss", words.four)}`);
  for (const [k, [value, low, high]] of Object.entries(answer.pass_at_k))
    add(short(value), `predicted pass@${k} (${short(low)} to ${short(high)})`);
  if (Number.isFinite(answer.bytes_sent)) {
    const clients = context.setting.given.clients;
    const each = clients ? `, ${words.bytes(answer.bytes_sent / clients)} a client` : "";
    add(words.bytes(answer.bytes_sent), `on the wire in all${each}`);
  }
  if (Number.isFinite(answer.memory)) add(words.bytes(answer.memory), "memory of a client, embedding not counted");
  return found;
}

function sentences(answer) {
  const found = [];
  const held = answer.binding.map((name) => `${LIMIT_WORDS[name]} (1% more saves ${words.grouped(answer.shadow_prices[name], 2)} ${data.short_unit})`);
  if (held.length) found.push(`Held back by ${held.join(" and ")}.`);
  if (answer.regret > 0) found.push(`If the law holds, this size costs at most ${words.grouped(answer.regret, 2)} ${data.target_unit} more than the truly best one, with ${words.share(answer.level)} probability.`);
  for (const note of answer.notes) { // a column's name is written as it is
    const first = /^[a-z]+_/.test(note) ? note[0] : note[0].toUpperCase();
    found.push(`${first}${note.slice(1)}${/[.!?]$/.test(note) ? "" : "."}`);
  }
  return found;
}

function tell(answer) {
  const ends = Number.isFinite(answer.params_low) ? `${words.share(answer.level)} interval ${words.count(answer.params_low)} to ${words.count(answer.params_high)}, given ${data.given}` : "no interval, as the fit has no replicates";
  byId("lead").textContent = `Train ${words.count(answer.params)} parameters`;
  byId("range").textContent = `${ends}; non-embedding`;
  byId("facts").replaceChildren(...factsOf(answer).map(([value, text]) => make("div", {}, make("b", { text: value }), make("span", { text }))));
  byId("notes").replaceChildren(...sentences(answer).map((text) => make("li", { text })));
  byId("answer").classList.remove("none");
  said(`Train ${words.count(answer.params)} parameters, ${ends}.`);
}

function refuse(message) {
  byId("lead").textContent = "No size can be recommended";
  byId("range").textContent = message;
  byId("facts").replaceChildren();
  byId("notes").replaceChildren();
  byId("answer").classList.add("none");
  said(`No size can be recommended: ${message}`);
}

// On a narrow screen the answer stands at the bottom while its card is out of sight.
function showBar() {
  byId("bar").firstChild.textContent = byId("lead").textContent;
  byId("bar").lastChild.textContent = byId("range").textContent;
}

// Told to screen readers once the question has rested.
let speaking = 0;
function said(text) {
  showBar();
  clearTimeout(speaking);
  speaking = setTimeout(() => (byId("live").textContent = text), 600);
}

function changed() {
  last = null;
  try {
    last = plan(data, ask);
    const setting = settingOf(data, ask), limits = limitsOf({ ...ask, compute: goalOf(ask) ? last.compute : ask.compute }, setting, data.law.columns.includes("unique_tokens"));
    context = { data, ask, answer: last, setting, limits, rows: rowsFor(data, setting), level: last.level };
    tell(last);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    context = null;
    refuse(error.message);
  }
  shown.forEach((refresh) => refresh());
  byId("python").textContent = asPython(ask);
  byId("shell").textContent = asShell(ask);
  try {
    history.replaceState(null, "", addressOf(ask));
  } catch {
    // a page that may not change its address still answers
  }
  drawSoon();
}

// ---------------------------------------------------------------------- charts
const seen = new Set(), drawn = {};

function look() {
  const paper = printing || !matchMedia("(prefers-color-scheme: dark)").matches;
  return data.theme[paper ? "light" : "dark"];
}

function drawOne(name) {
  const host = byId(`plot-${name}`), figure = host.closest("figure"), chart = CHARTS[name];
  const why = figure.querySelector(".why");
  try {
    if (chart.moves && !context) throw new Refusal("there is no answer to draw");
    const spec = chart.make(context || { data, ask }, look());
    drawPlot(host, spec, look());
    figure.querySelector("figcaption").textContent = spec.name;
    figure.querySelector(".about").textContent = spec.about;
    drawn[name] = spec;
    why.hidden = true;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    host.replaceChildren();
    delete drawn[name];
    why.textContent = `Not drawn: ${error.message}.`;
    why.hidden = false;
  }
  figure.querySelectorAll(".tools button").forEach((button) => (button.disabled = !drawn[name]));
  const table = figure.querySelector(".numbers");
  if (!table.hidden) showTable(name, table);
}

// The chart in view follows at once, the others when the question rests for a moment.
function drawSoon() {
  clearTimeout(waiting);
  const moving = [...seen].filter((name) => CHARTS[name].moves);
  if (moving.includes("size")) drawOne("size");
  waiting = setTimeout(() => moving.filter((name) => name !== "size").forEach(drawOne), 120);
}

function showTable(name, host) {
  const { columns, rows } = drawn[name].table;
  const cell = (value) => (typeof value === "number" ? (Number.isFinite(value) ? (Math.abs(value) >= 1e4 ? words.count(value) : words.four(value)) : "") : String(value ?? ""));
  const head = make("tr", {}, ...columns.map((column) => make("th", { scope: "col", text: column.replaceAll("_", " ") })));
  const body = rows.slice(0, 400).map((row) => make("tr", {}, ...row.map((value) => make("td", { class: typeof value === "number" ? "n" : "", text: cell(value) }))));
  host.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

function buildCharts() {
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries)
      if (entry.isIntersecting && !seen.has(entry.target.dataset.name)) {
        seen.add(entry.target.dataset.name);
        drawOne(entry.target.dataset.name);
      }
  }, { rootMargin: "300px" });
  for (const figure of document.querySelectorAll("figure[data-name]")) {
    const name = figure.dataset.name, host = byId(`plot-${name}`), table = figure.querySelector(".numbers");
    const button = (text, label, act) => make("button", { type: "button", text, "aria-label": `${label}: ${figure.dataset.title}`, onclick: act });
    figure.querySelector(".tools").append(
      button("Numbers", "Show the numbers", (event) => {
        table.hidden = !table.hidden;
        event.target.setAttribute("aria-expanded", String(!table.hidden));
        if (!table.hidden) showTable(name, table);
      }),
      button("CSV", "Save as CSV", () => save(new Blob([csvText(drawn[name].table)], { type: "text/csv" }), `${name}.csv`)),
      button("SVG", "Save as SVG", () => save(new Blob([svgText(host, look().card)], { type: "image/svg+xml" }), `${name}.svg`)),
      button("PNG", "Save as PNG", () => savePng(host, look().card, `${name}.png`)),
    );
    watch.observe(figure);
  }
}

function drawAll() {
  for (const figure of document.querySelectorAll("figure[data-name]")) {
    seen.add(figure.dataset.name);
    drawOne(figure.dataset.name);
  }
}

// Printing draws everything on white, and unfolds what is folded.
let printing = false;
addEventListener("beforeprint", () => {
  printing = true;
  begin();
  drawAll();
  document.querySelectorAll("details.unfold").forEach((one) => (one.open = true));
});
addEventListener("afterprint", () => {
  printing = false;
  [...seen].forEach(drawOne);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => [...seen].forEach(drawOne));
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) [...seen].forEach(drawOne);
  width = innerWidth;
});

// ---------------------------------------------------------------------- taken out
async function copy(id, button) {
  const text = byId(id).textContent, before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId(id));
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => (button.textContent = before), 1500);
}

function answerTable() {
  const names = ["params", "tokens", "rounds", "loss", "compute", "local_steps", "bytes_sent", "memory"];
  const rows = names.filter((name) => Number.isFinite(last[name])).map((name) => [name, last[name], last[`${name}_low`], last[`${name}_high`]]);
  for (const [k, values] of Object.entries(last.pass_at_k)) rows.push([`pass_at_${k}`, ...values]);
  for (const [name, value] of Object.entries(ask)) if (typeof value === "number") rows.push([`asked ${name}`, value]);
  return { columns: ["quantity", "estimate", "low", "high"], rows };
}

// The page is written with its answer, so that it is read and the sliders stand before the law of every replicate is
// compiled; an address with a question of its own is answered at once.
let begun = false, settle;
const settled = new Promise((resolve) => (settle = resolve));

function begin() {
  if (begun) return;
  begun = true;
  if (!data.refused) changed();
  buildCharts();
  performance.mark("answered");
  settle(true);
}

function start() {
  if (!data.refused) {
    buildControls();
    shown.forEach((refresh) => refresh());
    for (const name of ["python", "shell"]) byId(`copy-${name}`).addEventListener("click", (event) => copy(name, event.target));
    byId("answer-csv").addEventListener("click", () => last && save(new Blob([csvText(answerTable())], { type: "text/csv" }), "answer.csv"));
    addEventListener("hashchange", () => {
      ask = firstQuestion();
      buildControls();
      changed();
    });
  }
  new IntersectionObserver(([entry]) => (byId("bar").hidden = entry.isIntersecting || data.refused !== null)).observe(byId("answer"));
  if (location.hash || document.hidden) begin();
  else addEventListener("load", () => requestAnimationFrame(() => setTimeout(begin)));
}

start();
