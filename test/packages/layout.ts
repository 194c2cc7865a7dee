/** What an installed package consists of, written by hand: it is what docs/install.md and users' scripts rely on. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';

import { repositoryRoot } from '../helpers/process.ts';

const DOC = '/usr/share/doc/lightningstream-ts';

/** `MODE OWNER:GROUP PATH`, for a symbolic link `link PATH -> TARGET`; sorted. */
export function layout(system: 'deb' | 'rpm', version: string): readonly string[] {
  const zsh = system === 'deb' ? 'vendor-completions' : 'site-functions';
  const changelogs = system === 'deb' ? ['CHANGELOG.md', 'changelog.gz'] : ['CHANGELOG.md'];
  const plain = [
    ...(system === 'deb' ? ['/usr/share/lintian/overrides/lightningstream-ts'] : []),
    '/usr/libexec/lightningstream/lightningstream.node',
    '/usr/lib/systemd/system/lightningstream-receive@.service',
    '/usr/lib/systemd/system/lightningstream.target',
    '/usr/lib/systemd/system/lightningstream@.service',
    '/usr/lib/sysusers.d/lightningstream-ts.conf',
    '/usr/share/bash-completion/completions/lightningstream',
    '/usr/share/fish/vendor_completions.d/lightningstream.fish',
    `/usr/share/zsh/${zsh}/_lightningstream`,
    '/usr/share/man/man1/lightningstream.1.gz',
    '/usr/share/man/man5/lightningstream.yaml.5.gz',
    ...[
      'README.md',
      ...changelogs,
      'copyright',
      'licences.txt.gz',
      `lightningstream-ts-${version}.cdx.json`,
    ].map((name) => `${DOC}/${name}`),
    ...named('docs', '.md').map((name) => `${DOC}/docs/${name}`),
    ...named('examples', '').map((name) => `${DOC}/examples/${name}`),
  ];
  return [
    '750 root:pdns /etc/lightningstream',
    '640 root:pdns /etc/lightningstream/main.yaml',
    'link /usr/bin/lightningstream -> ../libexec/lightningstream/lightningstream',
    '755 root:root /usr/libexec/lightningstream',
    '755 root:root /usr/libexec/lightningstream/lightningstream',
    ...[DOC, `${DOC}/docs`, `${DOC}/examples`].map((path) => `755 root:root ${path}`),
    ...plain.map((path) => `644 root:root ${path}`),
  ].sort();
}

/** Of a shell that gets the paths on standard input, one per line: the same lines; directories that others have as well are left out. */
export const describeLayout = `
  while read -r path; do
    if [ -L "$path" ]; then echo "link $path -> $(readlink "$path")"
    elif [ -f "$path" ] || case $path in *lightningstream*) true ;; *) false ;; esac; then stat -c '%a %U:%G %n' "$path"
    fi
  done | LC_ALL=C sort`;

function named(directory: string, end: string): readonly string[] {
  return readdirSync(join(repositoryRoot, directory)).filter((name) => name.endsWith(end));
}
