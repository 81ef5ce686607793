// What a wait is for: shown where it lasts long enough to be noticed.

const NOTICED_MS = 300;

/** The result of `work`. A button that started it is disabled meanwhile, and says what it waits for after 0.3 s. */
export async function waiting(button, text, work) {
  const content = [...button.childNodes];
  const timer = setTimeout(() => button.replaceChildren(text), NOTICED_MS);
  button.disabled = true;
  button.ariaBusy = "true";
  try {
    return await work();
  } finally {
    clearTimeout(timer);
    button.replaceChildren(...content);
    button.disabled = false;
    button.ariaBusy = "false";
  }
}

/** Show in `place` what is being waited for, unless the returned function is called within 0.3 s; it takes it away. */
export function waitingIn(place, text) {
  let shown = false;
  const timer = setTimeout(() => {
    shown = true;
    place.textContent = text;
  }, NOTICED_MS);
  return () => {
    clearTimeout(timer);
    if (shown) place.textContent = "";
    shown = false;
  };
}
