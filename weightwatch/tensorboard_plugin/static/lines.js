// The figure of the whole model over the steps: a line for each run, the range of the controls, thresholds, alerts
// and checkpoints.

import { METRICS, plain, signed } from "./page.js";
import { colours, CONFIG, DASHES, layout, MARKERS } from "./theme.js";

const FEW = 60; // checks up to which each one has a marker

export function drawLines(plot, view) {
  const { direction, metric, runs } = view;
  const what = METRICS[metric];
  const fired = runs.flatMap((run) => alertsOf(run, direction).map((alert) => ({ ...alert, run: run.name })));
  const layers = { shapes: thresholds(runs, direction, metric), annotations: [] };
  for (const alert of fired) layers.shapes.push(upright(alert));
  for (const rule of ruled(runs, direction, metric)) layers.annotations.push(label(rule));
  const traces = [...runs.flatMap(band), ...runs.map(line), ...runs.map(checkpoints), fired.length ? alertMarks(fired, runs) : null];
  window.Plotly.react(
    plot,
    traces.filter(Boolean),
    layout({
      title: { text: `${plain(direction)}: ${what}`, x: 0, xanchor: "left", font: { size: 15 } },
      height: 380,
      xaxis: { title: { text: "step" } },
      yaxis: { title: { text: what }, zeroline: true },
      yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
      legend: { orientation: "h", y: -0.24 },
      margin: { l: 56, r: 16, t: 40, b: 40 },
      ...layers,
    }),
    CONFIG,
  );
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", `${direction}, ${what} over the steps: ${runs.map(summary).join("; ")}`);
}

export function alertsOf(run, direction) {
  return run.alerts.filter((alert) => alert.direction === direction);
}

function line(run, place) {
  const { steps, values, checkpoints: names } = run.figures.line;
  const colour = colours().runs[place % colours().runs.length];
  return {
    x: steps,
    y: values,
    text: names.map((name) => (name ? `<br>${plain(name)}` : "")),
    name: plain(run.name),
    mode: steps.length > FEW ? "lines" : "lines+markers",
    line: { color: colour, dash: DASHES[place % DASHES.length], width: 2 },
    marker: { symbol: MARKERS[place % MARKERS.length], size: 7, color: colour },
    connectgaps: false,
    hovertemplate: "step %{x}: %{y:.4f}%{text}",
  };
}

function band(run, place) {
  const { steps, low, high } = run.figures.line;
  if (!low) return [];
  const colour = colours().runs[place % colours().runs.length];
  const edge = { mode: "lines", line: { width: 1, dash: "dot", color: colour }, hoverinfo: "skip", legendgroup: `band ${place}` };
  return [
    { ...edge, x: steps, y: high, showlegend: false },
    { ...edge, x: steps, y: low, fill: "tonexty", fillcolor: colours().band, name: `null band: range of the controls of ${plain(run.name)}` },
  ];
}

function checkpoints(run, place) {
  const found = run.figures.checkpoints;
  if (!found.length) return null;
  const colour = colours().runs[place % colours().runs.length];
  return {
    x: found.map((each) => each.step),
    y: found.map(() => 0.015 + 0.03 * place),
    yaxis: "y2",
    mode: "markers",
    marker: { symbol: "triangle-up-open", size: 9, color: colour, line: { width: 1.5 } },
    text: found.map((each) => plain(each.name)),
    name: `checkpoints of ${plain(run.name)}`,
    hovertemplate: "%{text}, step %{x}<extra></extra>",
  };
}

function alertMarks(fired, runs) {
  return {
    x: fired.map((alert) => alert.step),
    y: fired.map((_, place) => 0.96 - 0.07 * (place % 8)), // labels of alerts at about one step stand below each other
    yaxis: "y2",
    mode: "markers+text",
    marker: { symbol: fired.map((alert) => (alert.state === "firing" ? "triangle-down" : "circle-open")), size: 12, color: colours().alert },
    text: fired.map((alert) => `${alert.state === "firing" ? "ALERT" : "resolved"} ${plain(alert.alert)}${runs.length > 1 ? ` (${plain(alert.run)})` : ""}`),
    textposition: fired.map((alert) => (alert.step > middle(runs) ? "middle left" : "middle right")),
    textfont: { color: colours().alert },
    hovertext: fired.map((alert) => wrapped(plain(alert.text))),
    hovertemplate: "%{hovertext}<extra></extra>",
    name: "alerts",
    showlegend: false,
  };
}

function middle(runs) {
  return Math.max(...runs.map((run) => run.step ?? 0)) / 2;
}

function wrapped(text) {
  return text.replace(/(.{60,80}?) /g, "$1<br>");
}

function upright(alert) {
  const style = { color: colours().alert, width: 1, dash: alert.state === "firing" ? "dash" : "dot" };
  return { type: "line", x0: alert.step, x1: alert.step, yref: "paper", y0: 0, y1: 1, line: style };
}

// Rules of several runs that are alike are drawn once.
function ruled(runs, direction, metric) {
  const found = runs.flatMap((run) => run.rules).filter((rule) => rule.whole && rule.direction === direction && rule.metric === metric);
  return [...new Map(found.map((rule) => [JSON.stringify([rule.alert, rule.threshold, rule.above]), rule])).values()];
}

function thresholds(runs, direction, metric) {
  const style = { color: colours().text, width: 1.5, dash: "longdash" };
  return ruled(runs, direction, metric).map(({ threshold }) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: threshold, y1: threshold, line: style }));
}

function label({ alert, threshold, above }) {
  const text = `${plain(alert)}: ${above ? "above" : "below"} ${threshold}`;
  return { xref: "paper", x: 0, xanchor: "left", y: threshold, yanchor: "bottom", text, showarrow: false, font: { color: colours().text } };
}

function summary(run) {
  const known = run.figures.line.values.filter((value) => value !== null);
  const largest = known.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), known[0]);
  return `${run.name} ends at ${signed(known.at(-1))}, furthest ${signed(largest)}`;
}
