"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const settings = { responsive: true, displayModeBar: false };

  function draw() {
    document.documentElement.classList.add("drawn");
    return Promise.all(
      charts.map((chart) => Plotly.newPlot(chart.id, chart.figure.data, chart.figure.layout, settings)),
    );
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
    const isOff = (set, value) => value !== undefined && !set.has(value);
    for (const part of document.querySelectorAll("[data-backend], [data-run]")) {
      part.hidden = isOff(backends, part.dataset.backend) || isOff(runs, part.dataset.run);
    }
    for (const chart of charts) {
      const visible = chart.figure.data.map((trace) => !isOff(backends, trace.meta));
      Plotly.restyle(chart.id, { visible });
      if (!document.getElementById(chart.id).closest("[hidden]")) Plotly.Plots.resize(chart.id);
    }
    const all = document.querySelectorAll('input[name="backend"]').length;
    document.getElementById("shown").textContent = `${backends.size} of ${all} backends shown`;
  }

  for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
  for (const box of document.querySelectorAll(".filters input")) box.addEventListener("change", filter);
  document.querySelector(".filters").hidden = false;
  draw().then(() => document.documentElement.classList.add("ready"));
})();
