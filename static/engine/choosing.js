// Jobs ticked in the list: how many they are, all of the page at once, and no button without a job.
(() => {
  "use strict";

  document.addEventListener("DOMContentLoaded", () => {
    const form = document.getElementById("many");
    if (!form) return;
    const said = form.querySelector("[data-chosen]");
    const every = form.querySelector("[data-every-one]");
    const untouched = said.textContent;
    const boxes = () => [...document.querySelectorAll("[data-choose]")];

    function tell() {
      const count = boxes().filter((box) => box.checked).length;
      const isEvery = Boolean(every?.checked);
      said.textContent = isEvery ? "All jobs that match" : count ? `${count} job${count === 1 ? "" : "s"} chosen` : untouched;
      form.querySelectorAll("[data-deed]").forEach((button) => { button.disabled = !isEvery && count === 0; });
      const all = document.querySelector("[data-choose-all]");
      if (all) {
        all.checked = count > 0 && count === boxes().length;
        all.indeterminate = count > 0 && !all.checked;
      }
    }

    document.addEventListener("change", (event) => {
      if (event.target.matches("[data-choose-all]")) {
        boxes().forEach((box) => { box.checked = event.target.checked; });
      }
      if (event.target.matches("[data-choose], [data-choose-all], [data-every-one]")) tell();
    });
    document.addEventListener("engine:changed", tell);
    window.addEventListener("pageshow", tell);
    tell();
  });
})();
