// "Test a key": asks the API with it as a program would, and says in words what the API answered.
(() => {
  "use strict";

  async function test(form) {
    const said = form.querySelector("[data-test-said]");
    const say = (text, mood) => {
      said.textContent = text;
      said.dataset.mood = mood;
    };
    const key = form.querySelector("input").value.trim();
    if (!/^[\x21-\x7e]+$/.test(key)) {
      say("A key is made of letters, digits and underscores: engine_live_…", "bad");
      return;
    }
    say("Asking…", "");
    try {
      const answer = await fetch(form.dataset.testKey, {
        headers: { Authorization: `Bearer ${key}`, Accept: "application/json" }, credentials: "omit",
      });
      const body = await answer.json();
      if (answer.ok) say("It works: the API accepts this key.", "good");
      else if (answer.status === 403 && body.code !== "address_not_allowed") {
        say(`The key is accepted, but may not list jobs. ${body.detail || ""}`, "good");
      } else say(`${answer.status} ${body.code}: ${body.detail || body.title}`, "bad");
    } catch (error) {
      say("The server does not answer. Is it still running?", "bad");
    }
  }

  document.addEventListener("submit", (event) => {
    if (!event.target.matches("[data-test-key]")) return;
    event.preventDefault();
    test(event.target);
  });
})();
