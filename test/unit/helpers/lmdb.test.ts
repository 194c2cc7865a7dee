import { existsSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { hasNodeLmdb, readLmdb, writeLmdb } from '../../helpers/lmdb.ts';
import { tempDir } from '../../helpers/process.ts';

describe.skipIf(!hasNodeLmdb())('the second LMDB implementation', () => {
  test('gives back binary keys and values in the order of each kind of DBI, and its flags', async () => {
    await using dir = await tempDir();
    const written = {
      plain: {
        flags: 0,
        entries: [
          ['00', ''],
          ['0000', '00ff'],
          ['ff', 'aa'],
        ],
      },
      reverse: {
        flags: 0x02,
        entries: [
          ['0201', '01'],
          ['0102', '02'],
        ],
      },
      // Little-endian numbers: 1 comes before 256, though its bytes do not.
      integer: {
        flags: 0x08,
        entries: [
          ['01000000', '01'],
          ['00010000', '02'],
        ],
      },
      long: {
        flags: 0x08,
        entries: [
          ['0100000000000000', '01'],
          ['0001000000000000', '02'],
        ],
      },
      duplicates: {
        flags: 0x04,
        entries: [
          ['aa', '01'],
          ['aa', '02'],
        ],
      },
      fixed: {
        flags: 0x04 | 0x10 | 0x20,
        entries: [
          ['aa', '01000000'],
          ['aa', '00010000'],
        ],
      },
      reverseDuplicates: {
        flags: 0x04 | 0x40,
        entries: [
          ['aa', '0201'],
          ['aa', '0102'],
        ],
      },
    } as const;
    await writeLmdb(dir.join('env'), { dbis: written });
    const { dbis, lastTxnId } = await readLmdb(dir.join('env'));
    expect(dbis).toEqual(written);
    expect(lastTxnId).toBe(1);
  });

  test('removes keys, and leaves no lock file for the next program to stumble over', async () => {
    await using dir = await tempDir();
    const path = dir.join('data.mdb');
    await writeLmdb(
      path,
      {
        dbis: {
          x: {
            entries: [
              ['01', 'aa'],
              ['02', 'bb'],
            ],
          },
        },
      },
      { noSubdir: true },
    );
    await writeLmdb(path, { dbis: { x: { remove: ['01'] } } }, { noSubdir: true });
    const { dbis, lastTxnId } = await readLmdb(path, { noSubdir: true });
    expect(dbis).toEqual({ x: { flags: 0, entries: [['02', 'bb']] } });
    expect(lastTxnId).toBe(2);
    expect(existsSync(`${path}-lock`)).toBe(false);
  });

  test('says what is wrong with a file that is none', async () => {
    await using dir = await tempDir();
    await expect(readLmdb(dir.join('absent'), { noSubdir: true })).rejects.toThrow(
      /node-lmdb read .*absent: [^]*No such file/,
    );
  });
});
