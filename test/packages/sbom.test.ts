/** The list of what is in the program, held to the lock files, to what the compiler left in the addon, and to the program itself. */
import { execFileSync } from 'node:child_process';
import { existsSync, globSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Spec, Validation } from '@cyclonedx/cyclonedx-library';
import { describe, expect, test } from 'vitest';
import { repositoryRoot } from '../helpers/process.ts';

interface Component {
  readonly group?: string;
  readonly name: string;
  readonly version: string;
  readonly purl: string;
  readonly licenses: readonly (
    { readonly license: { readonly id: string } } | { readonly expression: string }
  )[];
}

const [sbomPath] = globSync('dist/packages/*.cdx.json', { cwd: repositoryRoot });
const [debPath] = globSync('dist/packages/*.deb', { cwd: repositoryRoot });
const title = 'SBOM';
const missing =
  sbomPath === undefined || debPath === undefined ? 'there are no packages: make packages' : undefined;

describe.skipIf(missing !== undefined)(missing === undefined ? title : `${title} [${missing}]`, () => {
  const text = missing === undefined ? readFileSync(join(repositoryRoot, sbomPath ?? ''), 'utf8') : '';
  const { components = [] } = (text === '' ? {} : JSON.parse(text)) as { components?: readonly Component[] };
  const nameOf = ({ group, name }: Component): string => (group === undefined ? name : `${group}/${name}`);
  const ofKind = (kind: string): ReadonlyMap<string, string> =>
    new Map(
      components
        .filter(({ purl }) => purl.startsWith(`pkg:${kind}/`))
        .map((component) => [nameOf(component), component.version]),
    );
  const other = new Map(components.map((component) => [nameOf(component), component.version]));

  test('is CycloneDX, and its licences are of SPDX', async () => {
    expect(await new Validation.JsonStrictValidator(Spec.Version.v1dot6).validate(text)).toBeNull();
  });

  test('names no part twice', () => {
    expect(new Set(components.map(({ purl }) => purl)).size).toBe(components.length);
  });

  test('has of npm what the lock file has, nothing that is only for development, and all that our source imports', () => {
    const lock = JSON.parse(readFileSync(join(repositoryRoot, 'package-lock.json'), 'utf8')) as {
      readonly packages: Readonly<
        Record<string, { readonly version: string; readonly license?: string; readonly dev?: boolean }>
      >;
    };
    const npm = ofKind('npm');
    for (const component of components.filter(({ purl }) => purl.startsWith('pkg:npm/'))) {
      const locked = lock.packages[`node_modules/${nameOf(component)}`];
      expect([nameOf(component), component.version, locked?.dev ?? false]).toEqual([
        nameOf(component),
        locked?.version,
        false,
      ]);
      expect(licenceOf(component)).toBe(locked?.license);
    }
    const imported = new Set(
      globSync('src/**/*.ts', { cwd: repositoryRoot }).flatMap((file) =>
        [
          ...readFileSync(join(repositoryRoot, file), 'utf8')
            .replace(/^import type [^;]*;$/gm, '')
            .matchAll(/\b(?:from |import\()'((?:@[^/']+\/)?[a-z][^/':.]*)(?:\/[^':]*)?'/g),
        ].map((match) => match[1] ?? ''),
      ),
    );
    expect(imported.size).toBeGreaterThan(3);
    expect([...npm.keys()]).toEqual(expect.arrayContaining([...imported]));
  });

  test('has of cargo what the lock file has, and every crate that left its mark in the addon', () => {
    const cargo = ofKind('cargo');
    const lock = readFileSync(join(repositoryRoot, 'Cargo.lock'), 'utf8');
    for (const [name, version] of cargo) {
      expect(lock).toContain(`name = "${name}"\nversion = "${version}"\nsource = `);
    }
    // Not stripped: the files that its machine code comes from.
    const addon = readFileSync(join(repositoryRoot, 'native/addon/lightningstream.node'), 'latin1');
    const marks = new Set(
      [...addon.matchAll(/\/crates\/[^/\0]+\/([\w-]+-\d+\.\d+\.\d+[\w.+-]*)/g)].map((match) => match[1]),
    );
    const listed = [...cargo].map(([name, version]) => `${name}-${version}`);
    expect(marks.size).toBeGreaterThan(7);
    expect(listed).toEqual(expect.arrayContaining([...marks]));
    // Ran in the compiler, or in tests.
    for (const name of ['napi-derive', 'napi-build', 'syn', 'proptest', 'prost', 'cc'])
      expect(cargo.has(name)).toBe(false);
  });

  test('has what the program says that it runs on', () => {
    const printed = execFileSync(join(repositoryRoot, 'dist/binary/lightningstream'), ['version', '--json'], {
      encoding: 'utf8',
    });
    const version = JSON.parse(printed) as { readonly node: string; readonly lmdb: string };
    expect(other.get('node')).toBe(version.node.replace('v', ''));
    expect(version.lmdb).toContain(other.get('lmdb') ?? 'no version');
    // What the C libraries say of themselves in their machine code, or in their headers.
    const rust = execFileSync('rustc', ['--version'], { encoding: 'utf8' });
    expect(rust).toContain(` ${other.get('rust-std')} `);
    expect(other.get('libdeflate')).toMatch(/^1\.\d+$/);
  });

  test('the packages hold the text of every licence', () => {
    const unpacked = execFileSync(
      'sh',
      [
        '-ec',
        'dpkg-deb --fsys-tarfile "$1" | tar -xO ./usr/share/doc/lightningstream-ts/licences.txt.gz | gunzip',
        'sh',
        debPath ?? '',
      ],
      { cwd: repositoryRoot, encoding: 'utf8', maxBuffer: 1 << 26 },
    );
    // Names between two lines, then a text.
    const parts = unpacked.split(/^={80}\n/m).slice(1);
    const texts = new Map<string, string>();
    for (let index = 0; index < parts.length; index += 2) {
      for (const line of (parts[index] ?? '').trim().split('\n')) {
        const name = line.replace(/ \(.*$/, '');
        texts.set(name, `${texts.get(name) ?? ''} ${(parts[index + 1] ?? '').replace(/\s+/g, ' ')}`);
      }
    }
    /** Words that are in the text of a licence and in no other's. */
    const words: Readonly<Record<string, RegExp>> = {
      'Apache-2.0': /Apache License Version 2\.0, January 2004.* 9\. Accepting Warranty/,
      'BSL-1.0': /Boost Software License - Version 1\.0/,
      ISC: /Permission to use, copy, modify, and\/or distribute this software/,
      MIT: /Permission is hereby granted, free of charge, to any person obtaining a copy/,
      'OLDAP-2.8': /The OpenLDAP Public License Version 2\.8/,
      Unlicense: /This is free and unencumbered software released into the public domain/,
      Zlib: /This software is provided 'as-is', without any express or implied/,
      'LLVM-exception': /LLVM Exceptions to the Apache 2\.0 License/,
    };
    for (const component of components) {
      const own = texts.get(`${nameOf(component)} ${component.version}`);
      expect(own, `${nameOf(component)} has a text`).toBeDefined();
      for (const id of licenceOf(component).split(/ OR | AND | WITH /))
        expect(own, `${nameOf(component)}: ${id}`).toMatch(words[id] ?? /no such licence/);
    }
    expect(texts.size).toBe(components.length);
  });

  test('debian/copyright names every licence', () => {
    const copyright = readFileSync(join(repositoryRoot, 'debian/copyright'), 'utf8');
    const [, known = ''] = /Their licences are([^]*?)\n\n/.exec(copyright) ?? [];
    for (const id of new Set(components.flatMap((one) => licenceOf(one).split(/ OR | AND /))))
      expect(known).toContain(id.replace(/ WITH .*/, ''));
    expect(existsSync(join(repositoryRoot, 'LICENSE'))).toBe(true);
  });

  function licenceOf({ licenses: [first] }: Component): string {
    if (first === undefined) return '';
    return 'expression' in first ? first.expression : first.license.id;
  }
});
