import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { newestUsable, readListing, stillListed } from '../../src/snapshot/listing.ts';
import { buildSnapshotName, parseSnapshotName } from '../../src/snapshot/name.ts';
import type { StorageObject } from '../../src/storage/storage.ts';

const DAY = 86_400_000_000_000n;
const day = (instance: string, days: number, database = 'main'): string =>
  buildSnapshotName({ database, instance, timestamp: DAY * BigInt(days) });
const objects = (...names: readonly string[]): StorageObject[] =>
  names.map((name) => ({ name, sizeBytes: 10 }));
const namesOf = (found: readonly { readonly name: { readonly name: string } }[]): string[] =>
  found.map(({ name }) => name.name);

/** Small worlds, so that instances, days and databases meet often. */
const snapshot = fc
  .tuple(
    fc.constantFrom('main', 'mai', 'main-2', 'ma_in'),
    fc.constantFrom('a', 'a-b', 'b', 'A', ''),
    fc.nat(20),
  )
  .map(([database, instance, days]) => day(instance, days, database));
const stray = fc.constantFrom(
  'main__a__x__GX.pb.gz',
  'main__a.pb.gz',
  'main__',
  'main__a__19700102-000000-000000000__GX.delta.gz',
  'main',
  'update-marker',
  'mainx__a__19700102-000000-000000000__GX.pb.gz',
);
const content = fc.uniqueArray(fc.oneof({ weight: 4, arbitrary: snapshot }, stray), { maxLength: 30 });

describe('a listing', () => {
  test('knows each instance’s snapshots of one database, and what is none', () => {
    const listing = readListing(
      objects(
        day('b', 1),
        day('a', 3),
        day('a', 1),
        day('a', 9, 'shard'),
        'main__x.pb.gz',
        'other',
        'main__',
      ),
      'main',
    );
    expect(namesOf(listing.snapshots)).toEqual([day('a', 1), day('a', 3), day('b', 1)]);
    expect(namesOf(listing.byInstance.get('a') ?? [])).toEqual([day('a', 1), day('a', 3)]);
    expect(listing.newest('a')?.name.name).toBe(day('a', 3));
    expect(listing.newest('a', ({ name }) => name.name !== day('a', 3))?.name.name).toBe(day('a', 1));
    expect(listing.newest('c')).toBeUndefined();
    expect(listing.unrecognised).toEqual(['main__', 'main__x.pb.gz']);
    expect(listing.totalBytes).toBe(30);
  });

  test('an unknown kind of object is not a snapshot', () => {
    const listing = readListing(objects('main__a__19700102-000000-000000000__GX.delta.gz'), 'main');
    expect(listing.byInstance.size).toBe(0);
    expect(listing.unrecognised).toHaveLength(1);
  });

  test('a name that belongs to another database when it is read is not ours', () => {
    const name = day('_a', 1, 'ma');
    expect(name).toMatch(/^ma___a__/);
    expect(readListing(objects(name), 'ma_')).toMatchObject({ snapshots: [], unrecognised: [name] });
  });

  test('puts every object of the database in exactly one place, whatever the order', () => {
    fc.assert(
      fc.property(content, fc.infiniteStream(fc.nat()), (names, random) => {
        const listing = readListing(objects(...names), 'main');
        const ours = names.filter((name) => name.startsWith('main__'));
        expect([...namesOf(listing.snapshots), ...listing.unrecognised].sort()).toEqual(ours.sort());
        expect([...listing.byInstance.values()].flatMap(namesOf).sort()).toEqual(
          namesOf(listing.snapshots).sort(),
        );
        for (const [instance, snapshots] of listing.byInstance) {
          expect(snapshots.length).toBeGreaterThan(0);
          for (const { name } of snapshots) expect(name).toMatchObject({ instance, database: 'main' });
        }
        const shuffled = names.toSorted(() => (random.next().value % 3) - 1);
        expect(namesOf(readListing(objects(...shuffled), 'main').snapshots)).toEqual(
          namesOf(listing.snapshots),
        );
      }),
    );
  });
});

describe('the newest usable snapshots', () => {
  test('one that is set aside gives its place to the one before it', () => {
    const listing = readListing(objects(day('a', 1), day('a', 2), day('b', 1)), 'main');
    expect(namesOf(newestUsable(listing, new Set()))).toEqual([day('a', 2), day('b', 1)]);
    expect(namesOf(newestUsable(listing, new Set([day('a', 2)])))).toEqual([day('a', 1), day('b', 1)]);
    expect(namesOf(newestUsable(listing, new Set([day('a', 2), day('a', 1)])))).toEqual([day('b', 1)]);
  });

  test('are, by instance, the latest in time of those not set aside', () => {
    fc.assert(
      fc.property(content, fc.func(fc.boolean()), (names, isBad) => {
        const setAside = new Set(names.filter((name) => isBad(name)));
        const found = newestUsable(readListing(objects(...names), 'main'), setAside);
        // The model: all that parse, by brute force, without any order.
        const model = new Map<string, bigint>();
        for (const name of names) {
          const parsed = parseSnapshotName(name);
          if (parsed?.database !== 'main' || setAside.has(name)) continue;
          const latest = model.get(parsed.instance);
          if (latest === undefined || parsed.timestampNano > latest)
            model.set(parsed.instance, parsed.timestampNano);
        }
        expect(new Map(found.map(({ name }) => [name.instance, name.timestampNano]))).toEqual(model);
        expect(found).toHaveLength(model.size);
      }),
    );
  });
});

test('what a receiver remembers is forgotten once it is no longer listed', () => {
  const listing = readListing(objects(day('a', 1), 'main__odd', 'other'), 'main');
  const remembered = [day('a', 1), day('a', 2), 'main__odd', 'main__gone', 'other'];
  expect(stillListed(listing, remembered)).toEqual(new Set([day('a', 1), 'main__odd']));
});
