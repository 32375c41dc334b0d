// Parts of a page that refresh themselves: <div data-live="URL" data-every="5"> holds elements with data-part and an
// id. The URL answers {"now": …, "parts": {id: html}}; a part changes only if its HTML did, and never while somebody
// is typing in it.
(() => {
  "use strict";

  const times = window.Engine.times;

  class Live {
    constructor(root) {
      this.root = root;
      this.every = Number(root.dataset.every || 5) * 1000;
      this.status = root.querySelector("[data-live-status]") || document.querySelector("[data-live-status]");
      this.known = new Map(); // part id -> the HTML that the server sent last
      this.failures = 0;
      this.timer = 0;
      this.pending = null;
      document.addEventListener("visibilitychange", () => document.hidden ? this.pause() : this.refresh());
      window.addEventListener("online", () => this.refresh());
      this.schedule();
    }

    schedule() {
      clearTimeout(this.timer);
      if (!document.hidden && this.every > 0) {
        this.timer = setTimeout(() => this.refresh(), this.every * Math.min(2 ** this.failures, 8));
      }
    }

    pause() {
      clearTimeout(this.timer);
    }

    // One request at a time; who asks while one is under way gets another one after it.
    refresh() {
      if (this.pending) {
        this.again = true;
        return this.pending;
      }
      this.pending = this.fetch().finally(() => {
        this.pending = null;
        if (this.again) {
          this.again = false;
          this.refresh();
        } else {
          this.schedule();
        }
      });
      return this.pending;
    }

    async fetch() {
      try {
        const response = await fetch(this.root.dataset.live, {
          headers: { Accept: "application/json" }, credentials: "same-origin", redirect: "manual",
        });
        if (response.type === "opaqueredirect" || response.status === 403) {
          this.say("You are signed out: reload the page", "bad");
          this.every = 0;
          return;
        }
        if (!response.ok) throw new Error(`HTTP ${response.status}`);
        const answer = await response.json();
        this.failures = 0;
        times.setClock(answer.now);
        for (const [id, html] of Object.entries(answer.parts)) this.put(id, html);
        if (answer.final) this.every = 0;
        this.say(answer.final ? "Ended" : "Live", answer.final ? "" : "good");
      } catch (error) {
        this.failures += 1;
        this.say("Not updating: the server does not answer", "bad");
      }
    }

    put(id, html) {
      const part = document.getElementById(id);
      if (!part || this.known.get(id) === html) return;
      if (part.contains(document.activeElement) && document.activeElement.matches("input:not([type=checkbox]), textarea, select")) return;
      const fresh = document.createElement("template");
      fresh.innerHTML = html;
      this.keepForms(part, fresh.content);
      this.keepTicks(part, fresh.content);
      const focused = document.activeElement && part.contains(document.activeElement) ? document.activeElement.id : "";
      part.replaceChildren(fresh.content);
      if (focused) document.getElementById(focused)?.focus();
      this.known.set(id, html);
      times.showAll(part);
      part.dispatchEvent(new CustomEvent("engine:changed", { bubbles: true }));
    }

    // A form that somebody has begun to fill in stays as it is for as long as the server still offers it.
    keepForms(part, fresh) {
      part.querySelectorAll("form[data-begun][id]").forEach((form) => {
        fresh.querySelector(`#${CSS.escape(form.id)}`)?.replaceWith(form);
      });
    }

    // What was ticked or opened stays so while it is still there.
    keepTicks(part, fresh) {
      part.querySelectorAll("input[type=checkbox][id]:checked").forEach((box) => {
        const same = fresh.querySelector(`#${CSS.escape(box.id)}`);
        if (same) same.checked = true;
      });
      part.querySelectorAll("details[id][open]").forEach((details) => {
        const same = fresh.querySelector(`#${CSS.escape(details.id)}`);
        if (same) same.open = true;
      });
    }

    say(text, mood) {
      if (!this.status) return;
      if (this.status.textContent !== text) this.status.textContent = text;
      this.status.dataset.mood = mood;
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("[data-live]").forEach((root) => { root.engineLive = new Live(root); });
    document.addEventListener("input", (event) => event.target.form?.setAttribute("data-begun", ""));
  });
})();
