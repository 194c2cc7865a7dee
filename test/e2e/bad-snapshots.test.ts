/** What a broken or hostile writer can put into the storage, arriving at a running daemon. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { cluster, type Cluster, DBI, type Instance, objectName, watchMemory } from './helpers.ts';
import {
  bytesField,
  entry,
  groupStart,
  head,
  member,
  openField,
  repeated,
  snapshot,
  varint,
  varintField,
} from './snapshot-maker.ts';

/** Anonymous memory of the whole daemon that none of these may push it over. */
const MOST_MEMORY_MIB = 64;
const MIB = 1 << 20;

const good = snapshot(DBI, [{ key: 'from-evil', value: 'x', timestampNano: 5n }]);
const dbiName = bytesField(1, Buffer.from(DBI));
const zeros = Buffer.alloc(16 * MIB);

interface Case {
  readonly what: string;
  readonly object: () => Buffer;
  /** `corrupt`: seen while reading alone. `refused`: set aside, health warns. `merged`: legal, however odd. */
  readonly verdict: 'corrupt' | 'refused' | 'merged';
  /** What the log has to name as the cause. */
  readonly why?: RegExp;
}

const cases: readonly Case[] = [
  { what: 'an empty object', object: () => Buffer.alloc(0), verdict: 'corrupt', why: /empty/ },
  {
    what: 'a web page',
    object: () => Buffer.from('<html>captive portal</html>'),
    verdict: 'corrupt',
    why: /not a gzip/,
  },
  { what: 'cut in half', object: () => member(good).subarray(0, 40), verdict: 'corrupt', why: /cut short/ },
  {
    what: 'without its last byte',
    object: () => member(good).subarray(0, -1),
    verdict: 'corrupt',
    why: /cut short/,
  },
  {
    what: 'a wrong checksum',
    object: () => {
      const object = member(good);
      const at = object.length - 8;
      object.writeUInt8(object.readUInt8(at) ^ 1, at);
      return object;
    },
    verdict: 'corrupt',
    why: /checksum/,
  },
  {
    what: 'a DBI longer than the object',
    object: () => member(Buffer.concat([head(), openField(3, 1n << 40n), dbiName])),
    verdict: 'corrupt',
    why: /ends inside a DBI/,
  },
  {
    what: 'a DBI of 2^64-1 bytes',
    object: () => member(Buffer.concat([head(), openField(3, (1n << 64n) - 1n), dbiName])),
    verdict: 'corrupt',
    why: /18446744073709551615/,
  },
  {
    what: 'a length that is no number',
    object: () => member(Buffer.concat([head(), Buffer.from([0x1a]), Buffer.alloc(11, 0xff)])),
    verdict: 'corrupt',
    why: /longer than 64 bits/,
  },
  {
    what: 'a name of 1 GiB',
    object: () =>
      Buffer.concat([
        member(Buffer.concat([head(), openField(3, BigInt(64 * zeros.length + 6)), openField(1, 1n << 30n)])),
        repeated(zeros, 64),
      ]),
    verdict: 'corrupt',
    why: /name has 1073741824 bytes/,
  },
  {
    what: 'a value of 2^63 bytes',
    object: () => {
      const kv = Buffer.concat([bytesField(1, Buffer.from('k')), openField(2, 1n << 63n)]);
      return member(Buffer.concat([head(), bytesField(3, Buffer.concat([dbiName, bytesField(2, kv)]))]));
    },
    verdict: 'refused',
    why: /9223372036854775808 bytes/,
  },
  {
    what: 'one value of 4 GiB of zeros',
    object: () => {
      const lengthBytes = BigInt(zeros.length) * 256n;
      const value = openField(2, lengthBytes);
      const key = bytesField(1, Buffer.from('big'));
      const kvLength = BigInt(key.length + value.length) + lengthBytes;
      const kv = openField(2, kvLength);
      const dbi = openField(3, BigInt(dbiName.length + kv.length) + kvLength);
      return Buffer.concat([
        member(Buffer.concat([head(), dbi, dbiName, kv, key, value])),
        repeated(zeros, 256),
      ]);
    },
    verdict: 'refused',
    why: /4294967307 bytes, at most/,
  },
  {
    what: 'an unknown field of 4 GiB of zeros',
    object: () =>
      Buffer.concat([
        member(Buffer.concat([head(), openField(15, BigInt(zeros.length) * 256n)])),
        repeated(zeros, 256),
        member(good.subarray(head().length)),
      ]),
    verdict: 'merged',
  },
  {
    what: 'eight million entries of one key',
    object: () => {
      const kv = entry({ key: 'from-evil', value: 'x', timestampNano: 5n });
      const count = 100_000;
      const piece = Buffer.concat(Array.from({ length: count }, () => kv));
      const dbi = openField(3, BigInt(dbiName.length) + BigInt(piece.length) * 80n);
      return Buffer.concat([member(Buffer.concat([head(), dbi, dbiName])), repeated(piece, 80)]);
    },
    verdict: 'merged',
  },
  {
    what: 'a hundred million entries of no bytes',
    object: () => {
      // Tag and length 0, half a million times per MiB.
      const piece = Buffer.alloc(16 * MIB);
      for (let at = 0; at < piece.length; at += 2) piece[at] = 0x12;
      const dbi = openField(3, BigInt(dbiName.length) + BigInt(piece.length) * 12n);
      return Buffer.concat([member(Buffer.concat([head(), dbi, dbiName])), repeated(piece, 12)]);
    },
    verdict: 'refused',
    why: /no key/,
  },
  {
    what: 'a hundred thousand DBIs',
    object: () =>
      member(Buffer.concat([head(), ...Array.from({ length: 100_000 }, () => bytesField(3, dbiName))])),
    verdict: 'corrupt',
    why: /more than \d+ DBI/,
  },
  {
    what: 'groups nested 16 million deep',
    object: () => Buffer.concat([member(head()), repeated(Buffer.alloc(MIB, groupStart(15)), 16)]),
    verdict: 'corrupt',
    why: /wire type 3/,
  },
  {
    what: 'a million empty gzip members before the end',
    object: () => {
      const none = member(Buffer.alloc(0));
      const many = Buffer.concat(Array.from({ length: 1_000_000 }, () => none));
      return Buffer.concat([member(good), many]);
    },
    verdict: 'merged',
  },
  {
    what: 'a compatVersion of the future',
    object: () => member(Buffer.concat([good, varintField(4, 4n)])),
    verdict: 'refused',
    why: /compatVersion 4/,
  },
  {
    what: 'a key longer than LMDB takes',
    object: () => member(snapshot(DBI, [{ key: 'k'.repeat(512), value: 'x', timestampNano: 5n }])),
    verdict: 'refused',
    why: /key of 512 bytes/,
  },
  {
    what: 'a good entry, then a malformed one',
    object: () => {
      const kvs = Buffer.concat([
        entry({ key: 'half', value: 'x', timestampNano: 5n }),
        bytesField(2, varint(1n)),
      ]);
      return member(Buffer.concat([head(), bytesField(3, Buffer.concat([dbiName, kvs]))]));
    },
    verdict: 'refused',
    why: /malformed entry at byte 54/,
  },
];

describe('a bad snapshot at a running daemon', () => {
  let net: Cluster;
  let a: Instance;
  let count = 0;

  beforeAll(async () => {
    net = await cluster(1);
    a = net.instance('a');
    await a.app.put(DBI, 'local', 'here');
    await net.start();
  });
  afterAll(() => net[Symbol.asyncDispose]());

  test.each(cases)('$what: $verdict', async ({ object, verdict, why }) => {
    const number = ++count;
    const name = objectName(`evil-${number}`);
    const { pid } = a.daemon;
    const content = object();
    const memory = watchMemory(pid);
    await net.upload(name, content);
    const line = await a.logged(
      {
        corrupt: 'Snapshot marked as corrupt and will be ignored',
        refused: 'Snapshot cannot be merged and is set aside until there is a newer one',
        merged: 'Loaded remote update',
      }[verdict],
      ({ filename, snapshot_instance }) => filename === name || snapshot_instance === `evil-${number}`,
      60_000,
    );
    if (why !== undefined) expect(line['error']).toMatch(why);

    // Others go on, and the newer one of the same writer is taken.
    await net.upload(
      objectName('good'),
      member(snapshot(DBI, [{ key: 'news', value: `${number}`, timestampNano: BigInt(number) }])),
    );
    await a.has('news', `${number}`);
    const { warnings, httpStatus } = await a.health();
    expect(httpStatus).toBe(200);
    if (verdict === 'refused') expect(warnings['main_snapshot_set_aside']).toContain(name);
    await net.upload(
      objectName(`evil-${number}`),
      member(snapshot(DBI, [{ key: `better-${number}`, value: 'now', timestampNano: 5n }])),
    );
    await a.has(`better-${number}`, 'now');
    await a.ok();
    expect(memory.stop(), 'MiB of anonymous memory').toBeLessThanOrEqual(MOST_MEMORY_MIB);

    expect(a.daemon.child.exitCode).toBeNull();
    expect(await a.app.get(DBI, 'half')).toBeUndefined();
    expect(await a.app.get(DBI, 'local')).toMatchObject({ value: 'here' });
    expect(a.daemon.stderr()).not.toMatch(/\n\s+at /);
  });
});
