//! Tells the init daemon that the member is ready: systemd starts etcd's units with `Type=notify`,
//! and ends a service that never says so.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The variable in which systemd says where it listens.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";
const READY: &[u8] = b"READY=1";

/// Says "ready" to the init daemon, if one wants to know. A failure only leaves a line in the log, as in
/// etcd.
pub fn notify_ready() {
    tracing::info!("notifying init daemon");
    match notify(std::env::var_os(SOCKET_VARIABLE)) {
        Ok(()) => tracing::info!("successfully notified init daemon"),
        Err(error) => tracing::error!(%error, "failed to notify systemd for readiness"),
    }
}

fn notify(socket: Option<OsString>) -> io::Result<()> {
    let Some(socket) = socket.filter(|socket| !socket.is_empty()) else {
        return Ok(());
    };
    UnixDatagram::unbound()?.send_to_addr(READY, &address(&socket)?)?;
    Ok(())
}

/// A path, or after an `@` a name outside the file system.
fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(socket),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_told(address: &SocketAddr, variable: OsString) {
        let daemon = UnixDatagram::bind_addr(address).expect("the name is free");
        notify(Some(variable)).expect("somebody listens");
        let mut said = [0; 100];
        let length = daemon.recv(&mut said).expect("a message waits");
        assert_eq!(&said[..length], READY);
    }

    #[test]
    fn the_daemon_is_told_at_a_path_and_at_a_name() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("notify");
        let address = SocketAddr::from_pathname(&path).expect("a short path");
        assert_told(&address, path.into());

        let name = format!("metastore-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a short name");
        assert_told(&address, format!("@{name}").into());
    }

    #[test]
    fn without_a_daemon_nothing_happens() {
        notify(None).expect("nobody to tell");
        notify(Some(OsString::new())).expect("nobody to tell");
        notify(Some("/nobody/listens/here".into())).expect_err("nobody listens");
    }
}
