// The form of a new job says who would do it, while somebody writes the task and names no agent.
(() => {
  "use strict";

  const AFTER_MS = 500;

  class Foreseen {
    constructor(box) {
      this.box = box;
      this.form = box.closest("form");
      this.asked = 0;
      this.form.addEventListener("input", () => this.later());
      this.later();
    }

    later() {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.ask(), AFTER_MS);
    }

    async ask() {
      const number = (this.asked += 1);
      const field = (name) => this.form.elements[name].value;
      const html = field("agent") || !field("task").trim() ? "" : await this.fetch(field);
      if (number !== this.asked) return; // more was written meanwhile
      this.box.innerHTML = html;
      this.box.hidden = !html.trim();
    }

    // A preview that cannot be had is none: submitting says what is wrong.
    async fetch(field) {
      const body = new FormData();
      for (const name of ["csrfmiddlewaretoken", "task", "project"]) body.append(name, field(name));
      try {
        const response = await fetch(this.box.dataset.foresee, { method: "POST", body, redirect: "error" });
        return response.ok ? await response.text() : "";
      } catch {
        return "";
      }
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("[data-foresee]").forEach((box) => new Foreseen(box));
  });
})();
