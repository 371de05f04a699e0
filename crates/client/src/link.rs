//! What goes with every request: who asks, and the request's name.

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Metadata entries of the names of requests, as servers know them.
const CLIENT_ID: &str = "weft-client-id";
const SEQ: &str = "weft-seq";
const AFTER: &str = "weft-after";
const ANSWERED: &str = "weft-answered";
/// Metadata entry of a token, as etcd's clients have it.
const TOKEN: &str = "token";

/// A connection that says with each request who asks.
pub(crate) type Link = InterceptedService<Channel, Stamp>;

/// The name of a write: servers carry it out once, however often it comes, and answer a repetition as they answered
/// it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    /// Of this client, random.
    pub(crate) client: u64,
    /// Counted up.
    pub(crate) seq: u64,
    /// A log index that a server told before the request was first sent; 0: none did.
    pub(crate) after: u64,
    /// Requests with a smaller number were answered.
    pub(crate) answered: u64,
}

/// Adds it to a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stamp {
    pub(crate) token: Option<MetadataValue<Ascii>>,
    pub(crate) name: Option<Name>,
}

impl Interceptor for Stamp {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        if let Some(token) = &self.token {
            metadata.insert(TOKEN, token.clone());
        }
        if let Some(Name { client, seq, after, answered }) = self.name {
            let hex = MetadataValue::try_from(format!("{client:x}")).expect("hex digits are ASCII");
            metadata.insert(CLIENT_ID, hex);
            metadata.insert(SEQ, seq.into());
            metadata.insert(AFTER, after.into());
            metadata.insert(ANSWERED, answered.into());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_its_name_and_who_asks_and_nothing_without_them() {
        let mut stamp = Stamp {
            token: Some("abc".parse().expect("ASCII")),
            name: Some(Name { client: 255, seq: 7, after: 9, answered: 5 }),
        };
        let request = stamp.call(Request::new(())).expect("never refused");
        for (entry, value) in [(TOKEN, "abc"), (CLIENT_ID, "ff"), (SEQ, "7"), (AFTER, "9"), (ANSWERED, "5")] {
            assert_eq!(request.metadata().get(entry).expect("is there"), value);
        }
        assert!(Stamp::default().call(Request::new(())).expect("never refused").metadata().is_empty());
    }
}
