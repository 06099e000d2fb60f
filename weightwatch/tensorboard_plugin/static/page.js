// The elements of the page. Names come from records: they are set as text, never as HTML.

export const METRICS = { cosine: "cosine", reach_cosine: "reach cosine", dose: "dose", z: "z", over_controls: "over controls", over_baseline: "over the baseline" };

const INVISIBLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cs}\p{Cn}]/gu;

// A name with visible escapes for control characters and marks that turn the direction of writing.
export function printable(name) {
  return String(name).replace(INVISIBLE, (letter) => {
    const code = letter.codePointAt(0);
    return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u{${code.toString(16)}}`;
  });
}

// The same for plotly, which reads some tags and entities in its texts.
export function plain(name) {
  return printable(name).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

export function signed(value, digits = 4) {
  if (value === null || Number.isNaN(value)) return "not recorded";
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(Math.abs(value) < 100 ? digits : 1)}`;
}

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function put(element, ...children) {
  element.replaceChildren(...children.filter((child) => child !== ""));
  element.hidden = !element.childNodes.length;
}

export function buildPage(choose) {
  document.documentElement.lang = "en";
  document.title = "WeightWatch";
  document.head.append(make("link", { rel: "stylesheet", href: "style.css" }));
  const page = {
    runs: make("div", { className: "runs" }),
    direction: make("select", { id: "direction", onchange: (event) => choose({ direction: event.target.value }) }),
    metric: make("select", { id: "metric", onchange: (event) => choose({ metric: event.target.value }) }),
    kind: make("select", { id: "rows", onchange: (event) => choose({ kind: event.target.value }) }),
    order: make("select", { id: "order", onchange: (event) => choose({ order: event.target.value }) }),
    filter: make("input", { id: "filter", type: "search", placeholder: "q_proj, mlp", oninput: (event) => choose({ filter: event.target.value }) }),
    dark: make("button", { id: "dark", type: "button", textContent: "Dark" }),
    problem: make("p", { className: "problem", role: "alert", hidden: true }),
    status: make("div", { id: "status" }),
    empty: make("section", { id: "empty", hidden: true }),
    lines: make("div", { id: "lines", className: "plot" }),
    mapTitle: make("h2"),
    maps: make("div", { id: "maps" }),
    cell: make("p", { id: "cell" }),
    tip: make("div", { id: "tip", hidden: true }),
    alerts: make("section", { id: "alerts" }),
    largest: make("section", { id: "largest" }),
  };
  page.status.setAttribute("role", "status");
  page.cell.setAttribute("aria-live", "polite");
  fillOptions(page.kind, { "": ["layers", "modules"] }, "layers", { layers: "layers", modules: "kinds of module" });
  fillOptions(page.order, { "": ["position", "size"] }, "position", { position: "position", size: "largest |value|" });
  page.figures = make("div", { hidden: true }, page.lines, page.mapTitle, page.maps, page.cell, page.alerts, page.largest);
  const field = (text, control) => make("label", {}, make("span", { textContent: text }), control);
  const controls = make(
    "form",
    { onsubmit: (event) => event.preventDefault() },
    make("fieldset", {}, make("legend", { textContent: "Runs" }), page.runs),
    field("Direction", page.direction),
    field("Figure", page.metric),
    field("Rows", page.kind),
    field("Order", page.order),
    field("Filter", page.filter),
    page.dark,
  );
  page.main = make("main", {}, page.problem, page.empty, page.figures, page.status);
  page.main.dataset.state = "busy";
  document.body.append(make("header", {}, controls), page.main, page.tip);
  return page;
}

export function fillOptions(select, groups, chosen, names = METRICS) {
  const now = JSON.stringify(groups);
  if (select.dataset.options !== now) {
    select.dataset.options = now;
    const option = (value) => make("option", { value, textContent: Object.hasOwn(names, value) ? names[value] : printable(value) });
    const filled = Object.entries(groups).filter(([, values]) => values.length);
    select.replaceChildren(...filled.flatMap(([label, values]) => (label ? [make("optgroup", { label }, ...values.map(option))] : values.map(option))));
  }
  select.value = chosen;
}

export function fillRuns(box, runs, chosen, choose) {
  const now = JSON.stringify(runs.map((run) => run.name));
  if (box.dataset.names !== now) {
    box.dataset.names = now;
    box.replaceChildren(
      ...runs.map((run) => {
        const tick = make("input", { type: "checkbox", value: run.name, onchange: (event) => choose({ run: run.name, on: event.target.checked }) });
        return make("label", { title: run.record }, tick, printable(run.name));
      }),
    );
  }
  for (const tick of box.querySelectorAll("input")) tick.checked = chosen.has(tick.value);
}
