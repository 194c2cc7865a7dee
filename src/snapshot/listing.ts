import { compareNames } from '../storage/order.ts';
import type { StorageObject } from '../storage/storage.ts';
import { databasePrefix, parseSnapshotName, type SnapshotName } from './name.ts';

/** A snapshot that stands in the storage. */
export interface ListedSnapshot {
  readonly name: SnapshotName;
  readonly sizeBytes: number;
}

/** What one listing of the storage says about one database. */
export interface Listing {
  readonly database: string;
  /** All snapshots of the database, sorted by name. */
  readonly snapshots: readonly ListedSnapshot[];
  /** The same by instance; within one instance the order of names is the order of time. */
  readonly byInstance: ReadonlyMap<string, readonly ListedSnapshot[]>;
  /** Names that begin like ours and are no snapshots, sorted: nothing may be done to them. */
  readonly unrecognised: readonly string[];
  readonly totalBytes: number;
  /** The last of an instance that `usable` accepts (all, by default). */
  newest(instance: string, usable?: (snapshot: ListedSnapshot) => boolean): ListedSnapshot | undefined;
}

/**
 * Sorts a storage listing out for one database. Objects of other databases are left out; the order of `objects` does not
 * matter.
 */
export function readListing(objects: Iterable<StorageObject>, database: string): Listing {
  const prefix = databasePrefix(database);
  const snapshots: ListedSnapshot[] = [];
  const unrecognised: string[] = [];
  for (const object of objects) {
    if (!object.name.startsWith(prefix)) continue;
    const name = parseSnapshotName(object.name);
    if (name?.database === database) snapshots.push({ name, sizeBytes: object.sizeBytes });
    else unrecognised.push(object.name);
  }
  snapshots.sort((a, b) => compareNames(a.name.name, b.name.name));
  unrecognised.sort(compareNames);
  const byInstance = Map.groupBy(snapshots, (snapshot) => snapshot.name.instance);
  return {
    database,
    snapshots,
    byInstance,
    unrecognised,
    totalBytes: snapshots.reduce((sum, snapshot) => sum + snapshot.sizeBytes, 0),
    newest: (instance, usable = () => true) => byInstance.get(instance)?.findLast(usable),
  };
}

/** Of each instance the newest snapshot that is not set aside, sorted by name. */
export function newestUsable(listing: Listing, setAside: ReadonlySet<string>): readonly ListedSnapshot[] {
  return [...listing.byInstance.keys()].flatMap(
    (instance) => listing.newest(instance, ({ name }) => !setAside.has(name.name)) ?? [],
  );
}

/**
 * Those of `names` (a receiver's memory of objects) that are still listed; the rest can be forgotten, so that the memory
 * does not grow for ever.
 */
export function stillListed(listing: Listing, names: Iterable<string>): Set<string> {
  const present = new Set(listing.snapshots.map((snapshot) => snapshot.name.name));
  for (const name of listing.unrecognised) present.add(name);
  return new Set([...names].filter((name) => present.has(name)));
}
