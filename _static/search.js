// What Sphinx's search leaves open. This runs before its own start.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined" || !Search._index) return;

  // One word in two spellings is one word: "optimise" and "optimize", "colour" and "color", "grey" and "gray". The index
  // has stems, and a stem in -is, of -ise, is in the other spelling one in -iz or one without either.
  const spellings = (term) => {
    const root = term.replace(/our/g, "or").replace(/^grei$/, "grai").replace(/(.{4})i[sz]$/, "$1");
    const british = root.replace(/or/g, "our").replace(/^grai$/, "grei");
    return [root, `${root}is`, `${root}iz`, british];
  };
  const join = (terms) => {
    const joined = new Map();
    for (const term of Object.keys(terms).filter((term) => /our|^grei$|.{4}i[sz]$/.test(term))) {
      const found = spellings(term).flatMap((other) => terms[other] ?? []);
      for (const other of spellings(term)) joined.set(other, [...new Set(found)]);
    }
    for (const [term, found] of joined) terms[term] = found;
  };

  // Sphinx looks words up in plain objects, where "constructor" and "__proto__" are found without being there, and its
  // search fails. Here the tables inherit nothing but the one method that it calls.
  const table = Object.create(null, {
    hasOwnProperty: { value: Object.prototype.hasOwnProperty },
  });
  for (const name of ["terms", "titleterms"]) {
    Object.setPrototypeOf(Search._index[name], table);
    join(Search._index[name]);
  }

  // Chapters come before the appendix.
  const captions = [...document.querySelectorAll("p.caption")];
  const appendix = captions.find((caption) => caption.textContent.trim() === "Appendix");
  const links = appendix ? appendix.nextElementSibling.querySelectorAll("a") : [];
  const last = new Set([...links].map((link) => link.getAttribute("href").replace(/\.html.*/, "")));
  Scorer.score = ([page, , , , score]) => (last.has(page) ? score - 100 : score);
});
