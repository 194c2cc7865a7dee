import { formatDbiFlags, humanSize } from '../config/units.ts';
import type { EnvironmentStats } from '../native/types.ts';
import { print } from './io.ts';
import { eachLmdb, withEnvironment } from './lmdbs.ts';
import type { Session } from './session.ts';

/** `stats`: as much as can be read; 1 when an LMDB could not be. */
export function stats(session: Session, options: { readonly json?: true } = {}): Promise<number> {
  return eachLmdb(session, [], async (name, lmdb) => {
    const found = await withEnvironment(lmdb, 'read', (environment) => environment.stats());
    const text = options.json === true ? formatStatsJson(name, lmdb.path, found) : formatStats(name, found);
    await print(session.io.stdout, text);
    return true;
  });
}

/** The lines of Lightning Stream, which print Go structs. */
export function formatStats(name: string, { info, dbis, usedBytes }: EnvironmentStats): string {
  const usedPercent = info.mapSizeBytes === 0 ? 0 : (100 * usedBytes) / info.mapSizeBytes;
  const lines = [
    `Env info: {MapSize:${info.mapSizeBytes} LastPNO:${info.lastPage} LastTxnID:${info.lastTransactionId} MaxReaders:${info.maxReaders} NumReaders:${info.readers}}`,
    ...dbis.map(
      (dbi) =>
        `dbi ${dbi.name}: {PSize:${info.pageSizeBytes} Depth:${dbi.depth} BranchPages:${dbi.branchPages} LeafPages:${dbi.leafPages} ` +
        `OverflowPages:${dbi.overflowPages} Entries:${dbi.entries}} (${humanSize(dbi.usedBytes)})`,
    ),
    `Total Used: ${humanSize(usedBytes)} / ${humanSize(info.mapSizeBytes)} (~ ${usedPercent.toFixed(1)} %)`,
  ];
  return lines.map((line) => `${name}: ${line}\n`).join('');
}

/** One line; see docs/json.md. */
export function formatStatsJson(name: string, path: string, stats: EnvironmentStats): string {
  const { info, dbis, usedBytes } = stats;
  return `${JSON.stringify({
    db: name,
    path,
    mapSizeBytes: info.mapSizeBytes,
    fileSizeBytes: info.fileSizeBytes,
    usedBytes,
    pageSizeBytes: info.pageSizeBytes,
    lastPage: info.lastPage,
    lastTxnId: String(info.lastTransactionId),
    maxReaders: info.maxReaders,
    readers: info.readers,
    dbis: dbis.map(({ name: dbi, flags, ...counts }) => ({
      dbi,
      flags: formatDbiFlags(flags).split('|').filter(Boolean),
      depth: counts.depth,
      branchPages: counts.branchPages,
      leafPages: counts.leafPages,
      overflowPages: counts.overflowPages,
      entries: counts.entries,
      usedBytes: counts.usedBytes,
    })),
  })}\n`;
}
