import { isIPv6 } from 'node:net';
import { LightningStreamError } from '../errors.ts';

/** Where to listen; no host = all interfaces, port 0 = the system picks. */
export interface ListenAddress {
  readonly host?: string;
  readonly port: number;
}

/**
 * Takes `host:port` apart; both may be empty, an IPv6 host stands in brackets. Throws a {@link LightningStreamError}
 * (`HTTP_ADDRESS`) that says what is wrong.
 */
export function parseListenAddress(address: string): ListenAddress {
  const refuse = (problem: string): LightningStreamError =>
    new LightningStreamError('HTTP_ADDRESS', `http.address: "${address}": ${problem}`, {
      fields: { address },
    });

  const parts = /^(?:\[([^\]]*)\]|([^:[\]]*)):([^:]*)$/.exec(address);
  if (parts === null) {
    throw refuse(
      isIPv6(address.replace(/:[^:]*$/, '')) || isIPv6(address)
        ? 'an IPv6 address must be in brackets, as in "[::1]:8500"'
        : 'expected host:port, as in "127.0.0.1:8500" or ":8500"',
    );
  }
  const [, bracketed, plain, portText = ''] = parts;
  if (bracketed !== undefined && !isIPv6(bracketed)) throw refuse('no IPv6 address in the brackets');
  if (!/^\d{0,5}$/.test(portText) || Number(portText) > 65_535) {
    throw refuse('the port must be a number from 0 to 65535');
  }
  const host = bracketed ?? plain ?? '';
  const port = Number(portText);
  return host === '' ? { port } : { host, port };
}
