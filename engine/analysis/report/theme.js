"use strict";
(() => {
  const root = document.documentElement;
  // Theme: the system's, until it is switched.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const paint = () => { root.dataset.theme = (chosen ?? dark.matches) ? "dark" : "light"; };
  dark.addEventListener("change", paint);
  document.getElementById("theme").addEventListener("click", () => { chosen = root.dataset.theme !== "dark"; paint(); });
  paint();
})();
