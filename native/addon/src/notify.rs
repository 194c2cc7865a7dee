//! `notifyServiceManager`: the one thing that the daemon tells whatever started it, which Node.js has no socket for.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use lightningstream_core::Error;
use napi::Env;
use napi::bindgen_prelude::Object;
use napi_derive::napi;

use super::{Failure, run};

/// How long a service manager that is busy may leave its queue full.
const TIMEOUT: Duration = Duration::from_secs(5);

outcome!(/** Outcome of `notifyServiceManager`. */ NotifyOutcome, bool);

/// Sends `state` as one datagram to `socket`, the value of `NOTIFY_SOCKET` (`sd_notify(3)`): a path, or behind `@` a name in the
/// abstract namespace.
#[napi(catch_unwind, ts_return_type = "Promise<NotifyOutcome>")]
pub fn notify_service_manager<'env>(env: &'env Env, socket: String, state: String) -> napi::Result<Object<'env>> {
    run(
        env,
        "ls-notify",
        None,
        move |_| {
            send(&socket, &state).map_err(|error| Error::io(format_args!("notify {socket}"), &error))?;
            Ok(true)
        },
        NotifyOutcome::of,
    )
}

fn send(socket: &str, state: &str) -> io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_write_timeout(Some(TIMEOUT))?;
    sender.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}
