// Prints, per array of a store, its shape and the SHA-256 of its values: node read.mjs STORE ARRAY...
// Node before 24 has no Float16Array: its 16 bits are read as they are then, which compares just as well.
import { createHash } from "node:crypto";

globalThis.Float16Array ??= class Float16Array extends Uint16Array {};
const zarr = await import("zarrita");
const { FileSystemStore } = await import("@zarrita/storage");

const [folder, ...paths] = process.argv.slice(2);
const root = zarr.root(new FileSystemStore(folder));
const found = {};
for (const path of paths) {
  const array = await zarr.open.v3(root.resolve(path), { kind: "array" });
  const { data, shape } = await zarr.get(array);
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  found[path] = { shape, sha256: createHash("sha256").update(bytes).digest("hex") };
}
console.log(JSON.stringify(found));
