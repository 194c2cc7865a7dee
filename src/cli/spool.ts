import { tmpdir } from 'node:os';
import type { SpoolPlaces } from '../snapshot/spool.ts';
import type { Session } from './session.ts';

/** Where snapshots may pass through on their way. */
export function spoolPlaces({ config, io }: Session): SpoolPlaces {
  return {
    configured: config.spoolDir,
    cacheDirectory: io.env['CACHE_DIRECTORY'],
    temporaryDirectory: tmpdir(),
  };
}
