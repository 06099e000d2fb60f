// The parts of the model over the steps: a heat map for each run, on one scale.

import { make, METRICS, plain, printable, put, signed } from "./page.js";
import { colours, CONFIG, layout } from "./theme.js";

export function drawMap(page, view) {
  const { kind, metric, runs, direction } = view;
  const what = kind === "layers" ? "layer" : "kind of module";
  const shown = runs.map((run) => ({ run, map: run.figures[kind], rows: ordered(run.figures[kind], view) }));
  const most = Math.max(...shown.flatMap(({ map, rows }) => rows.map((row) => Math.abs(map.largest[row] ?? 0)))) || 1;
  page.mapTitle.textContent = `${printable(direction)}: ${METRICS[metric]} by ${what}`;
  while (page.maps.children.length > shown.length) {
    window.Plotly.purge(page.maps.lastChild.lastChild);
    page.maps.lastChild.remove();
  }
  while (page.maps.children.length < shown.length) page.maps.append(make("figure", {}, make("figcaption"), frame()));
  shown.forEach((each, place) => {
    const figure = page.maps.children[place];
    figure.firstChild.textContent = caption(each, view, what);
    drawOne(figure.lastChild, { ...each, most, what, metric, cell: page.cell, tip: page.tip });
  });
  put(page.cell, "Point at a cell, or go to a heat map with Tab and move with the arrow keys, for its value and z.");
  const within = shown.findIndex((_, place) => page.maps.children[place].lastChild === document.activeElement);
  if (within >= 0) stay(page.maps.children[within].lastChild);
}

// The numbers of the rows that the filter leaves, in order.
export function ordered(map, { filter, order }) {
  const words = filter.toLowerCase().split(",").map((word) => word.trim()).filter(Boolean);
  const rows = map.parts.map((_, row) => row).filter((row) => !words.length || words.some((word) => map.parts[row].toLowerCase().includes(word)));
  if (order === "size") rows.sort((a, b) => Math.abs(map.largest[b] ?? 0) - Math.abs(map.largest[a] ?? 0));
  return rows;
}

function caption({ run, map, rows }, { filter }, what) {
  const count = rows.length === map.parts.length ? `${rows.length}` : `${rows.length} of ${map.parts.length}`;
  if (!map.parts.length) return `${printable(run.name)}: its record has no ${what}`;
  if (!rows.length) return `${printable(run.name)}: no ${what} has “${printable(filter)}” in its name`;
  return `${printable(run.name)}: ${count} ${what === "layer" ? "layers" : "kinds of module"}`;
}

function frame() {
  const plot = make("div", { className: "plot map", tabIndex: 0 });
  plot.setAttribute("role", "application");
  plot.addEventListener("keydown", (event) => move(plot, event));
  return plot;
}

function drawOne(plot, { run, map, rows, most, what, metric, cell, tip }) {
  plot.hidden = !rows.length;
  if (!rows.length) return;
  const names = rows.map((row) => (what === "layer" ? `layer ${map.parts[row]}` : map.parts[row]));
  const told = (row, column) => {
    const z = map.z && metric !== "z" ? `, z ${signed(map.z[rows[row]][column], 2)}` : "";
    const value = signed(map.values[rows[row]][column]);
    return `${printable(run.name)}, ${names[row]}, step ${map.steps[column]}: ${METRICS[metric]} ${value}${z}`;
  };
  const numbers = (list) => list.map((_, place) => place);
  // Rows and columns of one size are drawn many times faster, and each column stands for as many checks as any other.
  const trace = {
    type: "heatmap",
    x: numbers(map.steps),
    y: numbers(rows),
    z: rows.map((row) => map.values[row]),
    zmin: -most,
    zmax: most,
    colorscale: colours().scale,
    colorbar: { title: { text: METRICS[metric], side: "right" }, thickness: 12, tickformat: "+.3~g" },
    hoverinfo: "none", // the tip beside the pointer has z too
  };
  const axis = { showgrid: false, zeroline: false };
  const drawn = layout({
    height: Math.min(820, Math.max(190, 70 + 16 * rows.length)),
    margin: { l: 40, r: 8, t: 8, b: 36 },
    xaxis: { ...axis, range: [-0.5, map.steps.length - 0.5], title: { text: "step" }, ...ticks(map.steps, 8) },
    yaxis: { ...axis, range: [rows.length - 0.5, -0.5], ...ticks(names.map(plain), 40) },
    annotations: largest(map, rows),
  });
  window.Plotly.react(plot, [trace], drawn, CONFIG);
  plot.setAttribute("aria-label", `Heat map of ${run.name}: ${rows.length} rows, ${map.steps.length} steps. Arrow keys move from cell to cell.`);
  plot.size = [rows.length, map.steps.length];
  plot.tell = (row, column) => put(cell, told(row, column));
  plot.removeAllListeners("plotly_hover");
  plot.on("plotly_hover", ({ points, event }) => {
    plot.tell(...points[0].pointNumber);
    showTip(tip, cell.textContent, plot, event);
  });
  plot.removeAllListeners("plotly_unhover");
  plot.on("plotly_unhover", () => put(tip));
}

// Labels of some places of an axis, at even distances.
function ticks(labels, most) {
  const every = Math.ceil(labels.length / most);
  const places = labels.map((_, place) => place).filter((place) => place % every === 0);
  return { tickmode: "array", tickvals: places, ticktext: places.map((place) => String(labels[place])) };
}

function showTip(tip, text, plot, event) {
  put(tip, ...text.split(", ").map((part) => make("div", { textContent: part })));
  const around = plot.getBoundingClientRect();
  const { clientX: x, clientY: y } = event?.clientX === undefined ? { clientX: around.left, clientY: around.top } : event;
  tip.style.left = `${Math.min(x + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(y + 14, innerHeight - tip.offsetHeight - 8)}px`;
}

// The largest value is written into the map, so that its sign is readable without colours.
function largest(map, rows) {
  const row = rows.reduce((most, each) => (Math.abs(map.largest[each] ?? 0) > Math.abs(map.largest[most] ?? 0) ? each : most), rows[0]);
  if (!map.largest[row]) return [];
  const { text, grid } = colours();
  const at = map.largest_at[row];
  const column = map.steps.reduce((near, step, place) => (Math.abs(step - at) < Math.abs(map.steps[near] - at) ? place : near), 0);
  const right = column > map.steps.length / 2;
  return [{ x: column, y: rows.indexOf(row), text: signed(map.largest[row]), ax: right ? -44 : 44, ay: rows.indexOf(row) < 2 ? 24 : -24, arrowcolor: text, font: { color: text }, bgcolor: grid, borderpad: 2 }];
}

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function move(plot, event) {
  const by = MOVES[event.key];
  if (!by || !plot.tell) return;
  event.preventDefault();
  const [height, width] = plot.size;
  const [row, column] = plot.at ? [plot.at[0] + by[0], plot.at[1] + by[1]] : [0, width - 1];
  plot.at = [Math.min(height - 1, Math.max(0, row)), Math.min(width - 1, Math.max(0, column))];
  outline(plot);
  plot.tell(...plot.at);
}

// Stays at the cell, if it is there still, when the map is drawn anew.
function stay(plot) {
  if (!plot.at || plot.at[0] >= plot.size[0] || plot.at[1] >= plot.size[1]) plot.at = null;
  else {
    outline(plot);
    plot.tell(...plot.at);
  }
}

// Marks the cell that the keyboard is at.
function outline(plot) {
  const [row, column] = plot.at;
  const line = { color: colours().text, width: 2 };
  const edge = Math.max(0.5, plot.size[1] / 200); // wide enough to be seen
  window.Plotly.relayout(plot, { shapes: [{ type: "rect", x0: column - edge, x1: column + edge, y0: row - 0.5, y1: row + 0.5, line }] });
}
