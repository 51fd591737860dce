// A chart is a static picture until the pointer enters it. Then Vega draws the same chart with tooltips.
for (const chart of document.querySelectorAll("figure.chart")) {
  const wake = () => {
    const live = document.createElement("div");
    live.className = "live";
    chart.append(live);
    const spec = JSON.parse(chart.querySelector("script").textContent);
    const tooltip = {disableDefaultStyle: true};
    const options = {mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, tooltip};
    vegaEmbed(live, spec, options).then(() => chart.classList.add("ready"), () => live.remove());
  };
  chart.addEventListener("pointerenter", wake, {once: true});
}
addEventListener("beforeprint", () => document.querySelectorAll("details.seed").forEach((seed) => (seed.open = true)));
