// How a desktop client starts an unpacked bundle: node bundle.mjs FOLDER ANSWERS, as JSON on stdout.
import { readFileSync } from "node:fs";
import { join } from "node:path";

import { getMcpConfigForManifest } from "@anthropic-ai/mcpb";

const [folder, answers] = process.argv.slice(2);
const config = await getMcpConfigForManifest({
  manifest: JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8")),
  extensionPath: folder,
  systemDirs: {},
  userConfig: JSON.parse(answers),
  pathSeparator: "/",
});
console.log(JSON.stringify(config));
