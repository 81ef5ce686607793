// Icons: strokes on a grid of 24, in the colour of the text beside them.

import { svg } from "./dom.js";

const PATHS = {
  write: "M4 20h16M5 16.5 15.5 6a2 2 0 0 1 2.8 0l.7.7a2 2 0 0 1 0 2.8L8.5 20",
  chat: "M4 5h16v11H10l-4.5 4v-4H4z",
  prompts: "M4 7l8-4 8 4-8 4zM4 12l8 4 8-4M4 17l8 4 8-4",
  train: "M4 20V4M4 20h16M7 8c2 6 4 8 12 8.5",
  connect: "M9 7V3M15 7V3M6 7h12v4a6 6 0 0 1-12 0zM12 17v4",
  close: "M6 6l12 12M18 6 6 18",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  list: "M4 6h16M4 12h16M4 18h10",
  sliders: "M4 7h10M18 7h2M4 17h2M10 17h10M16 4.5v5M8 14.5v5",
  compare: "M4 5h7v14H4zM13 5h7v14h-7z",
  down: "M6 9l6 6 6-6",
  left: "M15 6l-6 6 6 6",
  right: "M9 6l6 6-6 6",
};

/** An icon that screen readers skip: the control that has it needs a text or a label. */
export const icon = (name) =>
  svg(
    "svg",
    { class: "icon", viewBox: "0 0 24 24", width: 18, height: 18, "aria-hidden": "true" },
    svg("path", {
      d: PATHS[name],
      fill: "none",
      stroke: "currentColor",
      "stroke-width": name === "more" ? 3 : 1.8,
      "stroke-linecap": "round",
      "stroke-linejoin": "round",
    }),
  );
