import type { LmdbConfig } from '../config/types.ts';
import type { SchemaVersion } from '../native/types.ts';
import type { Condition } from '../observability/health.ts';
import type { Logger } from '../observability/logger.ts';
import type { SyncContext } from './context.ts';

/** The last schema of PowerDNS without headers. */
const lastOld = 4;

/** What may be stored, as far as schemas go: `wait` until those of the others are known; `no` comes with the reason. */
export type StoreVerdict = 'yes' | 'wait' | { readonly no: string };

export interface SchemaGuardOptions extends Pick<
  SyncContext,
  'database' | 'instance' | 'logger' | 'metrics' | 'health'
> {
  readonly setting: LmdbConfig['schemaGuard'];
  /** Of the LMDB that has the domains, when this one has their records. Asked each time: it may come later. */
  readonly main: () => SchemaGuard | undefined;
  /** A snapshot of the instance is on its way, and will be looked at. */
  readonly isComing: (instance: string) => boolean;
}

/** An instance with another schema than ours. */
interface Held {
  readonly theirs: string;
  readonly ours: string;
  /** The other schema is that of its snapshots of the main LMDB. */
  readonly byMain: boolean;
}

/**
 * Keeps PowerDNS servers of different schemas apart that share a place in the storage: what one of them writes, the other cannot read.
 *
 * The snapshots of an instance are held back while their schema is not ours: they are neither merged nor waited for. Nothing is
 * uploaded and nothing cleaned when our own schema has changed since the start, or all other instances have another one: it is we who are
 * in the wrong place then.
 *
 * The records' LMDBs do not tell schemas 5 and 6 apart, so what is found out with the main LMDB holds for them.
 *
 * An LMDB that is not PowerDNS' has no schema, and nothing here concerns it.
 */
export class SchemaGuard {
  readonly #o: SchemaGuardOptions;
  readonly #log: Logger;
  readonly #condition: Condition;
  /** What the configuration asks for. */
  readonly #wanted: SchemaVersion | null;
  /** What the LMDB has, as it was last seen. */
  #local: SchemaVersion | null = null;
  /** What it had when it was first seen. */
  #first: SchemaVersion | null;
  /** What the newest snapshot of each instance that was looked at has. */
  readonly #remotes = new Map<string, SchemaVersion | null>();
  readonly #held = new Map<string, Held>();
  readonly #said = new Set<string>();
  #store: StoreVerdict = 'yes';

  constructor(options: SchemaGuardOptions) {
    const { setting, logger, health, database } = options;
    this.#o = options;
    this.#log = logger;
    this.#condition = health.condition(`${database}_schema_mismatch`);
    this.#wanted = typeof setting === 'number' ? { version: setting, exact: true } : null;
    this.#first = this.#wanted;
  }

  get enabled(): boolean {
    return this.#o.setting !== 'off';
  }

  /** What the LMDB has, as it was last seen. */
  get local(): SchemaVersion | null {
    return this.#local;
  }

  /** What snapshots are compared with; null: all are welcome. An empty LMDB has what the configuration says. */
  get expected(): SchemaVersion | null {
    return this.#local ?? this.#wanted;
  }

  /** Whether anything hangs on what the LMDB has. */
  get isHolding(): boolean {
    return this.#held.size > 0 || this.#store !== 'yes';
  }

  /** Snapshots may be stored, and old ones removed. */
  get mayStore(): boolean {
    return this.#store === 'yes';
  }

  /** Why nothing is uploaded. */
  get withheld(): string | undefined {
    return typeof this.#store === 'object' ? this.#store.no : undefined;
  }

  isHeld(instance: string): boolean {
    return this.#held.has(instance);
  }

  /** Why the instance's snapshots are not merged. */
  heldBack(instance: string): string | undefined {
    const held = this.#held.get(instance);
    return held && `schema ${held.theirs}, ours is ${held.ours}`;
  }

  /** The LMDB was looked at. Returns the instances that were held back for what it had before. */
  noteLocal(found: SchemaVersion | null): readonly string[] {
    this.#local = found;
    const first = this.#first;
    if (found !== null && (first === null || (!first.exact && isSame(first, found)))) this.#first = found;
    for (const [instance, remote] of this.#remotes) this.#compare(instance, remote);
    return this.#released();
  }

  /**
   * Whether the instance's newest snapshot may be merged, by what is known without looking into it; undefined: it has to be looked at.
   * `wait`: the main LMDB is about to find out.
   */
  verdictByMain(instance: string): 'hold' | 'wait' | undefined {
    const main = this.#o.main();
    if (main === undefined || !main.enabled) return undefined;
    const held = main.#held.get(instance);
    if (held !== undefined) {
      this.#hold(instance, { ...held, byMain: true });
      return 'hold';
    }
    return !main.#remotes.has(instance) && main.#o.isComing(instance) ? 'wait' : undefined;
  }

  /** The instance's newest snapshot was looked at, or merged where nothing was to be compared. True when it may be merged. */
  noteRemote(instance: string, found: SchemaVersion | null): boolean {
    this.#remotes.set(instance, found);
    if (this.#compare(instance, found)) return false;
    if (this.#held.has(instance)) this.#release(instance);
    return true;
  }

  /**
   * To be called with all instances that have a usable snapshot in the storage, whenever something may have changed. Decides whether we
   * may store, and returns the instances that are held back no more.
   */
  update(instances: Iterable<string>, uploads: boolean): readonly string[] {
    const present = new Set(instances);
    for (const instance of this.#remotes.keys()) if (!present.has(instance)) this.#remotes.delete(instance);
    for (const instance of this.#held.keys()) {
      if (!present.has(instance)) {
        this.#held.delete(instance);
        this.#o.metrics.schemaHeldBack.remove(this.#labels(instance));
      }
    }
    present.delete(this.#o.instance);
    const before = this.withheld;
    this.#store = uploads && this.enabled ? this.#storeVerdict([...present]) : 'yes';
    if (this.withheld !== undefined && this.withheld !== before)
      this.#log.error('Nothing is uploaded because of its schema', { detail: this.withheld });
    if (this.withheld === undefined && before !== undefined)
      this.#log.info('The schema is right: uploading again');
    const released = this.#released();
    this.#judge();
    return released;
  }

  /** What of our own name was in the storage does not count any more: something newer is. */
  forget(instance: string): void {
    this.#remotes.delete(instance);
    if (!this.#held.delete(instance)) return;
    this.#o.metrics.schemaHeldBack.set(this.#labels(instance), 0);
    this.#judge();
  }

  #storeVerdict(others: readonly string[]): StoreVerdict {
    const first = this.#first;
    const local = this.#local;
    if (first !== null && local !== null && !isSame(first, local)) {
      return {
        no:
          this.#wanted === null
            ? `the schema of this LMDB changed from ${schemaText(first)} to ${schemaText(local)} while it was in use: ${elsewhere}`
            : `schema_guard is ${schemaText(first)}, but the schema of this LMDB is ${schemaText(local)}: ${elsewhere}`,
      };
    }
    const main = this.#o.main();
    if (main?.withheld !== undefined) return { no: main.withheld };
    if (others.length === 0 || this.expected === null) return 'yes';
    const isHeld = (instance: string): boolean => this.isHeld(instance) || main?.isHeld(instance) === true;
    if (others.every(isHeld)) {
      return {
        no: `all other instances have another schema than ${schemaText(this.expected)}: ${elsewhere}`,
      };
    }
    if (others.some((instance) => this.#remotes.has(instance) && !isHeld(instance))) return 'yes';
    return others.some((instance) => !isHeld(instance) && this.#o.isComing(instance)) ? 'wait' : 'yes';
  }

  /** True when it has to be held back, which is done then. */
  #compare(instance: string, remote: SchemaVersion | null): boolean {
    const { expected } = this;
    if (expected === null || remote === null || isSame(expected, remote)) return false;
    this.#hold(instance, { theirs: schemaText(remote), ours: schemaText(expected), byMain: false });
    return true;
  }

  #hold(instance: string, held: Held): void {
    this.#held.set(instance, held);
    this.#o.metrics.schemaHeldBack.set(this.#labels(instance), 1);
    const { theirs, ours } = held;
    const said = `${instance}\n${theirs}\n${ours}`;
    if (!this.#said.has(said)) {
      this.#said.add(said);
      this.#log.warning('Snapshots with another schema are held back: use another prefix for each schema', {
        snapshot_instance: instance,
        snapshot_schema: theirs,
        schema: ours,
      });
    }
    this.#judge();
  }

  /** Lets go of those that have our schema by now. */
  #released(): readonly string[] {
    const main = this.#o.main();
    const { expected } = this;
    const released = [...this.#held].flatMap(([instance, { byMain }]) => {
      const remote = this.#remotes.get(instance) ?? null;
      const still = byMain
        ? main?.isHeld(instance) === true
        : expected !== null && remote !== null && !isSame(expected, remote);
      return still ? [] : [instance];
    });
    for (const instance of released) this.#release(instance);
    return released;
  }

  #release(instance: string): void {
    this.#held.delete(instance);
    this.#o.metrics.schemaHeldBack.set(this.#labels(instance), 0);
    this.#log.info('Snapshots are not held back any more', { snapshot_instance: instance });
    this.#judge();
  }

  #judge(): void {
    const { withheld } = this;
    const texts = [...this.#held].map(
      ([instance, { theirs, ours }]) =>
        `snapshots of ${instance} have schema ${theirs}, ours is ${ours}: they are held back, use another prefix for each schema`,
    );
    if (withheld !== undefined) texts.unshift(`nothing is uploaded: ${withheld}`);
    if (texts.length === 0) this.#condition.clear();
    else this.#condition.set(withheld === undefined ? 'warning' : 'failure', texts.join('; '));
  }

  #labels(instance: string): { lmdb: string; syncer_instance: string } {
    return { lmdb: this.#o.database, syncer_instance: instance };
  }
}

const elsewhere = 'give it a prefix of its own in the storage (global_prefix, root_path) and restart';

/** `6`, `4 or older`, `5 or newer`. */
export function schemaText({ version, exact }: SchemaVersion): string {
  if (exact) return `${version}`;
  return version <= lastOld ? `${version} or older` : `${version} or newer`;
}

/** Whether servers of both may share data, as far as is known. */
export function isSame(a: SchemaVersion, b: SchemaVersion): boolean {
  const [oldA, oldB] = [a.version <= lastOld, b.version <= lastOld];
  if (oldA || oldB) return oldA && oldB;
  return !a.exact || !b.exact || a.version === b.version;
}
