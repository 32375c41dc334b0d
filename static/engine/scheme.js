// Pages outside the theme are dark where the viewer's system is; before anything is drawn.
if (window.matchMedia("(prefers-color-scheme: dark)").matches) document.documentElement.classList.add("dark");
