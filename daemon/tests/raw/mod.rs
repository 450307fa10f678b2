//! A host that knows just enough to be let in, in plain bytes over a socket: for crowds of them, and to leave at any
//! point.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nvme::fabrics::{ConnectData, ConnectSqe};
use nvme::sgl::SglDescriptor;
use nvme::tcp::{CapsuleCmd, CapsuleResp, DigestFlags, IcReq, PduHeader, PduType};
use nvme::{Cntlid, HostId, Nqn, Qid, Status};

/// Generous: test machines are slow and shared.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct RawHost(TcpStream);

impl RawHost {
    /// A TCP connection, and nothing said yet.
    pub fn knock(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// ICReq and ICResp.
    pub fn initialise(mut self) -> Self {
        self.send(IcReq::new(0, DigestFlags::NONE, 1).wire());
        let mut answer = [0; 128];
        self.0.read_exact(&mut answer).unwrap();
        assert_eq!(answer[0], PduType::IC_RESP.get());
        self
    }

    /// Connect of an admin queue as host `who`; returns its status.
    pub fn connect(&mut self, subnqn: &str, who: u16) -> Status {
        let hostnqn = Nqn::parse(&format!("nqn.2014-08.org.example:crowd-{who}")).unwrap();
        let mut hostid = [0x5a; 16];
        hostid[..2].copy_from_slice(&who.to_le_bytes());
        let data = ConnectData::new(HostId(hostid), Cntlid::DYNAMIC, &Nqn::parse(subnqn).unwrap(), &hostnqn);
        let mut sqe = ConnectSqe::new(Qid(0), 32, 60_000).to_sqe();
        sqe.set_sgl1(SglDescriptor::in_capsule(0, data.wire().len() as u32));
        let header = PduHeader::with_data(PduType::CAPSULE_CMD, false, false, 0, data.wire().len() as u32);
        self.send(&[CapsuleCmd { header, sqe }.wire(), data.wire()].concat());
        let mut answer = [0; 24];
        self.0.read_exact(&mut answer).unwrap();
        CapsuleResp::read(&answer).unwrap().cqe.status()
    }
}
