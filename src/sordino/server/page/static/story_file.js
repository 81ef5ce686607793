// Stories from files.

const TITLE = 300;

/** A story from a file: one of this page's, or any text. */
export async function readStory(file) {
  if (!/\.json$/i.test(file.name))
    return { text: await file.text(), title: file.name.replace(/\.[^.]*$/, "").slice(0, TITLE) };
  const story = await file
    .text()
    .then(JSON.parse)
    .catch(() => {
      throw new Error("it is not JSON");
    });
  if (typeof story?.text !== "string") throw new Error("it contains no story");
  const fields = Object.fromEntries(["title", "text", "memory", "note", "output"].map((key) => [key, String(story[key] ?? "")]));
  return { ...fields, title: fields.title.slice(0, TITLE), generated: ranges(story.generated, story.text.length) };
}

/** Those of a list that are ranges of a text of this length, one after the other. */
function ranges(list, length) {
  let last = 0;
  return (Array.isArray(list) ? list : []).filter((one) => {
    const [from, to] = Array.isArray(one) && one.length === 2 && one.every(Number.isSafeInteger) ? one : [0, 0];
    const isRange = from >= last && from < to && to <= length;
    if (isRange) last = to;
    return isRange;
  });
}
