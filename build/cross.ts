/** What making the single binary for another architecture takes: its Node.js, the addon compiled for it, its `strip`. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

export const ARCHITECTURES = ['x64', 'arm64'] as const;
/** By the name that Node.js gives it. */
export type Architecture = (typeof ARCHITECTURES)[number];

const TOOLCHAINS = {
  x64: {
    target: 'x86_64-unknown-linux-gnu',
    prefix: 'x86_64-linux-gnu-',
    package: 'gcc-x86-64-linux-gnu',
    emulator: 'qemu-x86_64-static',
  },
  arm64: {
    target: 'aarch64-unknown-linux-gnu',
    prefix: 'aarch64-linux-gnu-',
    package: 'gcc-aarch64-linux-gnu',
    emulator: 'qemu-aarch64-static',
  },
} as const satisfies Record<Architecture, unknown>;

export function stripOf(arch: Architecture): string {
  return arch === process.arch ? 'strip' : `${TOOLCHAINS[arch].prefix}strip`;
}

/** What runs a program of `arch` here, to be put before it. Ends the process with a line that says what is missing. */
export function emulatorOf(arch: Architecture): readonly string[] {
  const { emulator, prefix } = TOOLCHAINS[arch];
  if (!runs(emulator, ['--version']))
    missing(`an emulator of ${arch}`, 'Debian, Ubuntu: apt install qemu-user-static');
  return [emulator, '-L', `/usr/${prefix.slice(0, -1)}`];
}

/** Its path, compiled here for `arch`. Ends the process with a line that says what is missing. */
export function crossAddon(root: string, arch: Architecture): string {
  const { target, prefix, package: gcc } = TOOLCHAINS[arch];
  if (!runs(`${prefix}gcc`, ['--version']))
    missing(`a C compiler for ${arch}`, `Debian, Ubuntu: apt install ${gcc}`);
  const libraries = execFileSync('rustc', ['--print', 'target-libdir', '--target', target], {
    encoding: 'utf8',
  });
  if (!existsSync(libraries.trim())) missing(`Rust's libraries for ${arch}`, `rustup target add ${target}`);

  const directory = process.env['CARGO_TARGET_DIR'] ?? join(root, 'target');
  const variable = target.replaceAll('-', '_');
  execFileSync(
    'cargo',
    ['build', '--release', '--locked', '--quiet', '-p', 'lightningstream-addon', '--target', target],
    {
      cwd: root,
      stdio: 'inherit',
      env: {
        ...process.env,
        CARGO_TARGET_DIR: directory,
        [`CARGO_TARGET_${variable.toUpperCase()}_LINKER`]: `${prefix}gcc`,
        [`CC_${variable}`]: `${prefix}gcc`,
        [`AR_${variable}`]: `${prefix}ar`,
      },
    },
  );
  return join(directory, target, 'release', 'liblightningstream_addon.so');
}

/**
 * The path of the Node.js for `arch`: the version that runs this script, from npm, where the lock file knows its checksum. npm
 * installs that of this machine only. It is kept in the user's cache for the next clone.
 */
export function crossNode(root: string, arch: Architecture): string {
  const name = `node-linux-${arch}`;
  const version = process.versions.node;
  const lock = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as {
    readonly packages: Readonly<Record<string, { readonly version: string; readonly integrity?: string }>>;
  };
  const locked = lock.packages[`node_modules/${name}`];
  if (locked?.version !== version || locked.integrity === undefined)
    throw new Error(`package-lock.json lacks ${name} ${version}`);

  const cache = join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'lightningstream-ts');
  const kept = join(cache, `${name}-${version}`);
  const program = join(kept, 'bin', 'node');
  if (existsSync(program)) return program;
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, 'node.'));
  try {
    const packed = execFileSync('npm', ['pack', '--silent', `${name}@${version}`], {
      cwd: work,
      encoding: 'utf8',
    });
    const archive = join(work, packed.trim());
    const [algorithm = '', digest] = locked.integrity.split(/-(.*)/);
    if (createHash(algorithm).update(readFileSync(archive)).digest('base64') !== digest)
      throw new Error(`${name} ${version} from npm does not have the checksum of package-lock.json`);
    execFileSync('tar', ['-xzf', archive, '-C', work]);
    // By renaming: an interrupted download leaves no half of it. Somebody else may have been faster.
    if (!existsSync(kept)) renameSync(join(work, 'package'), kept);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return program;
}

function runs(program: string, arguments_: readonly string[]): boolean {
  try {
    execFileSync(program, arguments_, { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

function missing(what: string, help: string): never {
  console.error(`missing: ${what}\n         ${help}`);
  process.exit(1);
}
