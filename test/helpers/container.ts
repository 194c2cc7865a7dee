/**
 * Container images and containers as far as they can be had without an engine: an image's root is assembled in a directory by the
 * steps of its Containerfile, over a minimal Debian (build/debian-root.sh), and a container is a process in a chroot with mounts of its
 * own. Needs root.
 */
import { chmod, cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';

import { run, start, type Finished, type Running } from './process.ts';

/** What a Containerfile leaves behind beside the files. */
export interface Image {
  readonly root: string;
  readonly env: Readonly<Record<string, string>>;
  readonly workdir: string;
  /** `UID:GID` */
  readonly user: string;
  readonly entrypoint: readonly string[];
  readonly command: readonly string[];
  readonly healthcheck: readonly string[];
  readonly ports: readonly number[];
}

export interface AssembleOptions {
  readonly containerfile: string;
  /** What the sources of COPY and of bind mounts are relative to. */
  readonly context: string;
  /** Root of the Debian suite that FROM names. */
  readonly base: (suite: string) => string;
  /** Where it goes; must not exist yet. */
  readonly root: string;
}

interface Instruction {
  readonly name: string;
  readonly text: string;
}

/** What the official slim images leave out whenever a package is installed (their /etc/dpkg/dpkg.cfg.d/docker). */
const SLIM = [
  'path-exclude /usr/share/doc/*',
  'path-include /usr/share/doc/*/copyright',
  'path-exclude /usr/share/info/*',
  'path-exclude /usr/share/locale/*',
  'path-exclude /usr/share/man/*',
];
const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/**
 * Carries out a Containerfile: FROM a slim Debian, COPY, ENV, RUN (with bind mounts), WORKDIR, USER and what describes the start.
 *
 * @throws Error for anything else in it, and with its output for a step that fails.
 */
export async function assembleImage(options: AssembleOptions): Promise<Image> {
  const { root } = options;
  const image = {
    root,
    env: { PATH } as Record<string, string>,
    workdir: '/',
    user: '0:0',
    entrypoint: [] as readonly string[],
    command: [] as readonly string[],
    healthcheck: [] as readonly string[],
    ports: [] as number[],
  };
  for (const { name, text } of instructions(await readFile(options.containerfile, 'utf8'))) {
    switch (name) {
      case 'FROM':
        await copyBase(options.base(only(/^docker\.io\/library\/debian:(\w+)-slim$/, text)[1] ?? ''), root);
        break;
      case 'RUN':
        await runStep(options, image, text);
        break;
      case 'COPY':
        await copyStep(options, text);
        break;
      case 'ENV': {
        const [, variable = '', value = ''] = only(/^(\w+)=(\S*)$/, text);
        image.env[variable] = value;
        break;
      }
      case 'WORKDIR':
        image.workdir = text;
        await mkdir(join(root, text), { recursive: true });
        break;
      case 'USER':
        image.user = only(/^\d+:\d+$/, text)[0];
        break;
      case 'EXPOSE':
        image.ports.push(Number(only(/^\d+$/, text)[0]));
        break;
      case 'HEALTHCHECK':
        image.healthcheck = words(only(/^(?:--[\w-]+=\S+ )*CMD (\[.*\])$/, text)[1]);
        break;
      case 'ENTRYPOINT':
        image.entrypoint = words(text);
        break;
      case 'CMD':
        image.command = words(text);
        break;
      default:
        throw new Error(`an instruction that is not known here: ${name} ${text}`);
    }
  }
  return image;
}

/** One per instruction, lines that go on joined, comments left out (docs.docker.com/reference/dockerfile, "Format"). */
function instructions(text: string): readonly Instruction[] {
  const lines = text.split('\n').filter((line) => line.trim() !== '' && !line.startsWith('#'));
  return lines
    .join('\n')
    .replaceAll(/\\\n\s*/g, '')
    .split('\n')
    .map((line) => {
      const [, name = '', rest = ''] = only(/^([A-Z]+) +(.*)$/, line);
      return { name, text: rest };
    });
}

function only(pattern: RegExp, text: string): RegExpExecArray {
  const match = pattern.exec(text);
  if (match === null) throw new Error(`not understood here: ${text}`);
  return match;
}

function words(text = ''): readonly string[] {
  return JSON.parse(text) as readonly string[];
}

async function copyBase(base: string, root: string): Promise<void> {
  await checked({ command: 'cp', args: ['-a', '--reflink=auto', base, root] });
  await mkdir(join(root, 'etc/dpkg/dpkg.cfg.d'), { recursive: true });
  await writeFile(join(root, 'etc/dpkg/dpkg.cfg.d/docker'), `${SLIM.join('\n')}\n`);
}

async function copyStep({ context, root }: AssembleOptions, text: string): Promise<void> {
  const [, source = '', target = ''] = only(/^([^\s*]+) (\/\S+[^/\s])$/, text);
  await mkdir(join(root, dirname(target)), { recursive: true });
  await cp(join(context, source), join(root, target), { recursive: true });
}

async function runStep(options: AssembleOptions, image: Image, text: string): Promise<void> {
  const mounts: Mount[] = [];
  let command = text;
  for (;;) {
    const match = /^--mount=type=bind,source=([^,\s]+),target=([^,\s]+) +/.exec(command);
    if (match === null) break;
    mounts.push({ source: join(options.context, match[1] ?? ''), target: match[2] ?? '', readOnly: true });
    command = command.slice(match[0].length);
  }
  mounts.push({ source: '/etc/resolv.conf', target: '/etc/resolv.conf', readOnly: true });
  const { code, stdout, stderr } = await runContainer({
    image,
    mounts,
    command: ['/bin/sh', '-c', command],
    timeoutMs: 240_000,
  });
  if (code !== 0) throw new Error(`RUN ${text} ended with ${code}:\n${stdout}${stderr}`);
}

async function checked(options: Parameters<typeof run>[0]): Promise<void> {
  const { code, stdout, stderr } = await run(options);
  if (code !== 0) throw new Error(`${options.args.join(' ')} ended with ${code}:\n${stdout}${stderr}`);
}

/** A file or directory of this machine in a container. */
export interface Mount {
  /** `tmpfs`: an empty one in memory. */
  readonly source: string;
  readonly target: string;
  readonly readOnly?: boolean;
}

export interface ContainerOptions {
  readonly image: Pick<Image, 'root' | 'env' | 'workdir' | 'user'>;
  readonly command: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly mounts?: readonly Mount[];
  /** Only mounts can be written to. */
  readonly readOnly?: boolean;
  /** Another process, whose network it shares; by default the machine's. */
  readonly networkOf?: number;
  /** Put before everything: the way into a control group (cgroup.ts). */
  readonly enter?: readonly string[];
}

/** A container's process, in the machine's pid namespace; it is the program itself, once that is reached. */
export async function startContainer(options: ContainerOptions): Promise<Running> {
  const [command = '', ...args] = await inside(options);
  return start({ command, args, ownProcessGroup: true });
}

/** Runs it to its end: also what an engine's `exec` does, with the same options as the container. */
export async function runContainer(options: ContainerOptions & { timeoutMs?: number }): Promise<Finished> {
  const [command = '', ...args] = await inside(options);
  const { timeoutMs } = options;
  return run({ command, args, ...(timeoutMs === undefined ? {} : { timeoutMs }) });
}

/** $1 root, $2 `ro` or `rw`, then source, target, `ro` or `rw` of each mount, `--`, the command. */
const ENTER = `
root=$1
mount --bind "$root" "$root"
[ "$2" = rw ] || mount -o remount,bind,ro "$root"
shift 2
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do
  if [ "$1" = tmpfs ]; then mount -t tmpfs tmpfs "$root$2"; else mount --bind "$1" "$root$2"; fi
  [ "$3" = rw ] || mount -o remount,bind,ro "$root$2"
  shift 3
done
shift
exec "$@"`;

async function inside(options: ContainerOptions): Promise<readonly string[]> {
  const { image, mounts = [], networkOf } = options;
  const access = (readOnly = false): string => (readOnly ? 'ro' : 'rw');
  for (const { source, target } of mounts) await mountPoint(image.root, source, target);
  const network = networkOf === undefined ? [] : ['nsenter', `--net=/proc/${networkOf}/ns/net`];
  const [uid = '', gid = ''] = image.user.split(':');
  const restricted =
    uid === '0'
      ? []
      : [`--reuid=${uid}`, `--regid=${gid}`, '--clear-groups', '--no-new-privs', '--bounding-set=-all'];
  const env = Object.entries({ ...image.env, ...options.env }).map(([name, value]) => `${name}=${value}`);
  const enter = options.enter ?? [];
  const mounted = mounts.flatMap(({ source, target, readOnly }) => [source, target, access(readOnly)]);
  const mountArgs = [image.root, access(options.readOnly), ...mounted, '--'];
  const rootArgs = ['chroot', image.root, 'setpriv', ...restricted, '--pdeathsig=SIGKILL'];
  const environmentArgs = ['env', '-i', '-C', image.workdir, ...env];
  const outside = [...enter, 'unshare', '--mount', 'sh', '-e', '-c', ENTER, 'sh', ...mountArgs];
  return [...outside, ...network, ...rootArgs, ...environmentArgs, ...options.command];
}

/** Makes what is mounted over, when the image does not have it. */
async function mountPoint(root: string, source: string, target: string): Promise<void> {
  const path = join(root, target);
  const isDirectory = await readFile(source).then(
    () => false,
    () => true,
  );
  await mkdir(isDirectory ? path : dirname(path), { recursive: true });
  if (!isDirectory) await writeFile(path, '', { flag: 'a' });
}

/** A directory that a container's user may write to, as a volume of this image has it. */
export async function volume(path: string, user: string): Promise<string> {
  await mkdir(path, { recursive: true });
  await checked({ command: 'chown', args: [user, path] });
  await chmod(path, 0o755);
  return path;
}

/** A network of its own for several containers: loopback alone, where every port may be opened by everybody, as in Docker. */
export async function startNetwork(): Promise<Running> {
  const script = `
    ip link set lo up
    echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start
    echo ready
    exec setpriv --pdeathsig SIGKILL sleep infinity`;
  const network = await start({
    command: 'unshare',
    args: ['--net', 'sh', '-e', '-c', script],
    ownProcessGroup: true,
  });
  await network.waitForOutput(/^ready$/m);
  return network;
}
