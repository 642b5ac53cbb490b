// What a browser shows of the report, measured where it is. Returns a list of complaints.

function visible(element) {
  return element.checkVisibility() && element.getClientRects().length > 0;
}

function channels(colour) {
  return colour.match(/[\d.]+/g).map(Number);
}

function luminance(rgb) {
  const [red, green, blue] = rgb.slice(0, 3).map(part => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function contrast(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

// The colour behind an element of HTML: the nearest one that is not transparent.
function behind(element) {
  for (let each = element; each; each = each.parentElement) {
    const colour = channels(getComputedStyle(each).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
}

// The colour behind a text of a picture: that of the last whole area drawn before it there.
function beneath(text, areas) {
  const box = text.getBoundingClientRect();
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  const under = areas.filter(({ place }) =>
    place.left <= x && x <= place.right && place.top <= y && y <= place.bottom);
  return under.length ? channels(under.at(-1).fill) : behind(text.ownerSVGElement);
}

function areas(picture) {
  return [...picture.querySelectorAll("path")]
    .filter(path => !path.closest("defs"))
    .map(path => ({ style: getComputedStyle(path), place: path.getBoundingClientRect() }))
    .filter(({ style }) => style.fill !== "none" && Number(style.fillOpacity) === 1)
    .map(({ style, place }) => ({ fill: style.fill, place }));
}

function texts() {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = new Set();
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (walker.currentNode.data.trim() && visible(parent)) found.add(parent);
  }
  return [...found];
}

const complaints = [];
const pictures = [...document.querySelectorAll("svg")].filter(visible);
const under = new Map(pictures.map(picture => [picture, areas(picture)]));
let measured = 0;

for (const text of texts()) {
  const style = getComputedStyle(text);
  const picture = text.ownerSVGElement;
  const colour = channels(picture ? style.fill : style.color);
  const ground = picture ? beneath(text, under.get(picture)) : behind(text);
  const ratio = contrast(colour, ground);
  measured += 1;
  if (ratio < 4.5) complaints.push(`contrast ${ratio.toFixed(2)}: ${text.textContent}`);
  if (!picture) continue;
  const size = parseFloat(style.fontSize) * picture.getBoundingClientRect().width
    / picture.viewBox.baseVal.width;
  if (size < 8.5) complaints.push(`${size.toFixed(1)} pixels: ${text.textContent}`);
  const [inner, outer] = [text.getBoundingClientRect(), picture.getBoundingClientRect()];
  if (inner.left < outer.left - 1 || inner.right > outer.right + 1
      || inner.top < outer.top - 3 || inner.bottom > outer.bottom + 3) {
    complaints.push(`cut off: ${text.textContent}`);
  }
}

for (const picture of pictures) {
  const ground = behind(picture);
  for (const line of picture.querySelectorAll("path[stroke^='var(--series'], path[stroke='var(--others)']")) {
    if (line.closest("defs")) continue;
    const ratio = contrast(channels(getComputedStyle(line).stroke), ground);
    measured += 1;
    if (ratio < 3) complaints.push(`line ${ratio.toFixed(2)}: ${line.getAttribute("stroke")}`);
  }
}

const page = document.documentElement;
if (page.scrollWidth > innerWidth) complaints.push(`the page is ${page.scrollWidth} wide`);
return { complaints, measured, pictures: pictures.length };
