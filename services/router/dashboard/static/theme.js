// Light or dark before anything is drawn: what was chosen here, else what the system says.
(function () {
  const root = document.documentElement;
  try {
    const chosen = localStorage.getItem("cypria-theme");
    if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  } catch {
    // Storage is switched off: the system's choice holds.
  }
})();
