//! System calls on sockets.
//!
//! Needs `unsafe` for `recvmsg` and `sendmsg` on memory that is named by raw pointers.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};

use crate::sg::SgEntry;

/// Entries that one call takes; longer lists are sent or received in part, as if the socket had taken less. The array
/// stands on the stack; 64 entries hold 32 reads of 4 KiB with their headers.
pub(super) const MAX_IOV: usize = 64;

fn family(addr: &SocketAddr) -> AddressFamily {
    match addr {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    }
}

/// A non-blocking TCP socket for addresses like `addr`.
pub(super) fn tcp(addr: &SocketAddr) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family(addr), SocketType::STREAM, flags, Some(ipproto::TCP))?)
}

/// A listening socket. `[::]` takes IPv4 as well. `share` joins sockets of this user that listen there.
pub(super) fn listening(addr: SocketAddr, backlog: i32, share: bool) -> io::Result<OwnedFd> {
    let fd = tcp(&addr)?;
    // A restarted daemon gets its port back at once; two daemons still cannot share it.
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if let SocketAddr::V6(v6) = addr {
        sockopt::set_ipv6_v6only(&fd, !v6.ip().is_unspecified())?;
    }
    // The first binds before it allows sharing, so that it does not join somebody else's.
    if share {
        sockopt::set_socket_reuseport(&fd, true)?;
    }
    rustix::net::bind(&fd, &addr)?;
    sockopt::set_socket_reuseport(&fd, true)?;
    rustix::net::listen(&fd, backlog)?;
    Ok(fd)
}

/// Silence after which an idle connection is probed, time between two probes, and probes that may stay unanswered.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// How long sent data (or a probe) may stay without an acknowledgement. The kernel's own patience is about 15 minutes.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Options of every connected stream.
///
/// A peer that lost its power says no farewell. Protocols have their own timers, but may switch them off (a Keep Alive
/// Timeout of 0); so the kernel ends a connection whose peer was unreachable for a minute, idle or not.
pub(super) fn set_stream_options(fd: BorrowedFd<'_>) -> io::Result<()> {
    // Requests and answers are small and waited for; we gather them ourselves.
    sockopt::set_tcp_nodelay(fd, true)?;
    sockopt::set_tcp_keepidle(fd, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(fd, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(fd, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(fd, USER_TIMEOUT.as_millis() as u32)?;
    sockopt::set_socket_keepalive(fd, true)?;
    Ok(())
}

pub(super) fn local_addr(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let any = rustix::net::getsockname(fd)?;
    SocketAddr::try_from(any).map_err(|_| io::ErrorKind::AddrNotAvailable.into())
}

pub(super) fn peer_addr(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let any = rustix::net::getpeername(fd)?.ok_or(io::ErrorKind::NotConnected)?;
    SocketAddr::try_from(any).map_err(|_| io::ErrorKind::AddrNotAvailable.into())
}

/// `Ok(None)` for "not now".
fn attempt(mut call: impl FnMut() -> isize) -> io::Result<Option<usize>> {
    loop {
        if let Ok(n) = usize::try_from(call()) {
            return Ok(Some(n));
        }
        let e = io::Error::last_os_error();
        match e.kind() {
            io::ErrorKind::WouldBlock => return Ok(None),
            // A signal before anything was moved.
            io::ErrorKind::Interrupted => {}
            _ => return Err(e),
        }
    }
}

/// Fills `iov` from the first entries of `bufs`; returns how many.
fn gather(bufs: &[SgEntry], iov: &mut [MaybeUninit<libc::iovec>; MAX_IOV]) -> usize {
    for (slot, e) in iov.iter_mut().zip(bufs) {
        slot.write(libc::iovec { iov_base: e.ptr.as_ptr().cast(), iov_len: e.len_bytes as usize });
    }
    bufs.len().min(MAX_IOV)
}

fn header(iov: &mut [MaybeUninit<libc::iovec>; MAX_IOV], len: usize) -> libc::msghdr {
    // SAFETY: all zeroes is a valid header: no address, no vectors, no control data.
    let mut msg: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    msg.msg_iov = iov.as_mut_ptr().cast();
    msg.msg_iovlen = len as _;
    msg
}

/// One receive into the first [`MAX_IOV`] entries of `bufs`.
///
/// # Safety
/// Their bytes are writable and untouched by others during the call.
pub(super) unsafe fn recv(fd: BorrowedFd<'_>, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
    if let [one] = bufs {
        let (ptr, len) = (one.ptr.as_ptr().cast(), one.len_bytes as usize);
        // SAFETY: promised by the caller.
        return attempt(|| unsafe { libc::recv(fd.as_raw_fd(), ptr, len, libc::MSG_DONTWAIT) });
    }
    let mut iov = [const { MaybeUninit::uninit() }; MAX_IOV];
    let len = gather(bufs, &mut iov);
    let mut msg = header(&mut iov, len);
    // SAFETY: `msg` names `len` initialised vectors, and their memory is promised by the caller.
    attempt(|| unsafe { libc::recvmsg(fd.as_raw_fd(), &mut msg, libc::MSG_DONTWAIT) })
}

/// One send of the first [`MAX_IOV`] entries of `bufs`.
///
/// # Safety
/// Their bytes are readable during the call.
pub(super) unsafe fn send(fd: BorrowedFd<'_>, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    if let [one] = bufs {
        let (ptr, len) = (one.ptr.as_ptr().cast_const().cast(), one.len_bytes as usize);
        // SAFETY: promised by the caller.
        return attempt(|| unsafe { libc::send(fd.as_raw_fd(), ptr, len, flags) });
    }
    let mut iov = [const { MaybeUninit::uninit() }; MAX_IOV];
    let len = gather(bufs, &mut iov);
    let msg = header(&mut iov, len);
    // SAFETY: `msg` names `len` initialised vectors, and their memory is promised by the caller. `ptr::from_ref` only
    // gives the header's address.
    attempt(|| unsafe { libc::sendmsg(fd.as_raw_fd(), ptr::from_ref(&msg), flags) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// Bug: nothing ever ended the connection of a host that lost its power and had no Keep Alive Timer.
    #[test]
    fn a_peer_that_vanished_is_found() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let addr: SocketAddr = addr.parse().unwrap();
            let fd = tcp(&addr).unwrap();
            set_stream_options(fd.as_fd()).unwrap();
            assert!(sockopt::socket_keepalive(&fd).unwrap() && sockopt::tcp_nodelay(&fd).unwrap());
            let longest =
                sockopt::tcp_keepidle(&fd).unwrap() + sockopt::tcp_keepintvl(&fd).unwrap() * KEEPALIVE_PROBES;
            assert_eq!(sockopt::tcp_keepcnt(&fd).unwrap(), KEEPALIVE_PROBES);
            assert!(longest <= Duration::from_secs(60), "{longest:?}");
            assert_eq!(sockopt::tcp_user_timeout(&fd).unwrap(), 60_000);
        }
    }
}
