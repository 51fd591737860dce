// The page of `rhumbline play`. All texts of the model become text nodes.
"use strict";
const $ = (id) => document.getElementById(id);
const controls = ["direction", "layer", "strength", "coefficient", "tokens"];
let running = null;
let scale = 1;
let timer = 0;

function status(text, fault = false) {
  $("status").textContent = text;
  $("status").classList.toggle("fault", fault);
}

function settings() {
  return {
    direction: $("direction").value,
    layer: Number($("layer").value),
    strength: Number($("strength").value),
    coefficient: Number($("coefficient").value),
    max_new_tokens: Number($("tokens").value),
  };
}

function showValues() {
  for (const id of ["strength", "coefficient"]) $(`${id}-value`).textContent = Number(Number($(id).value).toFixed(4));
}

// A slider rounds its value to its step, so a first value between two steps removes the step.
function setSlider(id, value) {
  $(id).value = value;
  if (Number($(id).value) === value) return;
  $(id).step = "any";
  $(id).value = value;
}

async function post(path, signal) {
  const body = JSON.stringify({ prompt: $("prompt").value, settings: settings() });
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}

function colour(value) {
  const share = Math.min(1, Math.abs(value) / scale) ** 0.7 * 0.7;
  return `rgba(var(--${value < 0 ? "low" : "high"}),${share.toFixed(3)})`;
}

function append(where, text, projection) {
  const span = document.createElement("span");
  span.textContent = text.replaceAll("\n", "\u21b5\n");
  span.style.backgroundColor = colour(projection);
  span.title = `projection ${projection.toFixed(3)}`;
  span.dataset.projection = projection;
  where.append(span);
}

function showProbabilities(values) {
  [0, 1].forEach((column) => {
    const text = values ? values[column].toFixed(3) : "not measured: pass a run as --direction";
    $(`probability-${column}`).textContent = `probability of a refusal: ${text}`;
  });
}

function show(event) {
  if (event.event === "prompt") {
    const [baseline] = event.projections;
    scale = Math.max(1e-6, ...(baseline.length > 1 ? baseline.slice(1) : baseline).map(Math.abs));
    event.texts.forEach((text, i) => append($("prompt-tokens"), text, baseline[i]));
  } else if (event.event === "probability") {
    showProbabilities(event.values);
  } else if (event.event === "piece") {
    append($(`text-${event.column}`), event.text, event.projection);
  } else if (event.event === "end") {
    $(`end-${event.column}`).textContent = `ended: ${event.reason}`;
  } else {
    throw new Error(event.message);
  }
}

function clear() {
  for (const id of ["prompt-tokens", "text-0", "text-1", "end-0", "end-1"]) $(id).replaceChildren();
}

async function complete() {
  if (!$("form").reportValidity()) return;
  if (running) running.abort();
  const own = (running = new AbortController());
  $("stop").disabled = false;
  clear();
  status("completing");
  try {
    const answer = await post("stream", own.signal);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let ends = 0;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      if (running !== own) return;
      for (const event of lines.map((line) => JSON.parse(line))) {
        show(event);
        if (event.event === "end") ends += 1;
      }
    }
    if (ends < 2) throw new Error("the connection ended before the completions did: complete again");
    status("done");
  } catch (error) {
    if (error.name === "AbortError") {
      if (running === own) status("stopped");
    } else if (running === own) {
      status(error.message, true);
    }
  } finally {
    if (running === own) {
      running = null;
      $("stop").disabled = true;
    }
  }
}

async function probability() {
  if (running || !$("prompt").value.trim() || !$("tokens").checkValidity()) return;
  try {
    showProbabilities((await (await post("probability")).json()).values);
  } catch (error) {
    status(error.message, true);
  }
}

function later(action, milliseconds) {
  clearTimeout(timer);
  timer = setTimeout(action, milliseconds);
}

async function start() {
  const answer = await fetch("facts");
  const facts = await answer.json();
  if (!answer.ok) throw new Error(facts.error);
  $("model").textContent = facts.model;
  for (const [id, values] of [["direction", facts.directions], ["layer", facts.layers]]) {
    for (const value of values) $(id).append(new Option(value, value));
  }
  $("strength").max = facts.most_strength;
  const first = facts.settings.coefficient;
  $("coefficient").max = Math.max(Math.min(4, facts.most_coefficient), Math.abs(first));
  $("coefficient").min = -$("coefficient").max;
  $("tokens").max = facts.most_tokens;
  $("direction").value = facts.settings.direction;
  $("layer").value = facts.settings.layer;
  setSlider("strength", facts.settings.strength);
  setSlider("coefficient", first);
  $("tokens").value = facts.settings.max_new_tokens;
  showValues();
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    complete();
  });
  $("stop").addEventListener("click", () => running && running.abort());
  $("prompt").addEventListener("input", () => later(probability, 600));
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) complete();
  });
  for (const id of controls) {
    $(id).addEventListener("input", () => {
      showValues();
      later(probability, 200);
    });
    $(id).addEventListener("change", () => $("text-0").hasChildNodes() && complete());
  }
  status("ready");
}

start().catch((error) => status(error.message, true));
