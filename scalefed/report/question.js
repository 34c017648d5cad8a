// Which question does the page ask, and how is it written elsewhere: in the address, in Python, in the shell?
"use strict";

const byId = (id) => document.getElementById(id);
const data = readNumbers(byId("numbers").textContent);
const GOALS = { compute: "Best for a compute budget", loss: "Least compute for a loss", pass_at_k: "Least compute for a share of problems" };
const ALL = data.controls ? [data.controls.compute, ...data.controls.goals, ...data.controls.setting, ...data.controls.limits] : [];
const CONTROL = Object.fromEntries(ALL.map((control) => [control.name, control]));
const PAIR = { participation: "clients_per_round", clients_per_round: "participation" };

// What the page opens with: the question that Python was asked, or the one in the address.
function firstQuestion() {
  const ask = { ...data.question };
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, text] of given) {
    const value = Number(text);
    if (!Number.isFinite(value) || text === "") continue;
    if (CONTROL[name]?.column) ask.columns = { ...ask.columns, [name]: value };
    else if (CONTROL[name] || name === "k" || name === "level") {
      if (PAIR[name]) delete ask[PAIR[name]];
      if (GOALS[name]) for (const other of Object.keys(GOALS)) if (other !== name) delete ask[other];
      ask[name] = value;
    }
  }
  if (!data.quantiles[ask.level]) ask.level = data.level;
  return ask;
}

// What a control shows: what is asked, or else what was taken for granted.
function valueOf(ask, control) {
  const given = data.setting.given, clients = ask.clients ?? given.clients;
  const cohort = ask.clients_per_round ?? (ask.participation === undefined ? given.clients_per_round : ask.participation * clients);
  if (control.column) return ask.columns?.[control.name] ?? control.value;
  if (control.name === "participation") return ask.participation ?? cohort / clients;
  if (control.name === "clients_per_round") return cohort;
  return ask[control.name] ?? given[control.name];
}

function setValue(control, value) {
  const name = control.name;
  if (control.column) ask.columns = { ...ask.columns, [name]: value };
  else if (value === undefined) delete ask[name];
  else {
    // who moves one of the three says the others too
    const cohort = valueOf(ask, CONTROL.clients_per_round ?? {});
    if (name === "clients" && ask.participation === undefined && cohort) ask.clients_per_round = Math.min(cohort, value);
    if (PAIR[name]) {
      delete ask[PAIR[name]];
      if (CONTROL.clients) ask.clients ??= data.setting.given.clients ?? Math.max(cohort, 1);
    }
    ask[name] = value;
  }
}

// The question in the address: what differs from nothing, so that a link says all of it.
function addressOf(ask) {
  const parts = new URLSearchParams();
  for (const [name, value] of Object.entries(ask)) {
    if (name === "columns") for (const [own, one] of Object.entries(value)) parts.set(own, String(one));
    else if (typeof value === "number") parts.set(name, String(value));
  }
  return `#${parts}`;
}

const number = (value) => String(Number(value.toPrecision(6)));

// The same question for Python and for the shell.
function asPython(ask) {
  const goal = goalOf(ask), limits = LIMITS.some((name) => name !== "compute" && ask[name] !== undefined);
  const call = goal ? "least_compute" : limits ? "plan" : "optimal_size";
  const parts = Object.entries(ask).filter(([name]) => name !== "columns" && !(name === "k" && goal?.name !== "pass_at_k")).map(([name, value]) => `${name}=${typeof value === "number" ? number(value) : JSON.stringify(value)}`);
  if (ask.columns) parts.push(`columns={${Object.entries(ask.columns).map(([name, value]) => `"${name}": ${number(value)}`).join(", ")}}`);
  return `import scalefed as sf\n\nfit = ${data.source.python}\nprint(fit.${call}(${parts.join(", ")}))\n`;
}

function asShell(ask) {
  const words = [`scalefed optimum ${data.source.shell}`];
  const options = { compute: "--compute", loss: "--loss", pass_at_k: "--pass", level: "--level" };
  if (goalOf(ask)?.name === "pass_at_k") options.k = "--k";
  for (const [name, option] of Object.entries(options)) if (ask[name] !== undefined) words.push(`${option} ${number(ask[name])}`);
  for (const [name, value] of Object.entries(ask)) {
    if (options[name] || name === "k" || name === "columns") continue;
    words.push(`${name}=${typeof value === "number" ? number(value) : `'${value}'`}`);
  }
  return words.join(" ");
}

let ask = firstQuestion();
