// Drives a server with the TypeScript client, and prints what it saw: `typescript.mjs auto|legacy COMMAND`
// or `... URL AUTHORIZATION`, with the value of the header.
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";

const [mode, target, authorization] = process.argv.slice(2);
const client = new Client({ name: "driver", version: "0" }, { versionNegotiation: { mode } });
const transport = target.startsWith("http:")
  ? new StreamableHTTPClientTransport(new URL(target), { requestInit: { headers: { authorization } } })
  : new StdioClientTransport({ command: target });
await client.connect(transport);
const progress = [];
const call = (name, args, options) => client.callTool({ name, arguments: args }, options);
const seen = {
  version: client.getNegotiatedProtocolVersion(),
  tools: await client.listTools(),
  part: await call("get_part", { sku: "BRG-6204" }),
  refused: await call("get_part", { sku: "bearing" }),
  counted: await call("stocktake", {}, { onprogress: (each) => progress.push(each) }),
  resource: await client.readResource({ uri: "part://BRG-6204" }),
  prompt: await client.getPrompt({ name: "reorder", arguments: { sku: "BRG-6204" } }),
};
await client.close();
console.log(JSON.stringify({ ...seen, progress }));
