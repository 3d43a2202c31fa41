// A page on which code is folded has a switch that unfolds all of it, for this page.
document.addEventListener("DOMContentLoaded", () => {
  const folded = [...document.querySelectorAll(".bd-article div.cell details.hide")];
  const heading = document.querySelector(".bd-article h1");
  if (!folded.length || !heading) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "show-all-code";
  const name = () => {
    const open = button.getAttribute("aria-pressed") === "true";
    button.textContent = open ? "Hide the folded code" : "Show all code";
  };
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(open));
    for (const cell of folded) cell.open = open;
    name();
  });
  name();
  heading.after(button);
});
