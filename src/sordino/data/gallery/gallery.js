// Search, filters, and commands with this page's own address. The page is complete without them.
"use strict";
{
  const $ = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll(".card")];

  const show = () => {
    const words = $("words").value.toLowerCase().split(/\s+/).filter(Boolean),
      model = $("model").value,
      rating = $("rating")?.value ?? "";
    let count = 0,
      shown = 0;
    for (const card of cards) {
      const { text, model: own, rating: itsRating, mature } = card.dataset;
      // Mature ones are hidden until somebody asks for them.
      const isRated = rating === "all" || (rating ? itsRating === rating : mature === undefined);
      card.hidden = !isRated || (model && own !== model) || !words.every((word) => text.includes(word));
      if (isRated) count += 1;
      if (!card.hidden) shown += 1;
    }
    $("count").textContent = shown === count ? `${shown} shown` : `${shown} of ${count}`;
    $("none").hidden = shown > 0;
  };

  /** In a shell, an address is one word. */
  const quoted = (text) => (/^[\w@%+=:,./#~-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

  const address = (href) => {
    const url = new URL(href, location.href);
    // A page on the disk: the command takes a path, and no hash.
    return url.protocol === "file:" ? decodeURIComponent(url.pathname) : url.href;
  };

  const copier = (code) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy: ${code.dataset.command}`);
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        // No access to the clipboard: what is selected can be copied by hand.
        getSelection().selectAllChildren(code);
        button.textContent = "Press Ctrl C";
      }
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
    return button;
  };

  for (const code of document.querySelectorAll("code[data-command]")) {
    code.textContent = `${code.dataset.command} ${quoted(address(code.dataset.href))}`;
    code.after(copier(code));
  }
  if (location.protocol !== "file:") $("add").hidden = false;
  $("filters").hidden = false;
  $("filters").addEventListener("input", show);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  show();
  // What an address points at is shown, mature or not.
  const wanted = document.getElementById(location.hash.slice(1));
  if (wanted?.hidden) {
    wanted.hidden = false;
    wanted.scrollIntoView();
  }
}
