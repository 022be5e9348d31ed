"use strict";
(() => {
  const root = document.documentElement;
  const specs = JSON.parse(document.getElementById("figure-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displaylogo: false, doubleClick: "reset", modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };

  // Figures name their colours as CSS variables; fill in those of the current theme.
  function paint(value, style) {
    if (typeof value === "string") return value.includes("var(--") ? value.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim()) : value;
    if (Array.isArray(value)) return value.map((item) => paint(item, style));
    if (value && typeof value === "object") return "bdata" in value ? value : Object.fromEntries(Object.entries(value).map(([key, item]) => [key, paint(item, style)]));
    return value;
  }

  function draw() {
    const style = getComputedStyle(root);
    return Promise.all(Object.entries(specs).map(([key, spec]) => {
      const place = document.getElementById("figure-" + key);
      if (!place) return null;
      const layout = paint(spec.layout, style);
      if (place.layout && spec.linked) layout.xaxis.range = [...place.layout.xaxis.range]; // a change of theme keeps the zoom
      return Plotly.react(place, paint(spec.data, style), { ...layout, uirevision: "keep" }, config);
    }));
  }

  // Figures on the same time axis zoom together.
  let following = false;
  function link() {
    const linked = Object.entries(specs).filter(([, spec]) => spec.linked).map(([key]) => document.getElementById("figure-" + key)).filter(Boolean);
    for (const place of linked) {
      place.on("plotly_relayout", (event) => {
        const range = "xaxis.range[0]" in event ? [event["xaxis.range[0]"], event["xaxis.range[1]"]] : event["xaxis.range"];
        if (following || !range) return;
        following = true;
        Promise.all(linked.filter((other) => other !== place).map((other) => Plotly.relayout(other, { "xaxis.range": [...range] }))).finally(() => { following = false; });
      });
    }
  }

  const button = document.getElementById("theme");
  const current = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const name = () => { button.textContent = current() === "dark" ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => {
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    name();
    draw();
  });
  dark.addEventListener("change", () => { name(); draw(); });
  name();

  for (const copy of document.querySelectorAll("[data-copy]")) {
    copy.addEventListener("click", () => navigator.clipboard && navigator.clipboard.writeText(copy.previousElementSibling.textContent).then(() => { copy.textContent = "Copied"; }, () => {}));
  }

  const entries = [...document.querySelectorAll("nav li a")];
  const here = () => {
    let found = entries[0];
    for (const entry of entries) {
      const target = document.getElementById(entry.hash.slice(1));
      if (target && target.getBoundingClientRect().top < 140) found = entry;
    }
    for (const entry of entries) entry.classList.toggle("here", entry === found);
  };
  addEventListener("scroll", here, { passive: true });
  here();

  draw().then(() => { link(); root.dataset.figures = "drawn"; });
})();
