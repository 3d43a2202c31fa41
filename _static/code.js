// What of a page's code is folded, and the switch that unfolds all of it.
document.addEventListener("DOMContentLoaded", () => {
  const heading = document.querySelector(".bd-article h1");
  const cells = [...document.querySelectorAll(".bd-article div.cell details.hide")];
  const switches = [...document.querySelectorAll(".bd-article div.cell_input pre")].flatMap(foldContracts);
  if (!heading || !(cells.length || switches.length)) return;
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
    for (const cell of cells) cell.open = open;
    for (const each of switches) show(each, open);
    name();
  });
  name();
  heading.after(button);
});

// Of a docstring the sentences stay. The list of arguments, results and errors behind them opens at a press: it is for
// reference, and the pages on the package have it. Its text stays in the page, for copies and for the browser's search.
function foldContracts(pre) {
  const switches = [];
  let inside = false, list = null;
  for (const node of [...pre.childNodes]) {
    const said = node.nodeType === Node.ELEMENT_NODE && node.classList.contains("sd") ? node.textContent : null;
    if (said === null) {
      if (list) list.append(node);
      continue;
    }
    const begins = !inside && /^[rf]?("""|''')/.test(said);
    const ends = /("""|''')$/.test(said) && !(begins && said.length < 6);
    if (!ends && inside && !list && /^\s*(Args|Returns|Raises):$/.test(said)) {
      list = document.createElement("span");
      list.className = "contract";
      node.before(list);
      while (list.previousSibling?.nodeType === Node.TEXT_NODE && !list.previousSibling.textContent.trim())
        list.prepend(list.previousSibling);
    }
    if (list && !ends) list.append(node);
    if (list && ends) {
      const indent = said.match(/^\s*/)[0];
      if (indent) {
        list.append(indent);
        node.textContent = said.slice(indent.length);
      }
      switches.push(foldList(list));
      list = null;
    }
    inside = (inside || begins) && !ends;
  }
  return switches;
}

function foldList(list) {
  const each = document.createElement("button"); // without text of its own, so that copies don't have it
  each.type = "button";
  each.className = "contract-switch";
  each.setAttribute("aria-label", "Arguments, results and errors");
  each.title = "Arguments, results and errors";
  each.addEventListener("click", () => show(each, list.hidden));
  list.before(each);
  show(each, false);
  return each;
}

function show(each, open) {
  each.nextElementSibling.hidden = !open;
  each.setAttribute("aria-expanded", String(open));
}
