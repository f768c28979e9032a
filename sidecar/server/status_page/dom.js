// The page's elements: made once, then only changed where something is different, so that nothing flickers.

const SVG = "http://www.w3.org/2000/svg";

export const find = (id) => document.getElementById(id);

export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function makeSvg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function mark(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// Keeps one child for each item, in their order: `create` makes it, `update` fills it in, `key` says which is which.
export function keep(parent, items, key, create, update) {
  const kept = (parent.kept ??= new Map());
  const wanted = new Set(items.map(key));
  for (const [each, element] of kept) {
    if (!wanted.has(each)) {
      element.remove();
      kept.delete(each);
    }
  }
  items.forEach((item, place) => {
    let element = kept.get(key(item));
    if (element === undefined) {
      element = create(item);
      kept.set(key(item), element);
    }
    if (parent.children[place] !== element) parent.insertBefore(element, parent.children[place] ?? null);
    update(element, item);
  });
}
