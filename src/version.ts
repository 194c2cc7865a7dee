import { readFileSync } from 'node:fs';

/** What this program calls itself. */
export interface ProgramVersion {
  readonly version: string;
  /** The commit it was built from, when the build knew. */
  readonly commit?: string;
}

/** Set while the single binary is bundled (build/binary.ts), which has no files of its own. */
declare const LIGHTNINGSTREAM_VERSION: ProgramVersion | undefined;

/** From the package's own files: `package.json` above the program, and `commit` beside it, which a build may leave there. */
export function programVersion(): ProgramVersion {
  if (typeof LIGHTNINGSTREAM_VERSION !== 'undefined') return LIGHTNINGSTREAM_VERSION;
  const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  try {
    const commit = readFileSync(new URL('commit', import.meta.url), 'utf8').trim();
    return commit === '' ? { version } : { version, commit };
  } catch {
    return { version };
  }
}
