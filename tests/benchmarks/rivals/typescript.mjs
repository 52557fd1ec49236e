// The TypeScript SDK alone: `node typescript.mjs stdio` or `... http PORT`. Stateless in both eras, its default.
import { createServer } from 'node:http';
import { McpServer, createMcpHandler } from '@modelcontextprotocol/server';
import * as z from 'zod/v4';

function make() {
    const server = new McpServer({ name: 'typescript', version: '1.0.0' });
    server.registerTool(
        'add',
        {
            description: 'Add two numbers.',
            inputSchema: z.object({ a: z.number().int(), b: z.number().int() }),
            outputSchema: z.object({ result: z.number().int() })
        },
        async ({ a, b }) => ({ content: [{ type: 'text', text: String(a + b) }], structuredContent: { result: a + b } })
    );
    return server;
}

const [transport, port] = process.argv.slice(2);
if (transport === 'stdio') {
    const { serveStdio } = await import('@modelcontextprotocol/server/stdio');
    serveStdio(make);
} else {
    const { toNodeHandler } = await import('@modelcontextprotocol/node');
    createServer(toNodeHandler(createMcpHandler(make))).listen(Number(port), '127.0.0.1');
}
