//! What is counted of tunnels: upgraded connections, CONNECT and raw TCP.

use weft_core::metrics::{Counter, Counters, Gauge, Gauges, Registry};

/// All series of tunnels.
#[derive(Debug, Clone)]
pub(crate) struct TunnelFamilies {
    open: Gauges,
    bytes: Counters,
}

/// Handles of one cluster.
#[derive(Debug, Clone)]
pub struct TunnelMetrics {
    /// Open now.
    pub open: Gauge,
    /// Bytes to endpoints.
    pub sent: Counter,
    /// Bytes from endpoints.
    pub received: Counter,
}

impl TunnelFamilies {
    pub fn new(registry: &Registry) -> Self {
        Self {
            open: registry.gauges(
                "weft_proxy_open_tunnels",
                "Upgraded connections, CONNECT tunnels and raw TCP connections open now",
                &["direction", "service"],
            ),
            bytes: registry.counters(
                "weft_proxy_tunnel_bytes_total",
                "Bytes that passed tunnels, to endpoints (sent) and from them (received)",
                &["direction", "service", "way"],
            ),
        }
    }

    pub fn cluster(&self, direction: &str, service: &str) -> TunnelMetrics {
        TunnelMetrics {
            open: self.open.with(&[direction, service]),
            sent: self.bytes.with(&[direction, service, "sent"]),
            received: self.bytes.with(&[direction, service, "received"]),
        }
    }

    pub fn forget(&self, direction: &str, service: &str) {
        self.open.remove(&[direction, service]);
        for way in ["sent", "received"] {
            self.bytes.remove(&[direction, service, way]);
        }
    }
}

#[cfg(test)]
impl TunnelMetrics {
    /// Counts for nobody.
    pub fn detached() -> Self {
        TunnelFamilies::new(&Registry::new()).cluster("outbound", "detached")
    }
}
