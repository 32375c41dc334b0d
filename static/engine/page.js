// Small helps on every page: copy buttons, confirmations, forms that send once, names for the theme's icon buttons.
(() => {
  "use strict";

  async function copy(button) {
    const source = button.dataset.copyFrom;
    const text = source ? document.getElementById(source).textContent : button.dataset.copy;
    const label = [...button.childNodes];
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without TLS there is no clipboard API: select the text, so that one key press copies it.
      if (source) window.getSelection().selectAllChildren(document.getElementById(source));
      button.textContent = source ? "Press Ctrl+C" : "No clipboard here";
      return;
    }
    button.textContent = "Copied";
    setTimeout(() => button.replaceChildren(...label), 2000);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy], [data-copy-from]");
    if (button && button.textContent !== "Copied") copy(button);
  });

  document.addEventListener("submit", (event) => {
    const form = event.target;
    const question = event.submitter?.dataset.confirm || form.dataset.confirm;
    if (question && !window.confirm(question)) {
      event.preventDefault();
      return;
    }
    if (form.method === "post") {
      if (form.dataset.sent) event.preventDefault();
      form.dataset.sent = "yes";
    }
  });
  // Back from the next page, a form may be sent again.
  window.addEventListener("pageshow", () => {
    document.querySelectorAll("form[data-sent]").forEach((form) => { delete form.dataset.sent; });
  });

  document.addEventListener("DOMContentLoaded", () => {
    const address = document.querySelector("[data-address]")?.dataset.address;
    if (address) window.history.replaceState(null, "", address);
    nameThemeButtons();
  });

  // The theme opens its menus with bare <span>s: give them a name, a place in the tab order and the Enter key.
  function nameThemeButtons() {
    const names = { dock_to_right: "Show or hide the navigation", close: "Close", unfold_more: "Account and theme" };
    document.querySelectorAll("span[x-on\\:click], div[x-on\\:click]").forEach((control) => {
      const symbol = control.querySelector(".material-symbols-outlined:last-child") || control;
      const name = names[symbol.textContent.trim()];
      if (!name) return;
      const text = symbol === control ? "" : control.innerText.replace(symbol.textContent, "").trim();
      control.setAttribute("role", "button");
      control.setAttribute("aria-label", text ? `${text.replace(/\s+/g, " ")}: ${name}` : name);
      control.tabIndex = 0;
      control.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        control.click();
      });
    });
    const main = document.getElementById("content") || document.getElementById("page");
    if (main) {
      main.setAttribute("role", "main");
      offerSkipping(main);
    }
    document.getElementById("header-inner")?.setAttribute("role", "banner");
  }

  // The first Tab of a page offers to leave the navigation out.
  function offerSkipping(main) {
    const link = document.createElement("a");
    link.className = "e-skip e-button";
    link.href = `#${main.id}`;
    link.textContent = "Skip to the content";
    link.addEventListener("click", (event) => {
      event.preventDefault();
      main.tabIndex = -1;
      main.focus();
    });
    const place = document.createElement("nav");
    place.setAttribute("aria-label", "Skip");
    place.append(link);
    document.body.prepend(place);
  }

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-submits]")) event.target.form.requestSubmit();
  });
})();
