// The page of the tab: what is chosen, and keeping it up to date. TensorBoard calls render().

import { drawLines } from "./lines.js";
import { drawMap } from "./heatmap.js";
import { buildPage, fillOptions, fillRuns, put } from "./page.js";
import { drawAlerts, drawEmpty, drawLargest, drawStatus } from "./texts.js";
import { followTheme } from "./theme.js";

const LIVE = 3000, READING = 1000; // milliseconds between two looks, in rest and while a record is being read
const REMEMBERED = 48;

const state = { overview: null, chosen: null, direction: null, metric: "reach_cosine", kind: "layers", order: "position", filter: "" };
const remembered = new Map();
let page, newest = 0;

export async function render() {
  const plotly = load("plotly.min.js");
  page = buildPage(choose);
  followTheme(page.dark, () => page.shown && draw());
  const first = look();
  await plotly;
  await first;
  await draw();
  performance.mark("weightwatch-ready"); // for benchmarks/tab.py
  again();
}

function load(source) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    Object.assign(script, { src: source, onload: resolve, onerror: () => reject(new Error(`${source} can't be loaded`)) });
    document.head.append(script);
  });
}

function again() {
  const busy = state.overview?.runs.some((run) => state.chosen.has(run.name) && run.share < 1) || !state.overview?.searched;
  setTimeout(async () => {
    if (!document.hidden && document.documentElement.clientWidth) { // the width of a tab behind another one is zero
      const before = JSON.stringify(state.overview);
      await look();
      if (state.stale || JSON.stringify(state.overview) !== before) await draw();
    }
    again();
  }, busy ? READING : LIVE);
}

async function look() {
  try {
    state.overview = await json("runs");
    put(page.problem, "");
  } catch (error) {
    put(page.problem, `TensorBoard does not answer (${error.message}). The page tries again.`);
    return;
  }
  const { runs } = state.overview;
  if (state.chosen === null || (!state.chosen.size && !state.touched)) {
    state.chosen = new Set(runs.filter((run) => run.shown).map((run) => run.name));
  }
  const chosen = selected();
  const directions = [...new Set(chosen.flatMap((run) => run.directions))];
  const controls = new Set(chosen.flatMap((run) => run.controls));
  const watched = directions.filter((name) => !controls.has(name));
  if (directions.length && !directions.includes(state.direction)) state.direction = watched[0] ?? directions[0];
  const metrics = [...new Set(chosen.flatMap((run) => run.metrics))];
  if (metrics.length && !metrics.includes(state.metric)) state.metric = metrics[0];
  fillRuns(page.runs, runs, state.chosen, choose);
  fillOptions(page.direction, { "": watched, controls: directions.filter((name) => controls.has(name)) }, state.direction);
  fillOptions(page.metric, { "": metrics }, state.metric);
}

function selected() {
  return state.overview ? state.overview.runs.filter((run) => state.chosen.has(run.name)) : [];
}

async function choose(change) {
  page.main.dataset.state = "busy";
  if ("run" in change) {
    state.chosen[change.on ? "add" : "delete"](change.run);
    state.touched = true;
    await look();
  } else Object.assign(state, change);
  await draw(false);
}

// What is fresh is fetched; else what was fetched before is good enough until the next look.
async function draw(fresh = true) {
  const mine = ++newest;
  if (!state.overview || !window.Plotly) return;
  const runs = selected();
  let found;
  try {
    found = await Promise.all(runs.map((run) => figures(run, state.direction, fresh)));
  } catch (error) {
    put(page.problem, `The figures can't be fetched (${error.message}). The page tries again.`);
    return;
  }
  if (mine !== newest) return; // something else was chosen meanwhile
  const shown = runs.map((run, place) => ({ ...run, figures: found[place] })).filter((run) => run.figures.line.values.some((value) => value !== null));
  const view = { ...state, runs: shown, chosen: runs };
  drawStatus(page, view);
  drawEmpty(page, view);
  page.figures.hidden = !shown.length;
  if (shown.length) {
    drawLines(page.lines, view);
    drawMap(page, view);
    drawAlerts(page, view);
    drawLargest(page, view);
  }
  page.shown = shown.length > 0;
  state.stale = shown.some((run) => run.figures.version !== run.version);
  page.main.dataset.state = "ready";
  fetchAhead(mine, shown);
}

// Fetches the other directions, so that they are there when they are chosen.
async function fetchAhead(mine, runs) {
  if (runs.some((run) => run.share < 1)) return; // the server has other work
  for (const run of runs) {
    for (const direction of run.directions) {
      await new Promise((resolve) => requestIdleCallback(resolve));
      if (mine !== newest) return;
      await figures(run, direction, false).catch(() => {}); // it is fetched again when it is chosen
    }
  }
}

async function figures(run, direction, fresh) {
  const { metric } = state;
  const key = JSON.stringify([run.name, direction, metric]);
  const known = remembered.get(key);
  if (known && (!fresh || known.version === run.version)) return known;
  const query = new URLSearchParams({ run: run.name, direction: direction ?? "", metric });
  const found = await json(`figures?${query}`);
  for (const kind of ["layers", "modules"]) {
    found[kind].values = rows(found[kind].values, found[kind]);
    found[kind].z = found[kind].z && rows(found[kind].z, found[kind]);
  }
  remembered.delete(key);
  if (found.line.steps.length) remembered.set(key, found);
  if (remembered.size > REMEMBERED) remembered.delete(remembered.keys().next().value);
  return found;
}

// float32 in base64, parts × checks, as one array a part
function rows(text, { parts, steps }) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at++) bytes[at] = letters.charCodeAt(at); // Uint8Array.from is ten times slower
  const all = new Float32Array(bytes.buffer);
  return parts.map((_, part) => all.subarray(part * steps.length, (part + 1) * steps.length));
}

async function json(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  return answer.json();
}
