// The metadata of a soft prompt, changed in its file.

import { call, el, setStatus } from "./dom.js";
import { toast } from "./toast.js";

/** A form for what a file says about itself; its matrix stays as it is. Returns {form, show(details)}: what has been
 * edited and not saved stays. */
export function editor(path) {
  const fields = Object.fromEntries(
    ["name", "author", "licence"].map((key) => [key, el("input", { maxLength: 300 })]),
  );
  fields.tags = el("input", {});
  fields.description = el("textarea", { rows: 3 });
  fields.rating = el(
    "select",
    {},
    ...["", "general", "mature", "explicit"].map((one) => el("option", { value: one }, one || "none")),
  );
  let inFile = {};
  const show = (details) => {
    const now = { ...details, tags: details.tags.join(", ") };
    for (const [key, field] of Object.entries(fields))
      if (field.value === (inFile[key] ?? field.value)) field.value = now[key];
    inFile = now;
  };
  const status = el("span", { role: "alert" });
  const form = el("form", {
    onsubmit: async (event) => {
      event.preventDefault();
      const json = Object.fromEntries(Object.entries(fields).map(([key, field]) => [key, field.value]));
      json.tags = json.tags
        .split(",")
        .map((tag) => tag.trim())
        .filter(Boolean);
      try {
        const details = await call(path, { method: "PATCH", json });
        setStatus(status, "");
        toast(`Saved to ${details.file}`, "good");
      } catch (error) {
        setStatus(status, error.message, "bad");
      }
    },
  });
  form.append(
    ...Object.entries(fields).map(([key, field]) =>
      el("label", { class: "field" }, key[0].toUpperCase() + key.slice(1), field),
    ),
    el("p", { class: "bar" }, el("button", {}, "Save"), status),
  );
  return { form, show };
}
