//! Limits of one core's share of a target. All of it is fixed when the core starts.

use std::time::Duration;

/// How long a peer may leave something unfinished. Looked at every [`CoreConfig::tick`], so an end may come that
/// much later.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From accept to a complete ICReq.
    pub init: Duration,
    /// From ICReq to a complete Connect.
    pub connect: Duration,
    /// Without a byte received while a PDU has begun and is not complete.
    pub pdu: Duration,
    /// For the next data PDU of a command whose R2Ts are unanswered.
    pub data: Duration,
    /// Without a byte taken by the socket while something waits to be sent.
    pub send: Duration,
    /// For the peer to close its end after our last PDU.
    pub linger: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            init: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            pdu: Duration::from_secs(30),
            data: Duration::from_secs(30),
            send: Duration::from_secs(30),
            linger: Duration::from_secs(2),
        }
    }
}

/// The length of a read from which on [`CoreConfig::send_bytes_large`] counts.
pub(super) const LARGE_READ_BYTES: u32 = 64 << 10;

/// What one core may use, and how it batches.
#[derive(Clone, Copy, Debug)]
pub struct CoreConfig {
    /// Connections at one time; more are closed as they come.
    pub max_connections: usize,
    /// Length of a receive chunk in bytes, and how many there are.
    pub rx_chunk_bytes: u32,
    /// See [`Self::rx_chunk_bytes`].
    pub rx_chunks: u32,
    /// Most bytes of one receive into a chunk.
    pub recv_bytes: u32,
    /// The same while a connection receives data that was asked for by R2T. That data should land in the
    /// command's own buffer; what lands in the chunk has to be copied.
    pub recv_bytes_in_transfer: u32,
    /// A gathered send starts as soon as this much waits; the rest follows at the end of the turn. 64 KiB (16
    /// reads of 4 KiB) lets the peer begin while later reads are gathered.
    pub send_bytes: u64,
    /// The same when what was queued last is a read of 64 KiB or more, which would be a send each. 512 KiB was
    /// measured to give 10-20 % over that.
    pub send_bytes_large: u64,
    /// Reads of one connection that are submitted or wait to be sent, in bytes; more wait in the queue. Bounds
    /// what a host that asks and does not receive can hold, and keeps data warm between device and socket.
    pub read_window_bytes: u64,
    /// MAXH2CDATA.
    pub max_h2c_data_bytes: u32,
    /// R2Ts of one command outstanding at one time (at most 4, and what the host allows).
    pub max_r2t: u32,
    /// Most bytes of one R2T.
    pub r2t_bytes: u32,
    /// A connection that received nothing in so many turns is not tried any more before its socket reports
    /// readable.
    pub hot_turns: u16,
    /// How often timeouts are looked at.
    pub tick: Duration,
    /// See there.
    pub timeouts: Timeouts,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            rx_chunk_bytes: 256 << 10,
            rx_chunks: 16,
            recv_bytes: 256 << 10,
            recv_bytes_in_transfer: 16 << 10,
            send_bytes: 64 << 10,
            send_bytes_large: 512 << 10,
            read_window_bytes: 1 << 20,
            max_h2c_data_bytes: 128 << 10,
            max_r2t: 1,
            r2t_bytes: u32::MAX,
            hot_turns: 64,
            tick: Duration::from_millis(100),
            timeouts: Timeouts::default(),
        }
    }
}
