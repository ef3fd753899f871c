/** Characters that two texts begin with in common. No character outside the basic plane is cut in two. */
export function common(first, second) {
  const end = Math.min(first.length, second.length);
  let place = 0;
  while (place < end && first[place] === second[place]) place += 1;
  const cut = (text) => text.charCodeAt(place) >= 0xdc00 && text.charCodeAt(place) <= 0xdfff;
  return place > 0 && (cut(first) || cut(second)) ? place - 1 : place;
}

/**
 * Where two answers first differ, as far as they are there; null while they do not.
 * One that goes on behind the other's end differs there, but only once the other has ended.
 */
export function difference(first, second) {
  const place = common(first.text, second.text);
  if (place < first.text.length && place < second.text.length) return place;
  if (first.text.length === second.text.length) return null;
  const shorter = first.text.length < second.text.length ? first : second;
  return shorter.state === "streaming" ? null : place;
}

/** A text before the difference, the rest of the word that it falls into, and what follows. */
export function parts(text, place) {
  const rest = text.slice(place);
  const word = /^\s*\S*/.exec(rest)[0];
  return [text.slice(0, place), word, rest.slice(word.length)];
}

/** Characters as people count them, not UTF-16's units. */
export function characters(text) {
  return [...text].length;
}
