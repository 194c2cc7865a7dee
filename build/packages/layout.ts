/** What the packages put where; the same in .deb and .rpm but for what the two systems want elsewhere. */
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  lutimesSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { MANUAL_PAGES, manualPage } from '../manual.ts';

export type PackageSystem = 'deb' | 'rpm';

export interface Ingredients {
  readonly root: string;
  /** Holds `lightningstream` and `lightningstream.node`. */
  readonly binary: string;
  readonly version: string;
  readonly sbom: string;
  readonly licences: string;
  /** Seconds since 1970: the time of all files. */
  readonly epoch: number;
}

const DOC = 'usr/share/doc/lightningstream-ts';
/** Where each shell looks for what packages bring. */
const COMPLETIONS: Readonly<Record<string, Readonly<Record<PackageSystem, string>>>> = {
  bash: same('usr/share/bash-completion/completions/lightningstream'),
  fish: same('usr/share/fish/vendor_completions.d/lightningstream.fish'),
  zsh: {
    deb: 'usr/share/zsh/vendor-completions/_lightningstream',
    rpm: 'usr/share/zsh/site-functions/_lightningstream',
  },
};

/** Lays it all out in `destination`, which does not exist yet. */
export function layOut(system: PackageSystem, destination: string, from: Ingredients): void {
  const place = (path: string, mode = 0o644): string => {
    const file = join(destination, path);
    directory(dirname(file));
    writeFileSync(file, '');
    chmodSync(file, mode);
    return file;
  };
  const copy = (source: string, path: string, mode?: number): void => {
    copyFileSync(source, place(path, mode));
    chmodSync(join(destination, path), mode ?? 0o644);
  };
  const write = (path: string, content: string | Uint8Array, mode?: number): void => {
    writeFileSync(place(path, mode), content);
  };
  const source = (path: string): string => join(from.root, path);

  // Below usr/lib it would be a library to the policies of SELinux, and its process not a service like others but part of systemd.
  copy(join(from.binary, 'lightningstream'), 'usr/libexec/lightningstream/lightningstream', 0o755);
  copy(join(from.binary, 'lightningstream.node'), 'usr/libexec/lightningstream/lightningstream.node');
  directory(join(destination, 'usr/bin'));
  symlinkSync('../libexec/lightningstream/lightningstream', join(destination, 'usr/bin/lightningstream'));

  for (const unit of readdirSync(source('systemd'))) {
    if (/\.(service|target|slice)$/.test(unit))
      copy(source(`systemd/${unit}`), `usr/lib/systemd/system/${unit}`);
  }
  copy(source('systemd/lightningstream-ts.sysusers'), 'usr/lib/sysusers.d/lightningstream-ts.conf');
  // May hold secrets; the group is set by who installs it.
  copy(source('examples/main.yaml'), 'etc/lightningstream/main.yaml', 0o640);
  chmodSync(join(destination, 'etc/lightningstream'), 0o750);

  for (const page of MANUAL_PAGES) {
    const text = manualPage(page, readFileSync(source(page.source), 'utf8'));
    write(`usr/share/man/${page.file}.gz`, gzipSync(text, { level: 9 }));
  }
  for (const [shell, path] of Object.entries(COMPLETIONS)) {
    const program = [source('src/main.ts'), 'completion', shell];
    write(path[system], execFileSync(process.execPath, program, { stdio: ['ignore', 'pipe', 'inherit'] }));
  }

  for (const file of ['README.md', 'CHANGELOG.md']) copy(source(file), `${DOC}/${file}`);
  for (const page of readdirSync(source('docs'))) {
    if (page.endsWith('.md')) copy(source(`docs/${page}`), `${DOC}/docs/${page}`);
  }
  for (const example of readdirSync(source('examples')))
    copy(source(`examples/${example}`), `${DOC}/examples/${example}`);
  copy(source('debian/copyright'), `${DOC}/copyright`);
  write(`${DOC}/licences.txt.gz`, gzipSync(from.licences, { level: 9 }));
  write(`${DOC}/lightningstream-ts-${from.version}.cdx.json`, from.sbom);

  for (const path of readdirSync(destination, { recursive: true, encoding: 'utf8' }))
    lutimesSync(join(destination, path), from.epoch, from.epoch);
}

function same(path: string): Readonly<Record<PackageSystem, string>> {
  return { deb: path, rpm: path };
}

/** With its parents, readable by all whatever the umask is. */
function directory(path: string): void {
  const first = mkdirSync(path, { recursive: true });
  if (first === undefined) return;
  for (let one = path; one.length >= first.length; one = dirname(one)) chmodSync(one, 0o755);
}
