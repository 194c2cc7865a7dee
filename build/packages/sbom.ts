/**
 * What the single binary is made of: each part of somebody else's with version, licence and the licence's text.
 *
 * Only what is in there: of npm the modules that the bundler took (dist/binary/bundle.json), of cargo the crates that are linked
 * into the addon (no build scripts, no macros that ran in the compiler), and what these bring along as C.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

export interface Part {
  readonly kind: 'npm' | 'cargo' | 'other';
  readonly name: string;
  readonly version: string;
  /** An SPDX expression. */
  readonly licence: string;
  /** https://github.com/package-url/purl-spec */
  readonly purl: string;
  readonly cpe?: string;
  /** Licences and notices, as they came; at least one. */
  readonly texts: readonly string[];
}

/**
 * Parts that came without a text have that of a sibling from the same repository (`npm:`, a directory in node_modules), or of
 * another part under the same licence, whose text names nobody.
 */
const TEXT_OF: Readonly<Record<string, string>> = {
  'npm/@aws-sdk/': '@aws-sdk/client-s3/LICENSE',
  'cargo/lmdb-rkv-sys': '@aws/lambda-invoke-store/LICENSE',
  'cargo/napi': '@napi-rs/cli/LICENSE',
  'cargo/napi-sys': '@napi-rs/cli/LICENSE',
};

const LICENCE_FILE = /^(un)?(licen[cs]e|copying|copyright|notice)/i;

/** @throws Error when a part has no licence, or no text of it. */
export function collectParts(root: string, bundle: string): readonly Part[] {
  const parts = [...nodeParts(root), ...npmParts(root, bundle), ...cargoParts(root)];
  for (const { kind, name, licence, texts } of parts) {
    if (licence === '' || texts.length === 0)
      throw new Error(
        `${kind} ${name}: no ${licence === '' ? 'licence' : 'text of its licence'} found (build/packages/sbom.ts)`,
      );
  }
  return parts;
}

function nodeParts(root: string): readonly Part[] {
  const version = process.versions.node;
  const directory = join(root, 'node_modules', `node-linux-${process.arch}`);
  return [
    {
      kind: 'other',
      name: 'node',
      version,
      licence: 'MIT',
      purl: `pkg:github/nodejs/node@v${version}`,
      cpe: `cpe:2.3:a:nodejs:node.js:${version}:*:*:*:*:*:*:*`,
      // Holds the licences of V8, OpenSSL, ICU and all else in it.
      texts: [readFileSync(join(directory, 'LICENSE'), 'utf8')],
    },
  ];
}

/** @param bundle esbuild's metafile */
function npmParts(root: string, bundle: string): readonly Part[] {
  const { inputs } = JSON.parse(readFileSync(bundle, 'utf8')) as {
    readonly inputs: Readonly<Record<string, unknown>>;
  };
  const directories = new Set<string>();
  for (const input of Object.keys(inputs)) {
    const directory = /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(input)?.[0];
    if (directory !== undefined) directories.add(directory);
  }
  return [...directories].sort(byCode).map((directory) => {
    const path = join(root, directory);
    const manifest = JSON.parse(readFileSync(join(path, 'package.json'), 'utf8')) as {
      readonly name: string;
      readonly version: string;
      readonly license?: string;
    };
    const { name, version, license = '' } = manifest;
    const purl = `pkg:npm/${name.replace('@', '%40')}@${version}`;
    // Some carry code of others, each with its licence beside it.
    const own = licenceFiles(path, true);
    return { kind: 'npm', name, version, licence: license, purl, texts: texts(root, `npm/${name}`, own) };
  });
}

function cargoParts(root: string): readonly Part[] {
  const target = `${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-unknown-linux-gnu`;
  const cargo = (...arguments_: readonly string[]): string =>
    execFileSync('cargo', [...arguments_, '--locked'], { cwd: root, encoding: 'utf8', maxBuffer: 1 << 26 });
  const edges = ['--edges', 'normal,no-proc-macro', '--target', target];
  const tree = cargo(
    'tree',
    '--package',
    'lightningstream-addon',
    ...edges,
    '--prefix',
    'none',
    '--format',
    '{p}',
  );
  const { packages } = JSON.parse(
    cargo('metadata', '--format-version', '1', '--filter-platform', target),
  ) as {
    readonly packages: readonly {
      readonly name: string;
      readonly version: string;
      readonly license: string | null;
      readonly source: string | null;
      readonly manifest_path: string;
    }[];
  };
  const linked = new Set(tree.split('\n').map((line) => line.split(' ').slice(0, 2).join(' ')));
  const crates = packages
    .filter(({ name, version, source }) => source !== null && linked.has(`${name} v${version}`))
    .sort((a, b) => byCode(`${a.name} ${a.version}`, `${b.name} ${b.version}`));
  const parts: Part[] = crates.map(({ name, version, license, manifest_path: manifest }) => ({
    kind: 'cargo',
    name,
    version,
    // The slash is how it was written before SPDX expressions.
    licence: (license ?? '').replaceAll('/', ' OR '),
    purl: `pkg:cargo/${name}@${version}`,
    // What some carry in C is a part of its own, below.
    texts: texts(root, `cargo/${name}`, licenceFiles(dirname(manifest), false)),
  }));
  const directory = (crate: string): string => {
    const found = crates.find(({ name }) => name === crate);
    if (found === undefined) throw new Error(`${crate} is no longer linked (build/packages/sbom.ts)`);
    return dirname(found.manifest_path);
  };
  return [
    ...parts,
    lmdb(directory('lmdb-rkv-sys')),
    libdeflate(directory('libdeflate-sys')),
    rust(directory('libc')),
  ];
}

/** The library in lmdb-rkv-sys: its version from its header. */
function lmdb(crate: string): Part {
  const directory = join(crate, 'lmdb/libraries/liblmdb');
  const header = readFileSync(join(directory, 'lmdb.h'), 'utf8');
  const number = (name: string): string =>
    new RegExp(`#define MDB_VERSION_${name}\\s+(\\d+)`).exec(header)?.[1] ?? '';
  const version = ['MAJOR', 'MINOR', 'PATCH'].map(number).join('.');
  return {
    kind: 'other',
    name: 'lmdb',
    version,
    licence: 'OLDAP-2.8',
    purl: `pkg:github/LMDB/lmdb@LMDB_${version}`,
    texts: ['COPYRIGHT', 'LICENSE'].map((file) => readFileSync(join(directory, file), 'utf8')),
  };
}

/** The library in libdeflate-sys. */
function libdeflate(crate: string): Part {
  const directory = join(crate, 'libdeflate');
  const header = readFileSync(join(directory, 'libdeflate.h'), 'utf8');
  const version = /#define LIBDEFLATE_VERSION_STRING\s+"([^"]+)"/.exec(header)?.[1] ?? '';
  return {
    kind: 'other',
    name: 'libdeflate',
    version,
    licence: 'MIT',
    purl: `pkg:github/ebiggers/libdeflate@v${version}`,
    texts: [readFileSync(join(directory, 'COPYING'), 'utf8')],
  };
}

/** Rust's standard library, with the crates in it. */
function rust(libc: string): Part {
  const print = (...arguments_: readonly string[]): string =>
    execFileSync('rustc', arguments_, { encoding: 'utf8' }).trim();
  const version = print('--version').split(' ')[1] ?? '';
  const page = join(print('--print', 'sysroot'), 'share/doc/rust/COPYRIGHT-library.html');
  return {
    kind: 'other',
    name: 'rust-std',
    version,
    licence: 'MIT OR Apache-2.0',
    purl: `pkg:github/rust-lang/rust@${version}`,
    // Where the compiler came without it (a distribution's), that of its own crate libc: the same authors and licences.
    texts: existsSync(page)
      ? [textOfPage(readFileSync(page, 'utf8'))]
      : ['LICENSE-MIT', 'LICENSE-APACHE'].map((file) => readFileSync(join(libc, file), 'utf8')),
  };
}

function textOfPage(html: string): string {
  const text = html
    .replace(/<(head|style)\b[^]*?<\/\1>/g, '')
    .replace(/<[^>]*>/g, '')
    .replace(/&#(\d+);/g, (_all, code: string) => String.fromCodePoint(Number(code)));
  const entities: Readonly<Record<string, string>> = { lt: '<', gt: '>', quot: '"', apos: "'", amp: '&' };
  return text
    .replace(/&(lt|gt|quot|apos|amp);/g, (_all, name: string) => entities[name] ?? '')
    .replace(/\n\s*\n+/g, '\n\n');
}

function texts(root: string, key: string, files: readonly string[]): readonly string[] {
  if (files.length > 0) return files.map((file) => readFileSync(file, 'utf8'));
  const other = TEXT_OF[key] ?? TEXT_OF[key.slice(0, key.lastIndexOf('/') + 1)];
  return other === undefined ? [] : [readFileSync(join(root, 'node_modules', other), 'utf8')];
}

function licenceFiles(directory: string, recursive: boolean): readonly string[] {
  return readdirSync(directory, { withFileTypes: true })
    .sort((a, b) => byCode(a.name, b.name))
    .flatMap((entry) => {
      const path = join(directory, entry.name);
      if (entry.isDirectory())
        return recursive && entry.name !== 'node_modules' ? licenceFiles(path, true) : [];
      return LICENCE_FILE.test(entry.name) && !/\.([cm]?[jt]s|rs|json|map)$/.test(entry.name) ? [path] : [];
    });
}

/** CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/. Equal parts give equal bytes. */
export function cyclonedx(
  parts: readonly Part[],
  program: { readonly version: string; readonly epoch: number },
): string {
  const purl = `pkg:generic/lightningstream-ts@${program.version}`;
  const body = {
    version: 1,
    metadata: {
      timestamp: new Date(program.epoch * 1000).toISOString(),
      component: {
        type: 'application',
        'bom-ref': purl,
        name: 'lightningstream-ts',
        version: program.version,
        licenses: [{ license: { id: 'MIT' } }],
        purl,
      },
    },
    components: parts.map(({ name, version, licence, purl: ref, cpe }) => ({
      type: name === 'node' ? 'platform' : 'library',
      'bom-ref': ref,
      ...(name.startsWith('@') ? { group: name.split('/')[0], name: name.split('/')[1] } : { name }),
      version,
      licenses: [/ (OR|AND|WITH) /.test(licence) ? { expression: licence } : { license: { id: licence } }],
      ...(cpe === undefined ? {} : { cpe }),
      purl: ref,
    })),
    dependencies: [{ ref: purl, dependsOn: parts.map(({ purl: ref }) => ref) }],
  };
  const head = {
    bomFormat: 'CycloneDX',
    specVersion: '1.6',
    serialNumber: `urn:uuid:${uuidOf(JSON.stringify(body))}`,
  };
  return `${JSON.stringify({ ...head, ...body }, undefined, 2)}\n`;
}

/** A UUID of version 8 (RFC 9562): of the content, so that the same content keeps it. */
function uuidOf(content: string): string {
  const hex = createHash('sha256').update(content).digest('hex');
  return [
    hex.slice(0, 8),
    hex.slice(8, 12),
    `8${hex.slice(13, 16)}`,
    `8${hex.slice(17, 20)}`,
    hex.slice(20, 32),
  ].join('-');
}

/** Every text once, below the names of the parts that it is of. */
export function licenceTexts(parts: readonly Part[]): string {
  const users = new Map<string, string[]>();
  for (const { kind, name, version, licence, texts: own } of parts) {
    for (const text of own) {
      const key = text
        .replaceAll('\r', '')
        .replace(/[ \t]+$/gm, '')
        .replace(/^\n+|\n+$/g, '');
      const known = users.get(key) ?? [];
      users.set(key, [...known, `${name} ${version} (${kind === 'other' ? '' : `${kind}, `}${licence})`]);
    }
  }
  const line = '='.repeat(80);
  return `What the program contains of others, and their licences.\n${[...users]
    .map(([text, names]) => `\n${line}\n${names.join('\n')}\n${line}\n\n${text}\n`)
    .join('')}`;
}

function byCode(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
