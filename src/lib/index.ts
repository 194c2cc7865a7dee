/**
 * For Node.js applications that keep their data in an LMDB which the daemon synchronises with `schema_tracks_changes: true`; see docs/library.md.
 * Pure TypeScript: nothing here opens an LMDB.
 */
export { LightningStreamError } from '../errors.ts';
export {
  buildSnapshotName,
  parseSnapshotName,
  type SnapshotName,
  type SnapshotNameParts,
} from '../snapshot/name.ts';
export {
  HEADER_BYTES,
  HeaderError,
  type HeaderFields,
  isDeleted,
  type NativeValue,
  newer,
  nowNano,
  readHeader,
  writeHeader,
} from './header.ts';
