// Under a text that somebody may change before it is approved: which lines are no longer as the agent proposed them.
(() => {
  "use strict";

  const MOST_LINES = 400; // beyond, comparing each line with each is slow

  // [sign, line]: " " in both, "-" in the old one alone, "+" in the new one alone.
  function diff(before, after) {
    const table = Array.from({ length: before.length + 1 }, () => new Uint16Array(after.length + 1));
    for (let i = before.length - 1; i >= 0; i -= 1) {
      for (let j = after.length - 1; j >= 0; j -= 1) {
        table[i][j] = before[i] === after[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
      }
    }
    const lines = [];
    let i = 0;
    let j = 0;
    while (i < before.length || j < after.length) {
      if (i < before.length && j < after.length && before[i] === after[j]) {
        lines.push([" ", before[i]]);
        i += 1;
        j += 1;
      } else if (j < after.length && (i === before.length || table[i][j + 1] > table[i + 1][j])) {
        lines.push(["+", after[j]]);
        j += 1;
      } else {
        lines.push(["-", before[i]]);
        i += 1;
      }
    }
    return lines;
  }

  function show(area) {
    let place = area.nextElementSibling;
    if (!place?.matches(".e-diff")) {
      place = document.createElement("div");
      place.className = "e-diff";
      place.setAttribute("role", "status");
      place.setAttribute("aria-label", "What you changed");
      area.after(place);
    }
    const before = area.defaultValue.replace(/\r/g, "").split("\n");
    const after = area.value.replace(/\r/g, "").split("\n");
    place.replaceChildren();
    if (area.value === area.defaultValue || Math.max(before.length, after.length) > MOST_LINES) return;
    for (const [sign, line] of diff(before, after)) {
      const row = document.createElement("div");
      row.className = sign === "+" ? "e-diff-new" : sign === "-" ? "e-diff-old" : "";
      row.textContent = `${sign} ${line}`;
      place.append(row);
    }
  }

  document.addEventListener("input", (event) => {
    if (event.target.matches("textarea[data-diff]")) show(event.target);
  });
})();
