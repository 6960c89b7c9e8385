// Runs the script of a page of `fd3d inspect --html` without a browser: node page.mjs PAGE. Prints, as JSON, what is drawn on
// the bird's-eye view as [method, ...numbers and texts], and all texts that the script sets.
import { readFileSync } from "node:fs";
import { runInNewContext } from "node:vm";

const page = readFileSync(process.argv[2], "utf8");
const payload = page.split('id="payload">')[1].split("</script>")[0];
const script = page.split("<script>\n")[1].split("</script>")[0];
const texts = [];
const drawn = {};

/** An element, context or event that answers everything: a method with another such thing, a property with what was set. */
function thing(name, own = {}) {
  return new Proxy(function () {}, {
    get(_, key) {
      if (key in own) return own[key];
      if (key === Symbol.toPrimitive) return () => name;
      if (key === Symbol.iterator) return [][Symbol.iterator].bind([]);
      if (key === "children") return [];
      return (own[key] = thing(`${name}.${String(key)}`));
    },
    set(_, key, value) {
      if (key === "textContent") texts.push(String(value));
      own[key] = value;
      return true;
    },
    has: () => true,
    apply: () => thing(`${name}()`),
  });
}

function context(id) {
  const calls = (drawn[id] ??= []);
  return new Proxy(
    {},
    {
      get: (own, key) =>
        own[key] ??
        ((...given) => (calls.push([key, ...given]), { data: { set() {} } })),
      set: (own, key, value) => ((own[key] = value), true),
    },
  );
}

function element(id) {
  const at = context(id);
  return thing(id, { clientWidth: 400, clientHeight: 400, checked: true, value: "none", getContext: () => at });
}

const known = { payload: thing("payload", { textContent: payload }) };
const document = thing("document", {
  getElementById: (id) => (known[id] ??= element(id)),
  createElement: (name) => element(name),
  querySelector: () => element("map"),
});
const globals = {
  document,
  atob,
  console,
  window: { devicePixelRatio: 1 },
  setTimeout: () => 0,
  requestAnimationFrame: (draw) => globals.frames.push(draw),
  frames: [],
  getComputedStyle: () => ({ getPropertyValue: () => "#fff" }),
  matchMedia: () => thing("media"),
  ResizeObserver: class {
    observe() {}
  },
  Image: class {
    addEventListener() {}
  },
};
runInNewContext(`(() => {${script}\nupdateList(); choose(visible(frames[0])[0]);})()`, globals);
globals.frames.forEach((draw) => draw());
process.stdout.write(JSON.stringify({ bev: drawn.bev, texts }));
