//! Counters of one core that belong to no namespace.

/// Plain integers: the core that owns them counts, and copies them out when asked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TargetCoreStats {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections closed at once because there were too many.
    pub refused: u64,
    /// Connections there are.
    pub connections: u64,
    /// Connections that ended because the peer broke the protocol.
    pub protocol_errors: u64,
    /// Connections that ended because the peer stalled.
    pub timeouts: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Gathered sends.
    pub sends: u64,
}
