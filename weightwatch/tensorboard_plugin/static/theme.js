// Light and dark: TensorBoard's own theme, or else the system's, until the button is pressed.

const COLOURS = {
  light: {
    text: "#1f2328", faint: "#57606a", grid: "#d8dee4", band: "rgba(87,96,106,0.18)", alert: "#a40e26",
    runs: ["#0072b2", "#d55e00", "#007a5a", "#a8447f", "#7a5c00", "#4b4fc9"],
    scale: [[0, "#2166ac"], [0.25, "#92c5de"], [0.5, "#f7f7f7"], [0.75, "#f4a582"], [1, "#b2182b"]],
  },
  dark: {
    text: "#e6edf3", faint: "#9da7b1", grid: "#3a424c", band: "rgba(157,167,177,0.22)", alert: "#ff8f8f",
    runs: ["#58b4f0", "#f2a05a", "#3fcf9f", "#e79ac8", "#e3c93b", "#a9adff"],
    scale: [[0, "#6cb2ff"], [0.25, "#2f639c"], [0.5, "#20262d"], [0.75, "#a8552c"], [1, "#ffa566"]],
  },
};

export const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
export const MARKERS = ["circle", "square", "diamond", "cross", "triangle-up", "star"];

let pressed = null;

export function colours() {
  return COLOURS[document.documentElement.dataset.theme] ?? COLOURS.light;
}

export function followTheme(button, changed) {
  const around = window.parent === window ? null : window.parent.document.body;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const dark = pressed ?? (around ? around.classList.contains("dark-mode") : system.matches);
    button.setAttribute("aria-pressed", String(dark));
    const theme = dark ? "dark" : "light";
    if (document.documentElement.dataset.theme === theme) return;
    document.documentElement.dataset.theme = theme;
    changed();
  };
  button.onclick = () => {
    pressed = document.documentElement.dataset.theme !== "dark";
    apply();
  };
  if (around) new MutationObserver(apply).observe(around, { attributeFilter: ["class"] });
  else system.addEventListener("change", apply);
  apply();
}

export function layout(changes) {
  const { text, grid } = colours();
  const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: text, family: "Roboto, system-ui, sans-serif", size: 12 },
    margin: { l: 56, r: 16, t: 28, b: 40 },
    hoverlabel: { font: { family: "Roboto, system-ui, sans-serif" } },
    ...changes,
    xaxis: { ...axis, ...changes.xaxis },
    yaxis: { ...axis, ...changes.yaxis },
  };
}

export const CONFIG = { displaylogo: false, displayModeBar: false, responsive: true };
