/** `make packages`: what it makes, and that making it again, anywhere, gives the same bytes; `make apt-repo`. */
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { makePackages } from '../../build/packages.ts';
import { repositoryRoot, tempDir } from '../helpers/process.ts';
import { describeWithTools } from '../helpers/tools.ts';

const packages = join(repositoryRoot, 'dist/packages');
const binary = join(repositoryRoot, 'dist/binary');
const { version } = JSON.parse(readFileSync(join(repositoryRoot, 'package.json'), 'utf8')) as {
  readonly version: string;
};
const DEB = `lightningstream-ts_${version}_amd64.deb`;
const RPM = `lightningstream-ts-${version}-1.x86_64.rpm`;
const PLAIN = `lightningstream-${version}-linux-x64`;
const FILES = [DEB, RPM, PLAIN, `lightningstream-ts-${version}.cdx.json`];

/** Its standard output. */
function command(file: string, args: readonly string[], env: Readonly<Record<string, string>> = {}): string {
  const { status, stdout, stderr } = spawnSync(file, args, {
    encoding: 'utf8',
    env: { ...process.env, ...env },
    maxBuffer: 1 << 28,
  });
  expect(status, `${file} ${args.join(' ')}\n${stdout}${stderr}`).toBe(0);
  return stdout;
}

describeWithPackages('what is made', () => {
  test('is named after the version, and SHA256SUMS has all of it', () => {
    expect(readdirSync(packages).sort()).toEqual([...FILES, 'SHA256SUMS'].sort());
    const sums = readFileSync(join(packages, 'SHA256SUMS'), 'utf8').trim().split('\n');
    expect(sums.map((line) => line.split('  ')[1] ?? '').sort()).toEqual([...FILES].sort());
    command('sh', ['-c', 'cd "$1" && sha256sum --strict --check SHA256SUMS', 'sh', packages]);
  });

  test('the plain binary runs', () => {
    expect(command(join(packages, PLAIN), ['version'])).toContain(version);
  });

  test('is no larger than it may be: 32 MB to download, 115 MB installed', () => {
    expect(statSync(join(packages, DEB)).size).toBeLessThanOrEqual(32_000_000);
    const kibibytes = Number(command('dpkg-deb', ['--field', join(packages, DEB), 'Installed-Size']));
    expect(kibibytes * 1024).toBeLessThanOrEqual(115_000_000);
    expect(
      Number(command('rpm', ['-qp', '--queryformat', '%{SIZE}', join(packages, RPM)])),
    ).toBeLessThanOrEqual(115_000_000);
  });

  test('needs a C library of 2021 and nothing unusual', () => {
    const depends = command('dpkg-deb', ['--field', join(packages, DEB), 'Depends'])
      .trim()
      .split(', ');
    expect(depends.map((each) => each.replace(/ \(.*| \|.*/, '')).sort()).toEqual([
      'libc6',
      'libgcc-s1',
      'libstdc++6',
      'systemd',
    ]);
    expect(depends).toContain('libc6 (>= 2.34)');
    const requires = command('rpm', ['-qp', '--requires', join(packages, RPM)]);
    const glibc = [...requires.matchAll(/GLIBC_2\.(\d+)/g)].map((match) => Number(match[1]));
    expect(Math.max(...glibc)).toBe(34);
  });
});

describeWithTools(['lintian'], 'lintian', () => {
  test.skipIf(!existsSync(join(packages, DEB)))(
    'has nothing to say of the .deb',
    { timeout: 300_000 },
    () => {
      const flags = ['--allow-root', '--info', '--pedantic', '--fail-on', 'error,warning,info,pedantic'];
      expect(command('lintian', [...flags, join(packages, DEB)])).toBe('');
    },
  );
});

describeWithTools(['dh', 'rpmbuild'], 'making them', () => {
  test(
    'twice, in other circumstances, gives the same bytes, and leaves the checkout alone',
    { timeout: 300_000 },
    async () => {
      await using dir = await tempDir('lightningstream-packages-');
      const standIn = fakeBinary(dir.join('binary'));
      const before = readdirSync(join(repositoryRoot, 'debian'), { recursive: true });
      const make = (
        name: string,
        prefix: readonly string[],
        env: Readonly<Record<string, string>>,
      ): string => {
        const output = dir.join(`${name}/output`);
        const options = JSON.stringify({
          root: repositoryRoot,
          binary: standIn,
          work: dir.join(`${name}/work`),
          output,
        });
        const module = join(repositoryRoot, 'build/packages.ts');
        const script = `import { makePackages } from ${JSON.stringify(module)}; makePackages(${options});`;
        const [file, ...args] = [...prefix, process.execPath, '--input-type=module', '-e', script];
        mkdirSync(dir.join(name), { recursive: true });
        command(file, args, { SOURCE_DATE_EPOCH: '1700000000', ...env });
        return output;
      };
      const first = make('first', [], {});
      const second = make('a/longer/path', ['sh', '-c', 'umask 077; sleep 1; exec taskset 1 "$@"', 'sh'], {
        TZ: 'Pacific/Auckland',
        LC_ALL: 'C',
        USER: 'somebody',
        DEB_BUILD_OPTIONS: 'parallel=7',
      });
      expect(readFileSync(join(second, 'SHA256SUMS'), 'utf8')).toBe(
        readFileSync(join(first, 'SHA256SUMS'), 'utf8'),
      );
      for (const name of readdirSync(first))
        expect(Buffer.compare(readFileSync(join(first, name)), readFileSync(join(second, name)))).toBe(0);
      expect(readdirSync(join(repositoryRoot, 'debian'), { recursive: true })).toEqual(before);

      // Nor do they tell where they were made.
      const unpacked = dir.join('unpacked');
      mkdirSync(unpacked);
      command('dpkg-deb', ['--raw-extract', join(first, DEB), unpacked]);
      command('sh', ['-ec', 'rpm2cpio "$2" >"$1/rpm"', 'sh', unpacked, join(first, RPM)]);
      const { stdout } = spawnSync('grep', ['-rlF', '-e', repositoryRoot, '-e', dir.path, unpacked], {
        encoding: 'utf8',
      });
      expect(stdout).toBe('');
      // All times are that of the commit.
      expect(
        command('sh', [
          '-c',
          'dpkg-deb --contents "$1" | cut -c 1-80 | grep -vc "2023-11-14 22:13" || true',
          'sh',
          join(first, DEB),
        ]),
      ).toBe('0\n');
    },
  );

  test('without a binary, or with two versions, ends with a line that says so', async () => {
    await using dir = await tempDir('lightningstream-packages-');
    const options = {
      root: dir.path,
      binary: dir.join('binary'),
      work: dir.join('work'),
      output: dir.join('output'),
    };
    expect(() => makePackages(options)).toThrow(/binary\/lightningstream is missing: make binary$/);
    fakeBinary(options.binary);
    cpSync(join(repositoryRoot, 'debian'), dir.join('debian'), { recursive: true });
    writeFileSync(dir.join('package.json'), '{"version": "99.0.0-rc.1"}');
    expect(() => makePackages(options)).toThrow(
      `debian/changelog begins with version ${version}, package.json says 99.0.0-rc.1: add an entry`,
    );
    expect(existsSync(options.output)).toBe(false);
  });
});

describeWithTools(['dh', 'apt-ftparchive', 'gpg'], 'the apt repository', () => {
  test('is signed, keeps older versions, and never changes one', { timeout: 60_000 }, async () => {
    await using dir = await tempDir('lightningstream-apt-');
    const [home, debs, repository] = [dir.join('gnupg'), dir.join('debs'), dir.join('apt')];
    mkdirSync(home, { mode: 0o700 });
    mkdirSync(debs);
    const key = 'packages@example.org';
    const env = { GNUPGHOME: home, APT_SIGNING_KEY: key };
    const script = join(repositoryRoot, 'build/apt-repo.sh');
    const refused = (more: Readonly<Record<string, string>>): string => {
      const result = spawnSync('sh', [script, debs, repository], {
        encoding: 'utf8',
        env: { ...process.env, ...env, ...more },
      });
      expect(result.status).toBe(1);
      return result.stderr;
    };
    expect(refused({ APT_SIGNING_KEY: '' })).toMatch(/^apt-repo: set APT_SIGNING_KEY .*\n$/);
    expect(refused({})).toBe(`apt-repo: gpg has no secret key ${key} (APT_SIGNING_KEY)\n`);
    try {
      const generate = [
        '--batch',
        '--quiet',
        '--passphrase',
        '',
        '--quick-generate-key',
        key,
        'ed25519',
        'sign',
      ];
      command('gpg', [...generate, 'never'], env);
      expect(refused({})).toBe(`apt-repo: no .deb in ${debs}: make packages\n`);

      // Somebody else's key with our address, as anybody could send us one.
      const theirs = { GNUPGHOME: dir.join('theirs') };
      mkdirSync(theirs.GNUPGHOME, { mode: 0o700 });
      command('gpg', [...generate, 'never'], theirs);
      command('gpg', ['--batch', '--quiet', '--output', dir.join('theirs.asc'), '--export', key], theirs);
      spawnSync('gpgconf', ['--kill', 'gpg-agent'], { env: { ...process.env, ...theirs } });
      command('gpg', ['--batch', '--quiet', '--import', dir.join('theirs.asc')], env);

      fakeDeb(dir.join('one'), debs, '1.0.0', 'first');
      command('sh', [script, debs, repository], env);
      fakeDeb(dir.join('two'), debs, '1.1.0', 'second');
      command('sh', [script, debs, repository], env);

      const suite = join(repository, 'dists/stable');
      // As somebody sees it who has nothing but the published key.
      const keyring = dir.join('keyring.gpg');
      command(
        'gpg',
        ['--batch', '--dearmor', '--output', keyring, join(repository, 'lightningstream-ts.asc')],
        env,
      );
      const signed = dir.join('Release');
      command('gpgv', ['--quiet', '--keyring', keyring, '--output', signed, join(suite, 'InRelease')]);
      command('gpgv', ['--quiet', '--keyring', keyring, join(suite, 'Release.gpg'), join(suite, 'Release')]);
      expect(readFileSync(signed, 'utf8')).toBe(readFileSync(join(suite, 'Release'), 'utf8'));
      const sums = /^SHA256:\n((?: .*\n)+)/m.exec(readFileSync(signed, 'utf8'))?.[1] ?? '';
      const listed = sums
        .trim()
        .split('\n')
        .map((line) => line.trim().split(/ +/));
      expect(listed.map(([, , path]) => path)).toContain('main/binary-amd64/Packages.gz');
      for (const [sum, size, path = ''] of listed) {
        expect(command('sha256sum', [join(suite, path)])).toContain(sum);
        expect(statSync(join(suite, path)).size).toBe(Number(size));
      }
      const index = readFileSync(join(suite, 'main/binary-amd64/Packages'), 'utf8');
      expect([...index.matchAll(/^Version: (.*)$/gm)].map((match) => match[1] ?? '').sort()).toEqual([
        '1.0.0',
        '1.1.0',
      ]);
      for (const [, path = ''] of index.matchAll(/^Filename: (.*)$/gm))
        expect(existsSync(join(repository, path))).toBe(true);
      // Ours alone.
      const published = command('gpg', ['--batch', '--with-colons', '--show-keys', keyring]);
      const ours = command('gpg', ['--batch', '--with-colons', '--list-secret-keys'], env);
      const fingerprints = (keys: string): readonly string[] => keys.match(/^fpr:.*$/gm) ?? [];
      expect(fingerprints(published)).toHaveLength(1);
      expect(fingerprints(published)).toEqual(fingerprints(ours));
      // Whoever unpacks a secret key from it would find none.
      expect(readFileSync(join(repository, 'lightningstream-ts.asc'), 'utf8')).toMatch(
        /^-----BEGIN PGP PUBLIC KEY BLOCK-----/,
      );

      fakeDeb(dir.join('again'), debs, '1.1.0', 'another second');
      expect(refused({})).toMatch(/_1\.1\.0_amd64\.deb is there already, with other contents/);

      command('gpg', ['--yes', ...generate, 'never'], env);
      expect(refused({})).toBe(
        `apt-repo: gpg has several secret keys ${key}: set APT_SIGNING_KEY to the fingerprint of one\n`,
      );
    } finally {
      spawnSync('gpgconf', ['--kill', 'gpg-agent'], { env: { ...process.env, ...env } });
    }
  });
});

/** What packages are made of, but small; the tools only look whether it is machine code. */
function fakeBinary(directory: string): string {
  mkdirSync(directory);
  copyFileSync('/bin/true', join(directory, 'lightningstream'));
  copyFileSync('/bin/false', join(directory, 'lightningstream.node'));
  copyFileSync(join(binary, 'bundle.json'), join(directory, 'bundle.json'));
  return directory;
}

function fakeDeb(work: string, to: string, of: string, content: string): void {
  mkdirSync(join(work, 'DEBIAN'), { recursive: true });
  const fields = {
    Package: 'lightningstream-ts',
    Version: of,
    Architecture: 'amd64',
    Maintainer: 'x <x@example.org>',
    Description: 'x',
  };
  writeFileSync(
    join(work, 'DEBIAN/control'),
    Object.entries(fields)
      .map(([name, value]) => `${name}: ${value}\n`)
      .join(''),
  );
  writeFileSync(join(work, 'content'), content);
  command('dpkg-deb', [
    '--build',
    '--root-owner-group',
    work,
    join(to, `lightningstream-ts_${of}_amd64.deb`),
  ]);
}

function describeWithPackages(title: string, tests: () => void): void {
  const missing = existsSync(join(packages, DEB)) ? undefined : 'there are no packages: make packages';
  describe.skipIf(missing !== undefined)(missing === undefined ? title : `${title} [${missing}]`, () => {
    tests();
  });
}
