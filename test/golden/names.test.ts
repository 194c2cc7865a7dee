import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import {
  buildSnapshotName,
  parseSnapshotName,
  sanitizeInstance,
  shortHash,
} from '../../src/snapshot/name.ts';
import { readListing } from '../../src/snapshot/listing.ts';

/** Observed with PowerDNS Lightning Stream 1.0. */
interface Golden {
  readonly parse: readonly (
    | { readonly name: string; readonly valid: false; readonly error: string }
    | {
        readonly name: string;
        readonly valid: true;
        readonly db: string;
        readonly instance: string;
        readonly timestamp: string;
        readonly generation: string;
        readonly extra: readonly string[];
        readonly extension: string;
        readonly kind: string;
        readonly unix_nano: string;
        readonly short_hash: string;
        readonly rebuilt: string;
      }
  )[];
  readonly sanitize: readonly { readonly configured: string; readonly instance: string }[];
  readonly listing_order: { readonly sorted: readonly string[] };
}

const golden = JSON.parse(readFileSync(new URL('names/names.json', import.meta.url), 'utf8')) as Golden;

/** Signed nanoseconds are an accident of the reference's number parser, nobody writes them: we refuse them. */
const oddities = [
  'main__inst__20240101-000000-+00000000__GX.pb.gz',
  'main__inst__20240101-000000--00000000__GX.pb.gz',
];

describe('names as the reference reads them', () => {
  test('the data holds both verdicts and the oddities', () => {
    expect(golden.parse.filter((c) => c.valid).length).toBeGreaterThan(30);
    expect(golden.parse.filter((c) => !c.valid).length).toBeGreaterThan(30);
    expect(golden.parse.filter((c) => c.valid && oddities.includes(c.name))).toHaveLength(2);
  });

  test.each(golden.parse.map((c) => [JSON.stringify(c.name), c] as const))('%s', (_title, expected) => {
    const parsed = parseSnapshotName(expected.name);
    if (!expected.valid || oddities.includes(expected.name)) {
      expect(parsed).toBeUndefined();
      return;
    }
    expect(parsed).toMatchObject({
      name: expected.name,
      database: expected.db,
      instance: expected.instance,
      timestamp: expected.timestamp,
      generation: expected.generation,
      extras: expected.extra,
      extension: expected.extension,
      kind: expected.kind,
    });
    // The reference's number wraps around outside 1678 to 2262, ours does not.
    expect(BigInt.asIntN(64, parsed?.timestampNano ?? -1n)).toBe(BigInt(expected.unix_nano));
    expect(shortHash(expected.instance, expected.timestamp)).toBe(expected.short_hash);
    expect(buildSnapshotName({ ...(parsed ?? expect.fail()), timestamp: expected.timestamp })).toBe(
      expected.rebuilt,
    );
    expect(buildSnapshotName({ ...(parsed ?? expect.fail()), timestamp: parsed?.timestampNano ?? 0n })).toBe(
      expected.rebuilt,
    );
  });

  test.each(golden.sanitize.map((c) => [JSON.stringify(c.configured), c] as const))(
    'instance %s',
    (_title, { configured, instance }) => {
      expect(sanitizeInstance(configured)).toBe(instance);
    },
  );

  test('order of a listing', () => {
    const shuffled = golden.listing_order.sorted.toReversed().map((name) => ({ name, sizeBytes: 1 }));
    const listing = readListing(shuffled, 'main');
    expect(listing.snapshots.map((snapshot) => snapshot.name.name)).toEqual(golden.listing_order.sorted);
    expect(listing.newest('a')?.name.name).toBe('main__a__20240229-123456-123456790__GX.pb.gz');
    expect(listing.newest('a-b')?.name.name).toBe('main__a-b__20240229-123456-123456789__GX.pb.gz');
    expect(listing.newest('b')?.name.name).toBe('main__b__20200101-000000-000000000__GX.pb.gz');
    expect(listing.newest('c')).toBeUndefined();
  });
});
