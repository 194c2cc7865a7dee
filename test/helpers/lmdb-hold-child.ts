/** The child process of holdLmdb in lmdb.ts: opens an environment and keeps it open until its standard input ends. */
import { createRequire } from 'node:module';
import { text } from 'node:stream/consumers';

interface NodeLmdb {
  Env: new () => { open(options: Record<string, unknown>): void; close(): void };
}

const [module = '', path = '', noSubdir] = process.argv.slice(2);
const { Env } = createRequire(import.meta.url)(module) as NodeLmdb;
const env = new Env();
env.open({ path, noSubdir: noSubdir === 'true', maxDbs: 16, mapSize: 64 << 20 });
process.stdout.write('open\n');
await text(process.stdin);
env.close();
