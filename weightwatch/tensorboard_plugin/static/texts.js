// What the page says in words: the state of the runs, alerts, the largest values, and what to do where nothing is.

import { alertsOf } from "./lines.js";
import { ordered } from "./heatmap.js";
import { make, METRICS, printable, put, signed } from "./page.js";

const ROWS = 10;

export function drawStatus(page, { chosen, overview, runs }) {
  const paragraphs = chosen.filter((run) => run.checks).map((run) => {
    const told = [`${printable(run.name)}: step ${run.step}, ${count(run.checks)} checks, newest at ${run.time.slice(0, 19).replace("T", " ")} UTC.`];
    if (run.sampled) told.push(`${Math.round(100 * run.share)} % of its record is read. Until all is, a sample of checks at even distances is shown.`);
    else if (run.share < 1) told.push(`${Math.round(100 * run.share)} % of its record is read.`);
    const drawn = runs.find((each) => each.name === run.name)?.figures;
    if (drawn && !drawn.sampled && drawn.checks > drawn.most) {
      told.push(`Of its ${count(drawn.checks)} checks, ${drawn.most} are drawn: of each stretch, the one with the largest absolute value.`);
    }
    return make("p", {}, told.join(" "));
  });
  const notes = chosen.flatMap((run) => run.notes.map((note) => make("p", {}, `${printable(run.name)}: ${note}`)));
  const elsewhere = overview.runs.length ? hints(overview) : [];
  const links = overview.links.map((link) => make("p", {}, `${link} leads out of the log dir and is not followed.`));
  put(page.status, ...paragraphs, ...notes, ...elsewhere, ...links);
}

export function drawEmpty(page, view) {
  const { overview, chosen, runs, direction } = view;
  const said = [];
  if (!overview.runs.length) {
    if (!overview.searched) said.push(make("p", {}, `Searching for runs in ${overview.log_dirs.join(", ")} …`));
    else if (overview.elsewhere.length) said.push(make("h2", {}, "The record of this run is not in the log dir"), ...hints(overview));
    else said.push(make("h2", {}, "No run of weightwatch"), ...howTo(overview));
  } else if (!chosen.length) said.push(make("p", {}, "Choose a run above."));
  for (const run of chosen) {
    if (runs.some((each) => each.name === run.name)) continue;
    const name = printable(run.name);
    if (run.share < 1) said.push(make("p", {}, `${name}: ${Math.round(100 * run.share)} % of its record is read.`));
    else if (!run.checks) said.push(make("p", {}, `${name} has no check yet. A run has its first one before its first step.`));
    else if (!run.directions.includes(direction)) said.push(make("p", {}, `${name} does not watch ${printable(direction)}. Its directions: ${run.directions.map(printable).join(", ")}.`));
    else if (run.step === 0) said.push(make("p", {}, `${name} has only the check of step 0, at which nothing has moved. The next one follows.`));
    else said.push(make("p", {}, `${name} has no such figure of ${printable(direction)}.`));
  }
  put(page.empty, ...said);
}

function howTo({ log_dirs: folders }) {
  const where = folders.length ? `There is none in ${folders.join(", ")}.` : "The log dir is not on a disk of this machine.";
  return [
    make("p", {}, `${where} A watched run writes its readings to <output_dir>/weightwatch, so start TensorBoard with the output folder:`),
    make("pre", {}, "tensorboard --logdir <output_dir>"),
  ];
}

function hints({ elsewhere }) {
  return elsewhere.flatMap(({ events, output }) => [
    make("p", {}, `${events} has the events of a run. The tab reads its record, which lies in the output folder. This shows both:`),
    make("pre", {}, `tensorboard --logdir ${output === null ? "<output_dir>" : quoted(output)}`),
  ]);
}

function quoted(path) {
  return /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
}

export function drawAlerts(page, { runs, direction }) {
  const items = runs.flatMap((run) => alertsOf(run, direction).map((alert) => make("li", {}, `${printable(run.name)}: ${alert.text}`)));
  const rules = [...new Set(runs.flatMap((run) => run.rules).filter((rule) => rule.direction === direction && !rule.whole).map(partly))];
  const none = runs.some((run) => run.rules.some((rule) => rule.direction === direction)) ? "None has fired." : "No rule is about this direction.";
  put(
    page.alerts,
    make("h2", {}, "Alerts"),
    items.length ? make("ol", {}, ...items) : make("p", {}, none),
    rules.length ? make("p", {}, `Rules about parts of the model, or over a baseline, whose thresholds are not in the chart: ${rules.join("; ")}.`) : "",
  );
}

function partly({ alert, metric, above, threshold }) {
  return `${printable(alert)} (${METRICS[metric]} ${above ? "above" : "below"} ${threshold})`;
}

export function drawLargest(page, view) {
  const found = view.runs.flatMap((run) => {
    const map = run.figures[view.kind];
    return ordered(map, view).map((row) => ({ run: run.name, part: map.parts[row], value: map.largest[row], at: map.largest_at[row], newest: map.newest[row] }));
  });
  found.sort((a, b) => Math.abs(b.value ?? 0) - Math.abs(a.value ?? 0));
  const what = view.kind === "layers" ? "layer" : "kind of module";
  const cells = (tag, values) => make("tr", {}, ...values.map((value) => make(tag, { scope: tag === "th" ? "col" : "" }, String(value))));
  const rows = found.slice(0, ROWS).map(({ run, part, value, at, newest }) => cells("td", [printable(run), part, signed(value), at, signed(newest)]));
  put(
    page.largest,
    make("h2", {}, `Largest ${METRICS[view.metric]}, by absolute value`),
    make("table", {}, make("thead", {}, cells("th", ["run", what, "largest", "at step", "newest"])), make("tbody", {}, ...rows)),
  );
}

function count(number) {
  return number.toLocaleString("en");
}
