/** A process with a spool and a file in it, until it is killed: `spool-child.ts DIRECTORY` prints the file's path. */
import { writeFileSync } from 'node:fs';
import { Spool } from '../../src/snapshot/spool.ts';
import { flock } from './flock.ts';
import { recordLog } from './log-recorder.ts';

const [directory = ''] = process.argv.slice(2);
const places = { configured: directory, cacheDirectory: undefined, temporaryDirectory: '/nonexistent' };
const spool = Spool.open({ ...places, tryLock: flock, logger: recordLog().logger });
const path = spool.pathFor('object');
writeFileSync(path, 'half of it');
console.log(path);
setInterval(() => undefined, 60_000);
