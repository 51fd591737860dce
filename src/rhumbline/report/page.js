// A chart is a static picture until the pointer enters it. Then Vega draws the same chart with tooltips.
for (const chart of document.querySelectorAll("figure.chart")) {
  const wake = () => {
    const live = document.createElement("div");
    live.className = "live";
    live.setAttribute("aria-hidden", "true");
    chart.append(live);
    const spec = JSON.parse(chart.querySelector("script").textContent);
    const tooltip = {disableDefaultStyle: true};
    const options = {mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, tooltip};
    vegaEmbed(live, spec, options).then(() => chart.classList.add("ready"), () => live.remove());
  };
  chart.addEventListener("pointerenter", wake, {once: true});
}
addEventListener("beforeprint", () => document.querySelectorAll("details.detail").forEach((seed) => (seed.open = true)));
// A click on the title of a column sorts the table; a second click reverses the order.
const key = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace("—", ""));
  return [Number.isNaN(number) ? Infinity : number, text];
};
for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => {
    const button = document.createElement("button");
    button.append(...title.childNodes);
    title.append(button);
    button.addEventListener("click", () => {
      const sign = title.ariaSort === "ascending" ? -1 : 1;
      titles.forEach((other) => other.removeAttribute("aria-sort"));
      title.ariaSort = sign > 0 ? "ascending" : "descending";
      const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
      rows.sort(([[a, s]], [[b, t]]) => sign * (a === b ? s.localeCompare(t) : a - b));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}
// A link to a closed section opens it.
const reveal = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
};
addEventListener("hashchange", reveal);
reveal();
