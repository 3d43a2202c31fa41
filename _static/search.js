// Sphinx looks words up in plain objects, where "constructor" and "__proto__" are found without being there, and its
// search fails. Here the tables inherit nothing but the one method that it calls. This runs before its own start.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined" || !Search._index) return;
  const table = Object.create(null, {
    hasOwnProperty: { value: Object.prototype.hasOwnProperty },
  });
  for (const name of ["terms", "titleterms"]) Object.setPrototypeOf(Search._index[name], table);
});
