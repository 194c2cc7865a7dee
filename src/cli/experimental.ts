import { UsageError } from '../errors.ts';
import type { Environment } from '../native/types.ts';
import { print } from './io.ts';
import { namedLmdb, withEnvironment } from './lmdbs.ts';
import { withProgress } from './progress.ts';
import type { Session } from './session.ts';

export interface MigrateTimestampsFlags {
  readonly database: string;
  readonly srcDbi: string;
  readonly dstDbi: string;
  readonly addDeleteEntries?: true;
  readonly ignoreSrcDbiNotPresent?: true;
  readonly json?: true;
}

export interface FixDuplicateDomainsFlags {
  readonly database: string;
  readonly dangerousDoRename?: true;
  readonly json?: true;
}

/** `experimental migrate-timestamps` */
export async function migrateTimestamps(session: Session, options: MigrateTimestampsFlags): Promise<number> {
  const { io, logger, signal } = session;
  const { database: db, srcDbi, dstDbi } = options;
  if (srcDbi === dstDbi) throw new UsageError('--src-dbi and --dst-dbi are the same DBI');
  const done = await withDatabase(session, db, (environment) =>
    withProgress(io, `migrate ${db}`, (progress) =>
      environment.migrateTimestamps({
        source: srcDbi,
        destination: dstDbi,
        addDeletions: options.addDeleteEntries === true,
        ignoreMissingSource: options.ignoreSrcDbiNotPresent === true,
        signal,
        ...progress,
      }),
    ),
  );
  if (done.sourceMissing) logger.warning('There is no source DBI: nothing was migrated', { db, dbi: srcDbi });
  logger.info('Done', { db, n_updated: done.updated, n_added_deletes: done.addedDeletions });
  if (options.json === true) {
    const { sourceMissing, updated, addedDeletions, transactionId } = done;
    const txnId = transactionId === null ? null : String(transactionId);
    await print(io.stdout, `${JSON.stringify({ db, sourceMissing, updated, addedDeletions, txnId })}\n`);
  }
  return 0;
}

/** `experimental pdns-v5-fix-duplicate-domains` */
export async function fixDuplicateDomains(
  session: Session,
  options: FixDuplicateDomainsFlags,
): Promise<number> {
  const { io, logger, signal } = session;
  const { database: db, dangerousDoRename: rename = false } = options;
  const nowNano = BigInt(Date.now()) * 1_000_000n;
  const found = await withDatabase(session, db, (environment) =>
    environment.fixDuplicateDomains({ rename, nowNano, signal }),
  );
  for (const { domain, keptId, id, newName } of found.duplicates) {
    const facts = { db, domain, kept_id: keptId, id };
    if (newName === null) logger.warning('Duplicate domain, with a name too long to be renamed', facts);
    else if (rename) logger.warning('Renamed duplicate domain', { ...facts, new_name: newName });
    else logger.warning('Duplicate domain', { ...facts, would_be: newName });
  }
  if (!rename && found.duplicates.length > 0)
    logger.info('Nothing was changed: --dangerous-do-rename is not set');
  logger.info('Done', { db, domains: found.domains, duplicates: found.duplicates.length });
  if (options.json === true) {
    const duplicates = found.duplicates.map(({ keptTimestampNano, timestampNano, ...rest }) => ({
      ...rest,
      keptTimestamp: rfc3339(keptTimestampNano),
      keptTimestampNano: String(keptTimestampNano),
      timestamp: rfc3339(timestampNano),
      timestampNano: String(timestampNano),
    }));
    const { domains, renamed, transactionId } = found;
    const txnId = transactionId === null ? null : String(transactionId);
    await print(io.stdout, `${JSON.stringify({ db, domains, duplicates, renamed, txnId })}\n`);
  } else if (found.renamed.length > 0) {
    await print(
      io.stdout,
      'Zones to be removed, each with `pdnsutil delete-zone ZONE`:\n' +
        found.renamed.map((name) => `- ${name}\n`).join('') +
        '`pdnsutil list-all-zones` does not show them, and a removed one stays in this list.\n',
    );
  }
  return 0;
}

/** In UTC with nine digits. */
function rfc3339(nano: bigint): string {
  const seconds = new Date(Number(nano / 1_000_000_000n) * 1000).toISOString().slice(0, -5);
  return `${seconds}.${String(nano % 1_000_000_000n).padStart(9, '0')}Z`;
}

/** Opens the LMDB of that name, which must exist, for the time of `body`. */
async function withDatabase<T>(
  session: Session,
  name: string,
  body: (environment: Environment) => Promise<T>,
): Promise<T> {
  return await withEnvironment(namedLmdb(session, `--database ${name}`, name), 'write', body);
}
