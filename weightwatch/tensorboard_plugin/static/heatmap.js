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
    drawOne(figure.lastChild, { ...each, most, what, metric, cell: page.cell });
  });
  put(page.cell, "Point at a cell, or go to a heat map with Tab and move with the arrow keys, for its value and z.");
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

function drawOne(plot, { run, map, rows, most, what, metric, cell }) {
  plot.hidden = !rows.length;
  if (!rows.length) return;
  const names = rows.map((row) => (what === "layer" ? `layer ${map.parts[row]}` : map.parts[row]));
  const told = (row, column) => {
    const z = map.z && metric !== "z" ? `, z ${signed(map.z[rows[row]][column], 2)}` : "";
    const value = signed(map.values[rows[row]][column]);
    return `${printable(run.name)}, ${names[row]}, step ${map.steps[column]}: ${METRICS[metric]} ${value}${z}`;
  };
  const withZ = map.z && metric !== "z";
  const trace = {
    type: "heatmap",
    x: map.steps,
    y: rows.map((_, row) => row),
    z: rows.map((row) => map.values[row]),
    customdata: withZ ? rows.map((row) => map.z[row]) : undefined,
    zmin: -most,
    zmax: most,
    colorscale: colours().scale,
    colorbar: { title: { text: METRICS[metric], side: "right" }, thickness: 12, tickformat: "+.3~g" },
    hoverongaps: false,
    hovertemplate: `%{y}<br>step %{x}<br>${METRICS[metric]} %{z:+.4f}${withZ ? "<br>z %{customdata:+.2f}" : ""}<extra></extra>`,
  };
  const every = Math.ceil(rows.length / 40);
  const ticks = rows.map((_, row) => row).filter((row) => row % every === 0);
  const drawn = layout({
    height: Math.min(820, Math.max(190, 70 + 16 * rows.length)),
    margin: { l: 40, r: 8, t: 8, b: 36 },
    xaxis: { title: { text: "step" }, showgrid: false },
    yaxis: { autorange: "reversed", showgrid: false, zeroline: false, tickmode: "array", tickvals: ticks, ticktext: ticks.map((row) => plain(names[row])) },
    annotations: largest(map, rows),
  });
  trace.text = undefined;
  trace.y = rows.map((_, row) => row);
  window.Plotly.react(plot, [trace], drawn, CONFIG);
  plot.setAttribute("aria-label", `Heat map of ${run.name}: ${rows.length} rows, ${map.steps.length} steps. Arrow keys move from cell to cell.`);
  plot.at = null;
  plot.size = [rows.length, map.steps.length];
  plot.steps = map.steps;
  plot.tell = (row, column) => put(cell, told(row, column));
  plot.removeAllListeners("plotly_hover");
  plot.on("plotly_hover", ({ points }) => plot.tell(...points[0].pointNumber));
}

// The largest value is written into the map, so that its sign is readable without colours.
function largest(map, rows) {
  const row = rows.reduce((most, each) => (Math.abs(map.largest[each] ?? 0) > Math.abs(map.largest[most] ?? 0) ? each : most), rows[0]);
  if (!map.largest[row]) return [];
  const { text, grid } = colours();
  const at = map.largest_at[row];
  const right = at > (map.steps[0] + map.steps.at(-1)) / 2;
  return [{ x: at, y: rows.indexOf(row), text: signed(map.largest[row]), ax: right ? -44 : 44, ay: rows.indexOf(row) < 2 ? 24 : -24, arrowcolor: text, font: { color: text }, bgcolor: grid, borderpad: 2 }];
}

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function move(plot, event) {
  const by = MOVES[event.key];
  if (!by || !plot.tell) return;
  event.preventDefault();
  const [height, width] = plot.size;
  const [row, column] = plot.at ? [plot.at[0] + by[0], plot.at[1] + by[1]] : [0, width - 1];
  plot.at = [Math.min(height - 1, Math.max(0, row)), Math.min(width - 1, Math.max(0, column))];
  window.Plotly.Fx.hover(plot, { xval: plot.steps[plot.at[1]], yval: plot.at[0] });
  plot.tell(...plot.at);
}
