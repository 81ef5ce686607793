// Ranges of a text, [from, to) in UTF-16 code units, in order; and how they move when the text is edited.

/** The ranges after `removed` units at `at` were replaced by `added` others, which belong to none. */
export function edited(ranges, at, removed, added) {
  const end = at + removed,
    by = added - removed;
  return ranges
    .flatMap(([from, to]) => [
      [from, Math.min(to, at)],
      [Math.max(from, end) + by, to + by],
    ])
    .filter(([from, to]) => from < to);
}

/** With [from, to), which is after all others. */
export function extended(ranges, from, to) {
  const last = ranges.at(-1);
  return last?.[1] === from ? [...ranges.slice(0, -1), [last[0], to]] : [...ranges, [from, to]];
}

/** What of the ranges lies in [from, to), counted from there. */
export const within = (ranges, from, to) =>
  ranges
    .filter((range) => range[1] > from && range[0] < to)
    .map((range) => [Math.max(range[0], from) - from, Math.min(range[1], to) - from]);

/** Where two texts differ, as one replacement: see `edited`. */
export function difference(had, now) {
  const most = Math.min(had.length, now.length);
  let at = 0,
    same = 0;
  while (at < most && had.charCodeAt(at) === now.charCodeAt(at)) at += 1;
  while (same < most - at && had.charCodeAt(had.length - 1 - same) === now.charCodeAt(now.length - 1 - same)) same += 1;
  return { at, removed: had.length - at - same, added: now.length - at - same };
}
