// Keeps every <time> true: relative ones run on, all show the viewer's own zone.
(() => {
  "use strict";

  // The server's clock is the one that counts; a viewer's may be minutes off.
  let ahead = 0;
  const now = () => Date.now() + ahead;

  const absolute = new Intl.DateTimeFormat(undefined, {
    year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit",
  });
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

  function span(seconds) {
    const whole = Math.max(0, Math.floor(seconds));
    const index = units.findIndex(([, size]) => whole >= size);
    if (index < 0) return "0 s";
    const [unit, size] = units[index];
    const text = `${Math.floor(whole / size)} ${unit}`;
    const next = units[index + 1];
    const rest = next ? Math.floor((whole % size) / next[1]) : 0;
    return rest && Math.floor(whole / size) < 10 ? `${text} ${rest} ${next[0]}` : text;
  }

  function ago(moment) {
    const seconds = (now() - moment) / 1000;
    if (seconds < -1) return `in ${span(-seconds).split(" ").slice(0, 2).join(" ")}`;
    return seconds < 2 ? "just now" : `${span(seconds).split(" ").slice(0, 2).join(" ")} ago`;
  }

  function show(element) {
    const moment = new Date(element.dateTime);
    const text = "ago" in element.dataset ? ago(moment)
      : "since" in element.dataset ? span((now() - moment) / 1000)
      : absolute.format(moment);
    if (element.textContent !== text) element.textContent = text;
    if (!element.title) element.title = `${absolute.format(moment)} (${moment.toISOString()})`;
  }

  function showAll(root = document) {
    root.querySelectorAll("time[datetime]").forEach(show);
  }

  function setClock(serverNow) {
    ahead = new Date(serverNow) - Date.now();
    showAll();
  }

  window.Engine = Object.assign(window.Engine || {}, { times: { showAll, setClock, span, absolute, now } });
  document.addEventListener("DOMContentLoaded", () => {
    showAll();
    setInterval(() => showAll(), 1000);
  });
})();
