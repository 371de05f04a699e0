//! Why an answer is as it is, in one word: the cause of each answer that the proxy made itself, and what happened on the
//! way to others. The words stand in `x-weft-error`, in the access log and as a label of a metric, so there is one
//! list of them.

use std::fmt;

/// One cause. [`Flag::word`] is what people see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Flag {
    /// The request is malformed, or too large, or late: the guard in front of the parser refused it.
    Refused,
    /// CONNECT where there are no tunnels.
    Connect,
    /// CONNECT to something that is no target.
    ConnectTarget,
    /// CONNECT to something that no tunnel leads to.
    ConnectRefused,
    /// No host, or one that is none.
    BadHost,
    /// A scheme other than http, and https over HTTP/2.
    BadScheme,
    /// An expectation other than 100-continue.
    Expectation,
    /// The request goes in a circle.
    Loop,
    /// Nobody knows the host.
    UnknownHost,
    /// No server could be asked about the host.
    NoControlPlane,
    /// The server did not answer in time about the host.
    NotResolved,
    /// The host has routes, and none is for this request.
    NoRoute,
    /// A path that has no normal form.
    BadPath,
    /// A route made no usable target of the request.
    BadRewrite,
    /// A route leads to a service that is not known.
    NoCluster,
    /// No endpoint may be asked.
    NoEndpoint,
    /// No endpoint took a connection.
    ConnectFailed,
    /// This proxy has no descriptor or port left.
    Shortage,
    /// The app beside this sidecar takes no connection.
    LocalAppDown,
    /// The endpoint closed the connection before it answered.
    UpstreamClosed,
    /// The endpoint's answer is no answer.
    UpstreamInvalid,
    /// The endpoint did not answer in time.
    UpstreamTimeout,
    /// The caller's deadline is no time.
    BadDeadline,
    /// The caller's deadline is over.
    Deadline,
    /// The circuit breaker was full.
    Overflow,
    /// The rate limit was reached.
    RateLimited,
    /// Nothing more of the request's body came.
    SlowBody,
    /// The request's body broke off.
    ClientBody,
    /// A route answered with a failure made on purpose.
    Fault,
    /// A route made the request wait on purpose.
    FaultDelay,
    /// The endpoint's answer broke off in its middle.
    UpstreamReset,
    /// The answer was not complete within the time of its route.
    BodyLate,
    /// Nothing more of the answer came for as long as its service says.
    StreamIdle,
    /// The client was gone before its answer was complete.
    ClientGone,
    /// A repetition was due, and the retry budget was used up.
    RetryBudget,
    /// A connection for TLS by its client's name that began with something else.
    TlsMalformed,
    /// One that ended, or stood still, before its client had named anything.
    TlsIncomplete,
    /// One whose client named nothing.
    TlsNoName,
    /// One whose client named what is no service.
    TlsNoService,
    /// An authorisation policy refuses the caller.
    Forbidden,
    /// One of mode Audit would.
    ForbiddenAudit,
    /// A token is missing, or does not hold.
    BadToken,
    /// This proxy had too much to do.
    Overloaded,
}

impl Flag {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 43] = [
        Self::Refused,
        Self::Connect,
        Self::ConnectTarget,
        Self::ConnectRefused,
        Self::BadHost,
        Self::BadScheme,
        Self::Expectation,
        Self::Loop,
        Self::UnknownHost,
        Self::NoControlPlane,
        Self::NotResolved,
        Self::NoRoute,
        Self::BadPath,
        Self::BadRewrite,
        Self::NoCluster,
        Self::NoEndpoint,
        Self::ConnectFailed,
        Self::Shortage,
        Self::LocalAppDown,
        Self::UpstreamClosed,
        Self::UpstreamInvalid,
        Self::UpstreamTimeout,
        Self::BadDeadline,
        Self::Deadline,
        Self::Overflow,
        Self::RateLimited,
        Self::SlowBody,
        Self::ClientBody,
        Self::Fault,
        Self::FaultDelay,
        Self::UpstreamReset,
        Self::BodyLate,
        Self::StreamIdle,
        Self::ClientGone,
        Self::RetryBudget,
        Self::TlsMalformed,
        Self::TlsIncomplete,
        Self::TlsNoName,
        Self::TlsNoService,
        Self::Forbidden,
        Self::ForbiddenAudit,
        Self::BadToken,
        Self::Overloaded,
    ];

    /// As people see it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Connect => "connect",
            Self::ConnectTarget => "connect-target",
            Self::ConnectRefused => "connect-refused",
            Self::BadHost => "bad-host",
            Self::BadScheme => "bad-scheme",
            Self::Expectation => "expectation",
            Self::Loop => "loop",
            Self::UnknownHost => "unknown-host",
            Self::NoControlPlane => "no-control-plane",
            Self::NotResolved => "not-resolved",
            Self::NoRoute => "no-route",
            Self::BadPath => "bad-path",
            Self::BadRewrite => "bad-rewrite",
            Self::NoCluster => "no-cluster",
            Self::NoEndpoint => "no-endpoint",
            Self::ConnectFailed => "connect-failed",
            Self::Shortage => "shortage",
            Self::LocalAppDown => "local-app-down",
            Self::UpstreamClosed => "upstream-closed",
            Self::UpstreamInvalid => "upstream-invalid",
            Self::UpstreamTimeout => "upstream-timeout",
            Self::BadDeadline => "bad-deadline",
            Self::Deadline => "deadline",
            Self::Overflow => "overflow",
            Self::RateLimited => "rate-limited",
            Self::SlowBody => "slow-body",
            Self::ClientBody => "client-body",
            Self::Fault => "fault",
            Self::FaultDelay => "fault-delay",
            Self::UpstreamReset => "upstream-reset",
            Self::BodyLate => "body-late",
            Self::StreamIdle => "stream-idle",
            Self::ClientGone => "client-gone",
            Self::RetryBudget => "retry-budget",
            Self::TlsMalformed => "tls-malformed",
            Self::TlsIncomplete => "tls-incomplete",
            Self::TlsNoName => "tls-no-name",
            Self::TlsNoService => "tls-no-service",
            Self::Forbidden => "forbidden",
            Self::ForbiddenAudit => "forbidden-audit",
            Self::BadToken => "bad-token",
            Self::Overloaded => "overloaded",
        }
    }

    const fn bit(self) -> u64 {
        1 << self as u8
    }
}

/// All that happened to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(u64);

impl Flags {
    /// These and one more.
    #[must_use]
    pub const fn with(self, flag: Flag) -> Self {
        Self(self.0 | flag.bit())
    }

    /// Whether it is among them.
    pub const fn has(self, flag: Flag) -> bool {
        self.0 & flag.bit() != 0
    }

    /// In the order of [`Flag::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Flag> {
        Flag::ALL.into_iter().filter(move |flag| self.has(*flag))
    }
}

impl fmt::Display for Flags {
    /// Words with commas between; `-` for none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("-");
        }
        for (i, flag) in self.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { "," })?;
            f.write_str(flag.word())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_has_a_bit_and_a_word_of_its_own() {
        let mut all = Flags::default();
        let mut words = std::collections::BTreeSet::new();
        for (i, flag) in Flag::ALL.into_iter().enumerate() {
            assert_eq!(flag as usize, i, "{flag:?} stands at its number");
            assert!(!all.has(flag));
            all = all.with(flag);
            assert!(words.insert(flag.word()));
        }
        assert_eq!(all.iter().count(), Flag::ALL.len());
    }

    #[test]
    fn flags_are_shown_as_words() {
        assert_eq!(Flags::default().to_string(), "-");
        let two = Flags::default().with(Flag::RetryBudget).with(Flag::UpstreamTimeout);
        assert_eq!(two.to_string(), "upstream-timeout,retry-budget");
    }
}
