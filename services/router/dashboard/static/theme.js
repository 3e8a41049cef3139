// Light or dark before anything is drawn: what was chosen here, else what the system says.
(function () {
  const root = document.documentElement;
  try {
    const chosen = localStorage.getItem("cypria-theme");
    if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  } catch {
    // Storage is switched off: the system's choice holds.
  }
  // What is chosen in one tab holds in all of them.
  addEventListener("storage", ({ key, newValue }) => {
    if (key === "cypria-theme" && (newValue === "light" || newValue === "dark")) root.dataset.theme = newValue;
  });
})();
