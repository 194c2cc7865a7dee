/** The packages under test, others made of them, and apt repositories to install them from. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { appendFile, mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';

import { layOut } from '../../build/packages/layout.ts';
import { repositoryRoot, run } from '../helpers/process.ts';

const directory = join(repositoryRoot, 'dist', 'packages');

/** Of package.json. */
export const version = (
  JSON.parse(readFileSync(join(repositoryRoot, 'package.json'), 'utf8')) as { readonly version: string }
).version;
/** As package managers write it: a pre-release sorts before the release. */
export const packageVersion = version.replace('-', '~');
/** Below every other. */
export const olderVersion = '0.0.1~older';

/** What `make packages` made; undefined if it did not. */
export function builtPackage(end: '.deb' | '.rpm'): string | undefined {
  const name = existsSync(directory)
    ? readdirSync(directory).find((one) => one.startsWith('lightningstream-ts') && one.endsWith(end))
    : undefined;
  return name === undefined ? undefined : join(directory, name);
}

/**
 * The package again, under {@link olderVersion}: with a file that the newer one has no more, {@link droppedFile}, and, if wanted, with
 * another template of the configuration.
 */
export async function olderDeb(deb: string, work: string, otherTemplate: boolean): Promise<string> {
  const tree = join(work, 'tree');
  await command('dpkg-deb', '--raw-extract', deb, tree);
  const control = join(tree, 'DEBIAN/control');
  const text = await readFile(control, 'utf8');
  await writeFile(control, text.replace(/^Version: .*$/m, `Version: ${olderVersion}`));
  if (otherTemplate)
    await appendFile(join(tree, 'etc/lightningstream/main.yaml'), '# Of the older version.\n');
  await writeFile(join(tree, droppedFile), '');
  const older = join(work, `lightningstream-ts_${olderVersion}_amd64.deb`);
  // Compression would take half a minute.
  await command('dpkg-deb', '--root-owner-group', '-Znone', '--build', tree, older);
  await run({ command: 'rm', args: ['-rf', tree] });
  return older;
}

/** The same of the .rpm, made anew from the program in dist/binary: an .rpm cannot be taken apart and put together again. */
export async function olderRpm(work: string): Promise<string> {
  const tree = join(work, 'tree');
  layOut('rpm', tree, {
    root: repositoryRoot,
    binary: join(repositoryRoot, 'dist', 'binary'),
    version: olderVersion,
    epoch: 0,
    sbom: '',
    licences: '',
  });
  await appendFile(join(tree, 'etc/lightningstream/main.yaml'), '# Of the older version.\n');
  await writeFile(join(tree, droppedFile), '');
  const settings = {
    _topdir: work,
    version_: olderVersion,
    root_: tree,
    sysusers_: join(repositoryRoot, 'systemd/lightningstream-ts.sysusers'),
    _binary_payload: 'w.ufdio',
  };
  await command(
    'rpmbuild',
    '-bb',
    '--quiet',
    ...Object.entries(settings).flatMap(([name, value]) => ['--define', `${name} ${value}`]),
    join(repositoryRoot, 'build/rpm/lightningstream-ts.spec'),
  );
  await run({ command: 'rm', args: ['-rf', tree] });
  return join(work, `RPMS/x86_64/lightningstream-ts-${olderVersion}-1.x86_64.rpm`);
}
export const droppedFile = '/usr/share/doc/lightningstream-ts/dropped-since';

export interface AptRepository {
  /** To be served, or read as `file:`. */
  readonly directory: string;
  /** Adds a package, as a new version does. */
  add(deb: string): Promise<void>;
}

/** An empty repository, with a key of its own; its public part is there as `lightningstream-ts.asc` when a package is. */
export async function aptRepository(work: string): Promise<AptRepository> {
  const env = { GNUPGHOME: join(work, 'gnupg'), APT_SIGNING_KEY: 'test@example.net' };
  const directory = join(work, 'apt');
  await mkdir(env.GNUPGHOME, { recursive: true, mode: 0o700 });
  await mkdir(directory, { recursive: true });
  /** The agent would go on until its directory is gone. */
  const withAgent = async (program: string, ...args: readonly string[]): Promise<void> => {
    try {
      await commandWith(env, program, ...args);
    } finally {
      await commandWith(env, 'gpgconf', '--kill', 'gpg-agent');
    }
  };
  const generate = ['--batch', '--passphrase', '', '--quick-generate-key', env.APT_SIGNING_KEY];
  await withAgent('gpg', ...generate, 'ed25519', 'sign', 'never');
  let added = 0;
  return {
    directory,
    async add(deb) {
      const incoming = join(work, `incoming-${(added += 1)}`);
      await mkdir(incoming);
      await symlink(deb, join(incoming, basename(deb)));
      await withAgent('sh', join(repositoryRoot, 'build/apt-repo.sh'), incoming, directory);
    },
  };
}

function command(program: string, ...args: readonly string[]): Promise<string> {
  return commandWith({}, program, ...args);
}

/** @throws Error with its output, when it fails. */
async function commandWith(
  env: Readonly<Record<string, string>>,
  program: string,
  ...args: readonly string[]
): Promise<string> {
  const { code, stdout, stderr } = await run({ command: program, args, env, timeoutMs: 120_000 });
  if (code !== 0) throw new Error(`${program} ${args.join(' ')} ended with ${code}:\n${stdout}${stderr}`);
  return stdout;
}
