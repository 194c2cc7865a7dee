/** Certificates for TLS tests, made with openssl: a CA, and what it signs. */
import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { promisify } from 'node:util';

import { tempDir } from './process.ts';

const exec = promisify(execFile);

/** PEM texts, and the files that hold them. */
export interface Certificate {
  readonly cert: string;
  readonly key: string;
  readonly certFile: string;
  readonly keyFile: string;
}

export interface IssueOptions {
  /** Common name: "server", "client". */
  readonly name: string;
  /** DNS names and IP addresses, in openssl's form; `DNS:localhost,IP:127.0.0.1` by default. */
  readonly altNames?: string;
  /** A certificate that has expired already. */
  readonly expired?: boolean;
}

/** A certificate authority whose files vanish with its scope. */
export interface CertificateAuthority extends Certificate, AsyncDisposable {
  /** Signs a certificate for a server or a client. */
  issue(options: IssueOptions): Promise<Certificate>;
}

/** Makes one; each call gives another. */
export async function createCertificateAuthority(name = 'test CA'): Promise<CertificateAuthority> {
  const dir = await tempDir();
  const files = (base: string) => ({ certFile: dir.join(`${base}.crt`), keyFile: dir.join(`${base}.key`) });
  const read = async (base: string): Promise<Certificate> => {
    const { certFile, keyFile } = files(base);
    return {
      certFile,
      keyFile,
      cert: await readFile(certFile, 'utf8'),
      key: await readFile(keyFile, 'utf8'),
    };
  };
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

  const ca = files('ca');
  const caArgs = ['req', '-x509', ...key, '-keyout', ca.keyFile, '-out', ca.certFile];
  await exec('openssl', [...caArgs, '-subj', `/CN=${name}`, '-days', '2']);

  let issued = 0;
  return {
    ...(await read('ca')),
    async issue({ name: commonName, altNames = 'DNS:localhost,IP:127.0.0.1', expired = false }) {
      issued += 1;
      const base = `${issued}`;
      const { certFile, keyFile } = files(base);
      const request = dir.join(`${base}.csr`);
      const extensions = dir.join(`${base}.ext`);
      const requestArgs = ['req', '-new', ...key, '-keyout', keyFile, '-out', request];
      await exec('openssl', [...requestArgs, '-subj', `/CN=${commonName}`]);
      await writeFile(
        extensions,
        `subjectAltName=${altNames}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n`,
      );
      const signArgs = [
        'x509',
        '-req',
        '-in',
        request,
        '-CA',
        ca.certFile,
        '-CAkey',
        ca.keyFile,
        '-out',
        certFile,
      ];
      const days = expired ? '-1' : '2';
      await exec('openssl', [...signArgs, '-set_serial', base, '-extfile', extensions, '-days', days]);
      return read(base);
    },
    [Symbol.asyncDispose]: () => dir[Symbol.asyncDispose](),
  };
}
