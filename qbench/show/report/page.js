"use strict";
(() => {
  const settings = { responsive: true, displayModeBar: false };
  const charts = new Map();
  for (const { id, figure } of JSON.parse(document.getElementById("charts").textContent)) {
    const place = document.getElementById(id);
    place.style.minHeight = `${figure.layout.height}px`; // so that nothing moves when it is drawn
    charts.set(place, { figure, near: false, current: false });
  }

  const isOff = (set, value) => value !== undefined && !set.has(value);

  /** Draw a chart that is on the screen or near it, or have it show the backends that are ticked now. */
  async function draw(place) {
    const chart = charts.get(place);
    if (chart.current || !chart.near || place.closest("[hidden]")) return;
    chart.current = true;
    const backends = chosen("backend");
    const visible = chart.figure.data.map((trace) => !isOff(backends, trace.meta));
    if (place.classList.contains("js-plotly-plot")) {
      await Plotly.restyle(place, { visible });
      Plotly.Plots.resize(place);
    } else {
      const data = chart.figure.data.map((trace, i) => ({ ...trace, visible: visible[i] }));
      await Plotly.newPlot(place, data, chart.figure.layout, settings);
    }
  }

  /** Drawing takes its time, so only charts that come near are drawn. */
  function watch() {
    document.documentElement.classList.add("drawn");
    const observer = new IntersectionObserver(
      async (entries) => {
        for (const entry of entries) charts.get(entry.target).near = entry.isIntersecting;
        await Promise.all(entries.map((entry) => draw(entry.target)));
        document.documentElement.classList.add("ready");
      },
      { rootMargin: "100%" },
    );
    for (const place of charts.keys()) observer.observe(place);
  }

  /** Rows go up, then down, by a column; what has no value comes last either way. */
  function sort(table, column, button) {
    const heading = button.closest("th");
    const up = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numeric = heading.classList.contains("figure");
    const key = (row) => {
      const field = row.cells[column];
      return numeric ? parseFloat(field.dataset.value ?? "NaN") : field.textContent.trim();
    };
    const compare = (a, b) => {
      if (!numeric) return (up ? 1 : -1) * a.localeCompare(b, undefined, { numeric: true });
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      return up ? a - b : b - a;
    };
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort((a, b) => compare(a[0], b[0]));
    body.append(...rows.map((pair) => pair[1]));
  }

  function makeSortable(table) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      heading.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(table, column, button));
    });
  }

  function chosen(name) {
    const boxes = [...document.querySelectorAll(`input[name="${name}"]`)];
    return new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  }

  /** Show what is of the backends and runs that are ticked, and what is of none in particular. */
  function filter() {
    const backends = chosen("backend");
    const runs = chosen("run");
    for (const part of document.querySelectorAll("[data-backend], [data-run]")) {
      part.hidden = isOff(backends, part.dataset.backend) || isOff(runs, part.dataset.run);
    }
    for (const [place, chart] of charts) {
      chart.current = false;
      draw(place);
    }
    const all = document.querySelectorAll('input[name="backend"]').length;
    document.getElementById("shown").textContent = `${backends.size} of ${all} backends shown`;
  }

  for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
  for (const box of document.querySelectorAll(".filters input")) box.addEventListener("change", filter);
  const bar = document.querySelector(".filters");
  bar.hidden = false;
  // A link to a section leaves its heading below the bar, which has as many lines as names need.
  new ResizeObserver(() => document.documentElement.style.setProperty("--bar", `${bar.offsetHeight}px`)).observe(bar);
  watch();
})();
