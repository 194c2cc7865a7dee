/** A process that begins to store an object and never gets on: `storage-child.ts ROOT NAME` prints the unfinished file's path. */
import { writeFileSync } from 'node:fs';
import { FsStorage } from '../../src/storage/fs.ts';
import { flock } from './flock.ts';
import { recordLog } from './log-recorder.ts';

const [rootPath = '', name = ''] = process.argv.slice(2);
const storage = await FsStorage.open({ rootPath, tryLock: flock, logger: recordLog().logger });
const path = storage.spoolPathFor(name);
writeFileSync(path, 'half of it');
console.log(path);
setInterval(() => undefined, 60_000);
