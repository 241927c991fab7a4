// Draws what is described, and changes no more of a page than differs: who reads, types or chooses is not disturbed.
//
// It makes elements, attributes and texts, never markup, so what strangers wrote stays text. None of the attributes
// that it is given runs a script or leads elsewhere.

const SVG = "http://www.w3.org/2000/svg";

const drawn = new WeakMap(); // node → its key among its siblings, and the attributes that it was given

/** Describe an element. By tag and `key` it is known among its siblings; `on…` are listeners. */
export const h = (tag, attributes, ...children) => ({ tag, attributes: attributes ?? {}, children });

/** Make the children of `parent` those described. What stays the same node keeps focus, selection and scroll. */
export function draw(parent, ...children) {
  const before = new Map(Array.from(parent.childNodes, (node) => [drawn.get(node)?.key, node]));
  const counts = {};
  const shown = children.flat(4).filter((child) => child || child === 0);
  const nodes = shown.map((child) => {
    const name = `${child.tag ?? "text"} ${child.attributes?.key ?? ""}`;
    counts[name] = (counts[name] ?? 0) + 1;
    const key = `${name} ${counts[name]}`;
    const node = before.get(key) ?? create(child, parent);
    before.delete(key);
    update(node, child);
    drawn.set(node, { key, attributes: child.attributes });
    return node;
  });
  before.forEach((node) => node.remove());
  nodes.forEach((node, at) => {
    if (parent.childNodes[at] !== node) parent.insertBefore(node, parent.childNodes[at] ?? null);
  });
}

function create(child, parent) {
  if (child.tag === undefined) return document.createTextNode("");
  return document.createElementNS(child.tag === "svg" ? SVG : parent.namespaceURI, child.tag);
}

function update(node, child) {
  if (child.tag === undefined) {
    if (node.data !== String(child)) node.data = child;
    return;
  }
  const was = drawn.get(node)?.attributes ?? {};
  for (const name of Object.keys({ ...was, ...child.attributes })) {
    const value = child.attributes[name] ?? false;
    if (name === "checked") node.checked = value; // the attribute says only what it began with
    else if (name === "key" || value === was[name]) continue;
    else if (name.startsWith("on")) node[name] = value || null;
    else if (value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : value);
  }
  draw(node, child.children);
}
