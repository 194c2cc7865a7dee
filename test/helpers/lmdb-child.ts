/** The child process of lmdb.ts: one request on standard input, one answer on standard output. */
import { mkdirSync, rmSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { text } from 'node:stream/consumers';
import type { HexEntry, LmdbContents, LmdbRequest, DbiContents } from './lmdb.ts';

// What we use of node-lmdb; it is not installed where TypeScript could see its own declarations.
interface Txn {
  commit(): void;
  abort(): void;
  putBinary(dbi: Dbi, key: Buffer, value: Buffer, options: { keyIsBuffer: true }): void;
  del(dbi: Dbi, key: Buffer, options: { keyIsBuffer: true }): void;
}
interface Dbi {
  stat(txn: Txn): { entryCount: number };
}
interface Env {
  open(options: Record<string, unknown>): void;
  beginTxn(options?: { readOnly: boolean }): Txn;
  openDbi(options: Record<string, unknown>): Dbi;
  info(): { lastTxnId: number; mapSize: number };
  close(): void;
}
interface Cursor {
  goToFirst(options: { keyIsBuffer: true }): Buffer | null;
  goToNext(options: { keyIsBuffer: true }): Buffer | null;
  getCurrentBinary(): Buffer;
  close(): void;
}
interface NodeLmdb {
  Env: new () => Env;
  Cursor: new (txn: Txn, dbi: Dbi, options: { keyIsBuffer: true }) => Cursor;
}

const BUFFER_KEYS = { keyIsBuffer: true } as const;

const request = JSON.parse(await text(process.stdin)) as LmdbRequest;
const lmdb = createRequire(import.meta.url)(request.module) as NodeLmdb;
const env = new lmdb.Env();
if (request.op === 'write' && !request.noSubdir) mkdirSync(request.path, { recursive: true });
env.open({
  path: request.path,
  noSubdir: request.noSubdir,
  maxDbs: 256,
  readOnly: request.op === 'read',
  mapSize: mapSizeBytes(request),
});
let answer: unknown = {};
try {
  if (request.op === 'read') answer = read();
  else write(request);
} finally {
  env.close();
  rmSync(request.noSubdir ? `${request.path}-lock` : `${request.path}/lock.mdb`, { force: true });
}
process.stdout.write(JSON.stringify(answer));

/** Not smaller than the file: 0 would mean 1 MiB to a writer, and less than the file's pages is an error. */
function mapSizeBytes(request: LmdbRequest): number {
  const file = request.noSubdir ? request.path : `${request.path}/data.mdb`;
  const sizeBytes = statSync(file, { throwIfNoEntry: false })?.size ?? 0;
  const wanted = request.op === 'write' ? (request.mapSizeBytes ?? 0) : 0;
  if (wanted > 0) return wanted;
  return request.op === 'read' ? Math.max(sizeBytes, 1 << 20) : Math.max(sizeBytes * 2, 64 << 20);
}

function read(): LmdbContents {
  const dbis: Record<string, DbiContents> = {};
  const txn = env.beginTxn({ readOnly: true });
  const root = env.openDbi({ name: null, txn, ...BUFFER_KEYS });
  for (const [nameHex, recordHex] of entriesOf(txn, root)) {
    // The value of a DBI's name in the root is its MDB_db record: u32 pad, u16 flags, … (mdb.c)
    const flags = Buffer.from(recordHex, 'hex').readUInt16LE(4);
    const name = Buffer.from(nameHex, 'hex').toString();
    dbis[name] = { flags, entries: entriesOf(txn, env.openDbi({ name, txn, ...BUFFER_KEYS })) };
  }
  txn.abort();
  const { lastTxnId, mapSize } = env.info();
  return { lastTxnId, mapSizeBytes: mapSize, dbis };
}

function entriesOf(txn: Txn, dbi: Dbi): HexEntry[] {
  const entries: HexEntry[] = [];
  const cursor = new lmdb.Cursor(txn, dbi, BUFFER_KEYS);
  for (let key = cursor.goToFirst(BUFFER_KEYS); key !== null; key = cursor.goToNext(BUFFER_KEYS)) {
    entries.push([key.toString('hex'), cursor.getCurrentBinary().toString('hex')]);
  }
  cursor.close();
  return entries;
}

function write(request: LmdbRequest & { op: 'write' }): void {
  const txn = env.beginTxn();
  for (const [name, { flags = 0, entries = [], remove = [] }] of Object.entries(request.dbis)) {
    const options = {
      name,
      txn,
      create: true,
      reverseKey: (flags & 0x02) !== 0,
      dupSort: (flags & 0x04) !== 0,
      dupFixed: (flags & 0x10) !== 0,
      integerDup: (flags & 0x20) !== 0,
      reverseDup: (flags & 0x40) !== 0,
    };
    // INTEGERKEY exists only with number keys there; a second handle on the same DBI takes the bytes.
    if ((flags & 0x08) !== 0) env.openDbi({ ...options, keyIsUint32: true });
    const dbi = env.openDbi(
      (flags & 0x08) !== 0 ? { name, txn, ...BUFFER_KEYS } : { ...options, ...BUFFER_KEYS },
    );
    for (const [key, value] of entries)
      txn.putBinary(dbi, Buffer.from(key, 'hex'), Buffer.from(value, 'hex'), BUFFER_KEYS);
    for (const key of remove) txn.del(dbi, Buffer.from(key, 'hex'), BUFFER_KEYS);
  }
  txn.commit();
}
