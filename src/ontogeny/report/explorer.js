// Draws the curves that the reader chooses from the scores in the page, with plotly.
"use strict";
const scores = JSON.parse(document.getElementById("scores").textContent);
const at = (id) => document.getElementById(id);
const corpora = [...new Set(scores.members.map((member) => member.corpus))];
const isShare = (metric) => scores.shares.some((beginning) => metric.startsWith(beginning));
const count = (value) =>
  value >= 1e9 ? `${+(value / 1e9).toPrecision(3)}B`
  : value >= 1e6 ? `${+(value / 1e6).toPrecision(3)}M`
  : value >= 1e3 ? `${+(value / 1e3).toPrecision(3)}k` : `${value}`;

function fill(id, names) {
  const before = at(id).value;
  at(id).replaceChildren(...names.map((name) => new Option(name, name)));
  at(id).value = names.includes(before) ? before : names[0];
}

function offer() {
  fill("task", scores.tasks);
  const ofTask = scores.curves[at("task").value];
  fill("shots", Object.keys(ofTask));
  fill("metric", Object.keys(ofTask[at("shots").value])); // of which the main one is first
}

// The log axis has no 0, so the untrained model stands half a decade before the first update.
function horizontal(curves) {
  const seen = curves.flatMap((curve) => curve[2]).filter((tokens) => tokens > 0);
  const first = Math.min(...seen, 1e12), last = Math.max(...seen, 1);
  if (at("axis").value === "linear") return { place: (tokens) => tokens, ticks: {} };
  const zero = Math.log10(first) - 0.5;
  const decades = [];
  for (let power = Math.ceil(Math.log10(first)); power <= Math.log10(last); power++) decades.push(power);
  return {
    place: (tokens) => (tokens > 0 ? Math.log10(tokens) : zero),
    ticks: {
      tickvals: [zero, ...decades],
      ticktext: ["0", ...decades.map((power) => count(10 ** power))],
    },
  };
}

function traces(curves, place, share) {
  const shown = share ? ".1%" : ".4f";
  const found = [];
  for (const [member, steps, tokens, n, values, low, high] of curves) {
    const { name, colour, dash } = scores.members[member];
    const x = tokens.map(place);
    if (at("intervals").checked && low.some((bound) => bound !== null)) {
      found.push({
        x: [...x, ...x.slice().reverse()], y: [...high, ...low.slice().reverse()], fill: "toself",
        fillcolor: `${colour}14`, line: { width: 0 }, hoverinfo: "skip", legendgroup: name,
        showlegend: false, type: "scatter", mode: "lines",
      });
    }
    const bounds = steps.map((_, i) =>
      low[i] === null ? "" : share
        ? ` [${(100 * low[i]).toFixed(1)}%, ${(100 * high[i]).toFixed(1)}%]`
        : ` [${low[i].toFixed(4)}, ${high[i].toFixed(4)}]`);
    found.push({
      x, y: values, name, legendgroup: name, type: "scatter", mode: "lines+markers",
      line: { color: colour, dash, width: 1.6 }, marker: { size: 4 },
      customdata: steps.map((step, i) => [step, count(tokens[i]), bounds[i], n[i] || "unknown"]),
      hovertemplate: `<b>${name}</b>, step %{customdata[0]:,}, %{customdata[1]} tokens<br>` +
        `%{y:${shown}}%{customdata[2]}, items: %{customdata[3]}<extra></extra>`,
    });
  }
  return found;
}

function levels(curves) {
  const shapes = [], annotations = [];
  for (const [column, name, dash, yanchor] of [
    [7, "chance", "dot", "bottom"], [8, "commonest answer", "dashdot", "top"]]) {
    const level = curves[0][column];
    if (level === null || curves.some((curve) => curve[column] !== level)) continue;
    shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: level, y1: level,
      line: { color: "#777777", width: 1.2, dash } });
    annotations.push({ xref: "paper", x: 0, y: level, text: name, showarrow: false,
      xanchor: "left", yanchor, font: { color: "#6b6862", size: 12 } });
  }
  return { shapes, annotations };
}

function draw(event) {
  if (event?.target.id === "task") at("metric").replaceChildren();
  offer();
  const metric = at("metric").value, share = isShare(metric);
  const isWanted = (member) => (member.plain || at("others").checked) && at(`of-${member.corpus}`).checked;
  const curves = scores.curves[at("task").value][at("shots").value][metric]
    .filter((curve) => isWanted(scores.members[curve[0]]))
    .sort((one, other) => one[0] - other[0]);
  at("note").textContent = curves.length === 0 ? "Nothing chosen was asked this."
    : [...new Set(curves.map((curve) => curve[9]))].filter((words) => words)
      .map((words) => `Differs from the task of its name: ${words}.`).join(" ");
  const { place, ticks } = horizontal(curves);
  Plotly.react("chart", traces(curves, place, share), {
    ...(curves.length ? levels(curves) : {}),
    height: 620, margin: { t: 20, r: 10, b: 50, l: 70 }, hovermode: "closest",
    font: { family: "system-ui, Helvetica Neue, Arial, sans-serif", size: 13 },
    paper_bgcolor: "#fdfcfa", plot_bgcolor: "#ffffff",
    xaxis: { title: { text: "tokens seen" }, gridcolor: "#e6e4df", zeroline: false, ...ticks },
    yaxis: { title: { text: metric }, gridcolor: "#e6e4df", zeroline: false,
      tickformat: share ? ".0%" : "" },
    legend: window.innerWidth < 800 ? { orientation: "h", y: -0.12 } : {},
  }, { displaylogo: false, responsive: true });
}

fill("axis", ["log", "linear"]);
at("intervals").checked = scores.members.length <= 8;
if (scores.members.every((member) => member.plain)) at("others").parentElement.hidden = true;
for (const corpus of corpora) {
  const box = Object.assign(document.createElement("input"), { type: "checkbox", id: `of-${corpus}`, checked: true });
  const label = document.createElement("label");
  label.append(box, ` ${corpus}`);
  label.hidden = corpora.length === 1;
  at("controls").append(label);
}
at("controls").addEventListener("change", draw);
at("controls").addEventListener("submit", (event) => event.preventDefault());
draw();
