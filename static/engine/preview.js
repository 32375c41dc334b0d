// What can be read of an artifact comes when somebody opens its preview, not with the page. The server has made it safe.
(() => {
  "use strict";

  const known = new Map(); // address -> HTML

  async function show(details) {
    const place = details.querySelector("[data-preview-place]");
    const address = details.dataset.preview;
    if (place.hasChildNodes()) return;
    if (!known.has(address)) {
      place.textContent = "Loading…";
      try {
        const response = await fetch(address, { credentials: "same-origin", redirect: "error" });
        if (!response.ok) throw new Error(`HTTP ${response.status}`);
        known.set(address, await response.text());
      } catch {
        place.textContent = "The preview cannot be had. The download may still work.";
        return;
      }
    }
    place.innerHTML = known.get(address);
  }

  // `toggle` does not bubble.
  document.addEventListener("toggle", (event) => {
    if (event.target.matches?.("details[data-preview]") && event.target.open) show(event.target);
  }, true);
})();
