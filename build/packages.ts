/**
 * Makes the packages of the single binary that is in dist/binary: .deb, .rpm, the plain binary, SBOM and checksums, in dist/packages.
 *
 *   node build/packages.ts
 *
 * Two runs give the same bytes: all times are that of the last commit (SOURCE_DATE_EPOCH, if it is set).
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { layOut, type Ingredients } from './packages/layout.ts';
import { collectParts, cyclonedx, licenceTexts } from './packages/sbom.ts';

export interface PackagesOptions {
  readonly root: string;
  /** Holds `lightningstream`, `lightningstream.node` and `bundle.json`. */
  readonly binary: string;
  /** For what is on its way; removed and made anew. */
  readonly work: string;
  /** Likewise. */
  readonly output: string;
  /** A file that keeps of what `output` was made. Without it, all is made anew. */
  readonly stamp?: string;
}

/** A mistake of whoever runs it, in one line. */
class UsageError extends Error {}

const RPM_ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'x86_64', arm64: 'aarch64' };

/** @throws UsageError; Error of a tool, which has said itself what is wrong */
export function makePackages({ root, binary, work, output, stamp }: PackagesOptions): void {
  for (const file of ['lightningstream', 'lightningstream.node', 'bundle.json']) {
    if (!existsSync(join(binary, file)))
      throw new UsageError(`${join(binary, file)} is missing: make binary`);
  }
  const version = versionOf(root);
  const epoch = epochOf(root);
  const parts = collectParts(root, join(binary, 'bundle.json'));
  const from: Ingredients = {
    root,
    binary,
    version,
    epoch,
    sbom: cyclonedx(parts, { version, epoch }),
    licences: licenceTexts(parts),
  };

  rmSync(work, { recursive: true, force: true });
  const source = join(work, 'deb/source');
  layOut('deb', join(source, 'root'), from);
  cpSync(join(root, 'debian'), join(source, 'debian'), { recursive: true });
  layOut('rpm', join(work, 'rpm/root'), from);
  for (const file of ['build/rpm/lightningstream-ts.spec', 'systemd/lightningstream-ts.sysusers'])
    copyFileSync(join(root, file), join(work, 'rpm', basename(file)));
  // Compressing all that takes minutes.
  const digest = digestOf(work);
  if (stamp !== undefined && existsSync(join(output, 'SHA256SUMS')) && textOf(stamp) === digest) {
    rmSync(work, { recursive: true });
    return;
  }

  const made = join(work, 'made');
  mkdirSync(made);
  makeDeb(source, made, epoch);
  makeRpm(join(work, 'rpm'), made, from);
  const plain = join(made, `lightningstream-${version}-linux-${process.arch}`);
  copyFileSync(join(binary, 'lightningstream'), plain);
  chmodSync(plain, 0o755);
  writeFileSync(join(made, `lightningstream-ts-${version}.cdx.json`), from.sbom);
  const sums = readdirSync(made)
    .sort()
    .map(
      (name) =>
        `${createHash('sha256')
          .update(readFileSync(join(made, name)))
          .digest('hex')}  ${name}\n`,
    );
  writeFileSync(join(made, 'SHA256SUMS'), sums.join(''));
  // All of it or nothing.
  mkdirSync(join(output, '..'), { recursive: true });
  rmSync(output, { recursive: true, force: true });
  renameSync(made, output);
  if (stamp !== undefined) writeFileSync(stamp, digest);
  rmSync(work, { recursive: true });
}

/** Of names, modes and contents below it, and of this script. */
function digestOf(directory: string): string {
  const tar = 'tar -c --sort=name --mtime=@0 -C "$1" . | sha256sum - "$2"';
  const { status, stdout, stderr } = spawnSync('sh', ['-ec', tar, 'sh', directory, import.meta.filename], {
    encoding: 'utf8',
  });
  if (status !== 0 || stderr !== '') throw new Error(`tar: ${stderr}`);
  return stdout;
}

function textOf(file: string): string | undefined {
  return existsSync(file) ? readFileSync(file, 'utf8') : undefined;
}

/** As package.json has it, which debian/changelog has to agree with. */
function versionOf(root: string): string {
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
    readonly version: string;
  };
  const changelog = /^lightningstream-ts \(([^)]*)\)/.exec(
    readFileSync(join(root, 'debian/changelog'), 'utf8'),
  )?.[1];
  if (changelog !== packageVersion(version))
    throw new UsageError(
      `debian/changelog begins with version ${changelog ?? 'none'}, package.json says ${version}: add an entry`,
    );
  return version;
}

/** Both systems sort `1.0.0~rc.1` before `1.0.0`, and both know a hyphen as something else. */
function packageVersion(version: string): string {
  return version.replace('-', '~');
}

/** Of the last commit; outside of git that of debian/changelog. */
function epochOf(root: string): number {
  const set = process.env['SOURCE_DATE_EPOCH'];
  if (set !== undefined) {
    if (!/^\d+$/.test(set)) throw new UsageError(`SOURCE_DATE_EPOCH is no number of seconds: ${set}`);
    return Number(set);
  }
  const git = spawnSync('git', ['log', '-1', '--format=%ct'], { cwd: root, encoding: 'utf8' });
  if (existsSync(join(root, '.git')) && git.status === 0) return Number(git.stdout.trim());
  const date = / {2}(.*)$/m.exec(
    /^ -- .*$/m.exec(readFileSync(join(root, 'debian/changelog'), 'utf8'))?.[0] ?? '',
  )?.[1];
  return Date.parse(date ?? '') / 1000;
}

function makeDeb(source: string, made: string, epoch: number): void {
  run('debian/rules', ['binary'], source, epoch);
  // debhelper writes the package beside the directory that it works in.
  const directory = join(source, '..');
  for (const name of readdirSync(directory))
    if (name.endsWith('.deb')) renameSync(join(directory, name), join(made, name));
}

function makeRpm(work: string, made: string, { version, epoch }: Ingredients): void {
  const arch = RPM_ARCHITECTURES[process.arch] ?? '';
  const settings = {
    _topdir: work,
    version_: packageVersion(version),
    root_: join(work, 'root'),
    sysusers_: join(work, 'lightningstream-ts.sysusers'),
    _buildhost: 'localhost',
    use_source_date_epoch_as_buildtime: '1',
    clamp_mtime_to_source_date_epoch: '1',
    source_date_epoch_from_changelog: '0',
    // A quarter larger than with xz, in a fifteenth of the time.
    _binary_payload: 'w9.zstdio',
  };
  const defines = Object.entries(settings).flatMap(([name, value]) => ['--define', `${name} ${value}`]);
  const options = ['-bb', '--quiet', '--target', `${arch}-linux`, ...defines];
  run('rpmbuild', [...options, 'lightningstream-ts.spec'], work, epoch);
  const directory = join(work, 'RPMS', arch);
  for (const name of readdirSync(directory)) renameSync(join(directory, name), join(made, name));
}

/** What it prints is shown if it fails. */
function run(file: string, arguments_: readonly string[], cwd: string, epoch: number): void {
  // The same wherever it runs; root's programs are not in everybody's PATH.
  const env = {
    PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`,
    HOME: cwd,
    LC_ALL: 'C.UTF-8',
    TZ: 'UTC',
    SOURCE_DATE_EPOCH: String(epoch),
  };
  const { status, error, stdout } = spawnSync(
    'sh',
    ['-c', 'umask 022; exec "$@" 2>&1', 'sh', file, ...arguments_],
    {
      cwd,
      env,
      encoding: 'utf8',
    },
  );
  if (status === 0) return;
  process.stderr.write(stdout);
  throw error ?? new Error(`${file} failed (${status ?? 'killed'})`);
}

if (import.meta.main) {
  const root = join(import.meta.dirname, '..');
  const dist = join(root, 'dist');
  try {
    for (const tool of ['dh', 'rpmbuild'])
      execFileSync('sh', [join(root, 'build/tool.sh'), tool], { stdio: ['ignore', 'ignore', 'inherit'] });
    makePackages({
      root,
      binary: join(dist, 'binary'),
      work: join(dist, 'packaging'),
      output: join(dist, 'packages'),
      stamp: join(root, '.cache/packages.digest'),
    });
    process.stdout.write(readFileSync(join(dist, 'packages/SHA256SUMS'), 'utf8'));
  } catch (error) {
    if (error instanceof UsageError) process.stderr.write(`packages: ${error.message}\n`);
    else process.stderr.write(`packages: ${error instanceof Error ? error.message : String(error)}\n`);
    process.exitCode = 1;
  }
}
