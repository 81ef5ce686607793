import { $, NO_ANSWER, onKeyRequired } from "./dom.js";
import { startAttention } from "./attention.js";
import { startChat } from "./chat.js";
import { startConnect } from "./connect.js";
import { startFind } from "./find.js";
import { startGalleries } from "./galleries.js";
import { icon } from "./icons.js";
import { startLampPanel } from "./lamp.js";
import { choice, startLamp } from "./status.js";
import { live } from "./live.js";
import { startMixing } from "./mixing.js";
import { startModels } from "./models.js";
import { startPrompts } from "./prompts.js";
import { loadForm } from "./recipe.js";
import { route } from "./route.js";
import { startTrain } from "./train.js";
import { startWrite } from "./write.js";

const PAGES = ["write", "chat", "prompts", "find", "train", "connect"];
// Parts of another place of the rail.
const PARTS = { find: "prompts" };

function turn() {
  const page = PAGES.includes(route().page) ? route().page : PAGES[0];
  for (const name of PAGES) $(name).hidden = name !== page;
  for (const link of document.querySelectorAll("#rail a")) {
    if (link.hash === `#${PARTS[page] ?? page}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.body.dataset.page = page;
  document.querySelector("main").scrollTop = 0;
  document.dispatchEvent(new CustomEvent("page", { detail: page }));
}

function startLogin() {
  onKeyRequired(() => {
    if ($("login").open) return;
    $("login").showModal();
    choice.show();
  });
  // The page is of no use without: it cannot be closed.
  $("login").addEventListener("cancel", (event) => event.preventDefault());
  $("login-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const answer = await fetch("ui/login", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ key: $("login-key").value }),
    }).catch(() => null);
    if (answer?.ok) location.reload();
    else $("login-status").textContent = answer ? (await answer.json()).error.message : NO_ANSWER;
  });
}

for (const one of document.querySelectorAll("[data-icon]")) one.prepend(icon(one.dataset.icon));
startLogin();
startLamp();
startLampPanel();
startAttention();
startMixing();
startModels();
startPrompts();
startFind();
startGalleries();
await loadForm();
startTrain();
startConnect();
addEventListener("hashchange", turn);
turn();
live.start();
await Promise.all([startWrite(), startChat()]);
