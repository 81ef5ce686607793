// Where the address points: a place, and what is open in it.

/** #train/0a1b: {page: "train", rest: "0a1b"}. */
export const route = () => {
  const [page, ...rest] = location.hash.slice(1).split("/");
  return { page, rest: decoded(rest.join("/")) };
};

/** What somebody typed may be no encoding. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
