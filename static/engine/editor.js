// The editor of an agent: Ace over each file's textarea, faults shown at their lines while one types, and the try-it
// box, which runs a job of what stands in the page and shows its log beside the code.
(() => {
  "use strict";

  const CHECK_AFTER_MS = 700;
  const FOLLOW_EVERY_MS = 1000;

  class Editor {
    constructor(form) {
      this.form = form;
      this.faults = form.querySelector("[data-faults]");
      this.status = form.querySelector("[data-check-status]");
      form.querySelectorAll("[data-file]").forEach((file) => this.dress(file));
      form.addEventListener("click", (event) => this.clicked(event));
      form.addEventListener("input", () => this.changed());
      form.addEventListener("submit", () => { this.isSaved = true; });
      window.addEventListener("beforeunload", (event) => { if (this.isDirty && !this.isSaved) event.preventDefault(); });
      this.trial = form.dataset.try && new Trial(this);
    }

    // The textarea stays what is sent, and what is there where the script is not.
    dress(file) {
      const area = file.querySelector("textarea");
      if (!window.ace) return;
      const box = document.createElement("div");
      box.className = "e-ace";
      area.before(box);
      area.hidden = true;
      const ace = window.ace.edit(box, {
        value: area.value, fontSize: 13, tabSize: 4, useSoftTabs: true, minLines: 20, maxLines: 40,
        showPrintMargin: false, useWorker: false, enableKeyboardAccessibility: true, wrap: false,
      });
      ace.session.setMode("ace/mode/python");
      ace.textInput.getElement().setAttribute("aria-label", area.getAttribute("aria-label"));
      ace.setTheme(this.isDark() ? "ace/theme/github_dark" : "ace/theme/github");
      ace.commands.addCommand({
        name: "save", bindKey: { win: "Ctrl-S", mac: "Command-S" }, exec: () => this.form.requestSubmit(),
      });
      ace.session.on("change", () => {
        area.value = ace.getValue();
        this.changed();
      });
      file.engineAce = ace;
      new MutationObserver(() => ace.setTheme(this.isDark() ? "ace/theme/github_dark" : "ace/theme/github"))
        .observe(document.documentElement, { attributeFilter: ["class"] });
    }

    isDark() {
      return document.documentElement.classList.contains("dark");
    }

    changed() {
      this.isDirty = true;
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.check(), CHECK_AFTER_MS);
    }

    clicked(event) {
      const button = event.target.closest("button");
      if (!button) return;
      if ("fileAdd" in button.dataset) {
        const blank = this.form.querySelector("[data-file-blank]").content.cloneNode(true);
        button.parentElement.before(blank);
        const file = button.parentElement.previousElementSibling;
        this.dress(file);
        file.querySelector("input").focus();
      } else if ("fileRemove" in button.dataset) {
        button.closest("[data-file]").remove();
        this.changed();
      }
    }

    async check() {
      try {
        const body = new FormData(this.form);
        body.delete("try_files");
        const answer = await send(this.form.dataset.check, body);
        this.show(answer.faults);
        this.say(answer.faults.length ? "Not valid yet" : "Valid", answer.faults.length ? "bad" : "good");
      } catch (error) {
        this.say("Not checked: the server does not answer", "bad");
      }
    }

    say(text, mood) {
      this.status.textContent = text;
      this.status.dataset.mood = mood;
    }

    show(faults) {
      this.form.querySelectorAll("[data-file]").forEach((file) => {
        const name = file.querySelector("input").value;
        const lines = faults.filter((fault) => fault.file === name && fault.line);
        file.engineAce?.session.setAnnotations(
          lines.map((fault) => ({ row: fault.line - 1, column: 0, text: fault.detail, type: "error" })),
        );
      });
      this.faults.hidden = !faults.length;
      this.faults.replaceChildren(...faults.map((fault) => {
        const item = document.createElement("li");
        const where = fault.file || fault.field;
        item.textContent = where ? `${where.replaceAll("_", " ")}: ${fault.detail}` : fault.detail;
        return item;
      }));
    }
  }

  class Trial {
    constructor(editor) {
      this.editor = editor;
      this.box = editor.form.querySelector("[data-trial]");
      this.status = editor.form.querySelector("[data-try-status]");
      this.button = editor.form.querySelector("[data-try-run]");
      this.button.addEventListener("click", () => this.run());
      this.box.addEventListener("click", (event) => {
        const stop = event.target.closest("[data-trial-stop]");
        if (stop) this.stop(stop);
      });
    }

    async run() {
      clearTimeout(this.timer);
      this.button.disabled = true;
      this.status.textContent = "Starting…";
      try {
        const answer = await send(this.editor.form.dataset.try, new FormData(this.editor.form));
        this.editor.show(answer.faults || []);
        if (answer.faults) {
          this.status.textContent = `Not started: ${answer.faults[0].detail}`;
        } else {
          this.address = answer.follow;
          this.status.textContent = "";
          await this.follow();
        }
      } catch (error) {
        this.status.textContent = "Not started: the server does not answer as it should. Try again.";
      } finally {
        this.button.disabled = false;
      }
    }

    async follow() {
      const address = this.address;
      clearTimeout(this.timer);
      let final = false;
      try {
        const response = await fetch(address, { credentials: "same-origin", redirect: "manual" });
        if (!response.ok) throw new Error(`HTTP ${response.status}`);
        const answer = await response.json();
        if (address !== this.address) return; // another trial has begun
        final = answer.final;
        this.put(answer.html);
        this.status.textContent = "";
      } catch (error) {
        this.status.textContent = "Not updating: the server does not answer";
      }
      if (!final) this.timer = setTimeout(() => this.follow(), FOLLOW_EVERY_MS);
    }

    // The server has escaped it: everything from the agent is text.
    put(html) {
      if (html === this.shown) return;
      this.shown = html;
      const log = this.box.querySelector("[data-trial-log]");
      const isAtEnd = !log || log.scrollTop + log.clientHeight > log.scrollHeight - 30;
      const top = log?.scrollTop;
      this.box.innerHTML = html;
      this.box.hidden = false;
      this.box.querySelectorAll("[data-moment]").forEach((at) => { at.textContent = clock(at.dataset.moment); });
      const fresh = this.box.querySelector("[data-trial-log]");
      fresh.scrollTop = isAtEnd ? fresh.scrollHeight : top;
    }

    async stop(button) {
      button.disabled = true;
      const body = new FormData();
      body.set("csrfmiddlewaretoken", this.editor.form.elements.csrfmiddlewaretoken.value);
      await send(button.dataset.trialStop, body).catch(() => { button.disabled = false; });
    }
  }

  // The time of day in the viewer's own zone, to the millisecond.
  function clock(moment) {
    const at = new Date(moment);
    return `${at.toLocaleTimeString(undefined, { hour12: false })}.${String(at.getMilliseconds()).padStart(3, "0")}`;
  }

  // The JSON of an answer; also of one that says what is wrong.
  async function send(address, body) {
    const response = await fetch(address, { method: "POST", body, credentials: "same-origin", redirect: "manual" });
    if (!response.ok && response.status !== 422) throw new Error(`HTTP ${response.status}`);
    return response.json();
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("[data-editor]").forEach((form) => { form.engineEditor = new Editor(form); });
  });
})();
