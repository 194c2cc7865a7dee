/** Finds the programs of others that tests run (build/tool.sh), and skips, visibly, what cannot run without them. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

import { describe } from 'vitest';

import { repositoryRoot } from './process.ts';

/** Known to build/tool.sh, which installs them: `make tools`. */
export type ToolName =
  | 'minio'
  | 'mc'
  | 'versitygw'
  | 'pdns-5'
  | 'pdns-4.9'
  | 'pdns-4.7'
  | 'debian-13'
  | 'debian-12'
  | 'docker-compose'
  | 'systemd-analyze'
  | 'dh'
  | 'rpmbuild'
  | 'apt-ftparchive'
  | 'gpg'
  | 'lintian';

type Lookup = { readonly path: string } | { readonly missing: string };

const lookups = new Map<ToolName, Lookup>();

/** Where it is. @throws Error with one line that says why it is not there. */
export function toolPath(name: ToolName): string {
  const found = lookUp(name);
  if ('missing' in found) throw new Error(found.missing);
  return found.path;
}

/** Why one of them cannot be used; undefined when all can. */
export function missingTool(...names: readonly ToolName[]): string | undefined {
  for (const name of names) {
    const found = lookUp(name);
    if ('missing' in found) return found.missing;
  }
  return undefined;
}

/** `describe` for tests that need tools; without them it is skipped and its name, which the summary shows, says why. */
export function describeWithTools(names: readonly ToolName[], title: string, tests: () => void): void {
  const missing = missingTool(...names);
  const name = missing === undefined ? title : `${title} [${missing}]`;
  describe.skipIf(missing !== undefined)(name, () => {
    tests();
  });
}

/** Only looks: an installation takes longer than any test may. */
function lookUp(name: ToolName): Lookup {
  const known = lookups.get(name);
  if (known !== undefined) return known;
  const script = join(repositoryRoot, 'build', 'tool.sh');
  const { stdout, stderr, error } = spawnSync('sh', [script, '--installed', name], { encoding: 'utf8' });
  const path = error === undefined ? stdout.trim() : '';
  const found = path !== '' ? { path } : { missing: error?.message ?? stderr.trim() };
  lookups.set(name, found);
  return found;
}
