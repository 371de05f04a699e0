//! The first words on a connection between servers: both prove that they know the join token, and neither says it.
//!
//! ```text
//! connects                                      accepts
//!   GREETING, 32 random bytes c      ────────►
//!                                    ◄────────  GREETING, 32 random bytes s
//!   HMAC(token, "…connects" c s b)   ────────►
//!                                    ◄────────  1, HMAC(token, "…accepts" c s b)     or 0: it knows no such token
//! ```
//! HMAC is HMAC-SHA-256 (RFC 2104). Both random values are in both proofs, so what was said on one connection proves
//! nothing on another; the labels keep a proof from being sent back to who made it. `b` is the keying material that
//! TLS exports for this connection (RFC 5705, RFC 9266), or nothing without TLS: with it, whoever stands in between
//! with a certificate of his own cannot pass a proof on. Without TLS the handshake keeps strangers from connecting, and not somebody
//! who can change packets on the way: for networks where that is possible there is `--peer-tls-cert`.

use std::io;

use aws_lc_rs::{hmac, rand};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    error::{Refused, Unreached},
    token::Token,
};

/// First bytes both ways. The number is the version of what follows.
pub const GREETING: [u8; 8] = *b"weft/1\r\n";

/// In place of a greeting: the certificate is no server's.
pub const NO_SERVER: [u8; 8] = *b"weft!crt";

const RANDOM_BYTES: usize = 32;
const PROOF_BYTES: usize = 32;

const CONNECTS: &[u8] = b"weft peer 1: connects";
const ACCEPTS: &[u8] = b"weft peer 1: accepts";

const YES: u8 = 1;
const NO: u8 = 0;

/// First byte of TLS records: a handshake, an alert (RFC 8446 §5.1).
pub const TLS_HANDSHAKE: u8 = 22;
const TLS_ALERT: u8 = 21;

/// What HTTP/2 begins with (RFC 9113 §3.4), as long as our greeting.
const HTTP2: [u8; 8] = *b"PRI * HT";

/// What the proofs of one connection are made of.
struct Said<'a> {
    connects: [u8; RANDOM_BYTES],
    accepts: [u8; RANDOM_BYTES],
    binding: &'a [u8],
}

impl Said<'_> {
    fn bytes(&self, label: &[u8]) -> Vec<u8> {
        [label, &self.connects, &self.accepts, self.binding].concat()
    }

    fn proof(&self, token: &Token, label: &[u8]) -> hmac::Tag {
        hmac::sign(&key(token), &self.bytes(label))
    }

    fn is_proved_by(&self, token: &Token, label: &[u8], proof: &[u8]) -> bool {
        hmac::verify(&key(token), &self.bytes(label), proof).is_ok()
    }
}

fn key(token: &Token) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes())
}

/// Fills bytes that nobody can foresee: a proof over bytes that were seen before could be a repeated one.
pub type Random = fn(&mut [u8]) -> io::Result<()>;

/// Those of the system's.
pub fn system_random(bytes: &mut [u8]) -> io::Result<()> {
    rand::fill(bytes).map_err(|_| io::Error::other("the system gives no random bytes"))
}

/// The side that connects: proves the first token, and wants the other side to prove it too.
pub async fn connect<S>(
    stream: &mut S,
    tokens: &[Token],
    binding: &[u8],
    random: Random,
) -> Result<(), Unreached>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let token = tokens.first().ok_or(Unreached::TokenRefused)?;
    let mut connects = [0; RANDOM_BYTES];
    random(&mut connects).map_err(|_| Unreached::Random)?;
    write(stream, &[GREETING.as_slice(), &connects].concat()).await.map_err(closed)?;

    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting[..1]).await.map_err(closed)?;
    if greeting[0] == TLS_ALERT {
        return Err(Unreached::TlsThere);
    }
    stream.read_exact(&mut greeting[1..]).await.map_err(closed)?;
    match greeting {
        GREETING => {}
        NO_SERVER => return Err(Unreached::NoServer),
        _ => return Err(Unreached::NotAServer),
    }
    let mut accepts = [0; RANDOM_BYTES];
    stream.read_exact(&mut accepts).await.map_err(closed)?;
    let said = Said { connects, accepts, binding };
    write(stream, said.proof(token, CONNECTS).as_ref()).await.map_err(closed)?;

    if stream.read_u8().await.map_err(closed)? != YES {
        return Err(Unreached::TokenRefused);
    }
    let mut proof = [0; PROOF_BYTES];
    stream.read_exact(&mut proof).await.map_err(closed)?;
    if said.is_proved_by(token, ACCEPTS, &proof) { Ok(()) } else { Err(Unreached::Unproven) }
}

/// The side that accepts: lets in who proves any of the tokens.
pub async fn accept<S>(
    stream: &mut S,
    tokens: &[Token],
    binding: &[u8],
    random: Random,
) -> Result<(), Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting[..1]).await.map_err(broken)?;
    if greeting[0] == TLS_HANDSHAKE {
        // No word of TLS, so the other end says that there is none here.
        write(stream, &GREETING).await.map_err(broken)?;
        return Err(Refused::TlsHere);
    }
    stream.read_exact(&mut greeting[1..]).await.map_err(broken)?;
    match greeting {
        GREETING => {}
        HTTP2 => return Err(Refused::NoToken),
        _ => return Err(Refused::Garbage),
    }
    let mut connects = [0; RANDOM_BYTES];
    stream.read_exact(&mut connects).await.map_err(broken)?;
    let mut accepts = [0; RANDOM_BYTES];
    random(&mut accepts).map_err(|error| Refused::Broken(error.kind()))?;
    write(stream, &[GREETING.as_slice(), &accepts].concat()).await.map_err(broken)?;

    let mut proof = [0; PROOF_BYTES];
    stream.read_exact(&mut proof).await.map_err(broken)?;
    let said = Said { connects, accepts, binding };
    let Some(token) = tokens.iter().find(|token| said.is_proved_by(token, CONNECTS, &proof)) else {
        write(stream, &[NO]).await.map_err(broken)?;
        return Err(Refused::WrongToken);
    };
    write(stream, &[&[YES], said.proof(token, ACCEPTS).as_ref()].concat()).await.map_err(broken)
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

fn broken(error: io::Error) -> Refused {
    weft_core::tls::explain(&error).map_or(Refused::Broken(error.kind()), Refused::Tls)
}

fn closed(error: io::Error) -> Unreached {
    weft_core::tls::explain(&error).map_or(Unreached::Closed(error.kind()), Unreached::Tls)
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::gate::token::Tokens;

    fn tokens(letters: &str) -> std::sync::Arc<[Token]> {
        let each: Vec<String> = letters.chars().map(|letter| letter.to_string().repeat(32)).collect();
        Tokens::given(&each.join(",")).expect("tokens").current()
    }

    async fn both(
        connecting: (&str, &[u8]),
        accepting: (&str, &[u8]),
    ) -> (Result<(), Unreached>, Result<(), Refused>) {
        let (mut one, mut other) = duplex(256);
        let (connecting, accepting) =
            ((tokens(connecting.0), connecting.1), (tokens(accepting.0), accepting.1));
        let accepted = async {
            let accepted = accept(&mut other, &accepting.0, accepting.1, system_random).await;
            drop(other);
            accepted
        };
        tokio::join!(connect(&mut one, &connecting.0, connecting.1, system_random), accepted)
    }

    #[tokio::test]
    async fn who_knows_the_token_is_let_in_also_while_it_is_replaced() {
        for (connecting, accepting) in
            [("a", "a"), ("a", "ab"), ("b", "ab"), ("ba", "ab"), ("ab", "ba"), ("ab", "a")]
        {
            let (connected, accepted) = both((connecting, b""), (accepting, b"")).await;
            assert!(
                connected.is_ok() && accepted.is_ok(),
                "{connecting} to {accepting}: {connected:?} {accepted:?}"
            );
        }
    }

    #[tokio::test]
    async fn another_token_is_refused_and_both_sides_are_told() {
        for (connecting, accepting) in [("a", "b"), ("ba", "a"), ("c", "ab")] {
            let (connected, accepted) = both((connecting, b""), (accepting, b"")).await;
            assert!(matches!(connected, Err(Unreached::TokenRefused)), "{connected:?}");
            assert_eq!(accepted, Err(Refused::WrongToken));
        }
    }

    #[tokio::test]
    async fn a_proof_of_one_tls_connection_proves_nothing_on_another() {
        let (connected, accepted) = both(("a", b"one"), ("a", b"other")).await;
        assert!(matches!(connected, Err(Unreached::TokenRefused)), "{connected:?}");
        assert_eq!(accepted, Err(Refused::WrongToken));
    }

    /// What one side says and hears, in order.
    async fn recorded(token: &str) -> (Vec<u8>, Vec<u8>) {
        let ((mut one, mut wire_one), (mut other, mut wire_other)) = (duplex(256), duplex(256));
        let known = tokens(token);
        let (mut said, mut heard) = (vec![0; 40], vec![0; 40]);
        let passing = async {
            let pass = async |from: &mut DuplexStream, to: &mut DuplexStream, bytes: &mut [u8]| {
                from.read_exact(bytes).await.expect("reads");
                to.write_all(bytes).await.expect("writes");
            };
            pass(&mut wire_one, &mut wire_other, &mut said).await;
            pass(&mut wire_other, &mut wire_one, &mut heard).await;
            let (mut proof, mut answer) = ([0; 32], [0; 33]);
            pass(&mut wire_one, &mut wire_other, &mut proof).await;
            pass(&mut wire_other, &mut wire_one, &mut answer).await;
            said.extend(proof);
            heard.extend(answer);
        };
        let (connected, accepted, ()) = tokio::join!(
            connect(&mut one, &known, b"", system_random),
            accept(&mut other, &known, b"", system_random),
            passing
        );
        assert!(connected.is_ok() && accepted.is_ok());
        (said, heard)
    }

    #[tokio::test]
    async fn a_handshake_that_is_repeated_word_by_word_is_refused() {
        let (said, heard) = recorded("a").await;
        let (mut one, mut other) = duplex(256);
        one.write_all(&said).await.expect("writes");
        assert_eq!(accept(&mut other, &tokens("a"), b"", system_random).await, Err(Refused::WrongToken));

        let (mut one, mut other) = duplex(256);
        other.write_all(&heard).await.expect("writes");
        let connected = connect(&mut one, &tokens("a"), b"", system_random).await;
        assert!(matches!(connected, Err(Unreached::Unproven)), "{connected:?}");
    }

    #[tokio::test]
    async fn the_token_is_never_on_the_wire() {
        let (said, heard) = recorded("a").await;
        for bytes in [said, heard] {
            assert!(!bytes.windows(4).any(|window| window == b"aaaa"));
        }
    }

    #[tokio::test]
    async fn an_own_proof_sent_back_is_not_one_of_the_other_side() {
        let (mut one, mut other) = duplex(256);
        let mirror = async {
            let (mut greeting, mut proof) = ([0; 40], [0; 32]);
            other.read_exact(&mut greeting).await.expect("reads");
            other.write_all(&greeting).await.expect("writes");
            other.read_exact(&mut proof).await.expect("reads");
            other.write_all(&[&[YES], proof.as_slice()].concat()).await.expect("writes");
        };
        let known = tokens("a");
        let (connected, ()) = tokio::join!(connect(&mut one, &known, b"", system_random), mirror);
        assert!(matches!(connected, Err(Unreached::Unproven)), "{connected:?}");
    }

    #[tokio::test]
    async fn strangers_are_told_apart() {
        for (said, expected) in [
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), Refused::NoToken),
            (b"\x16\x03\x01\x02\x00\x01", Refused::TlsHere),
            (b"GET / HTTP/1.1\r\n\r\n", Refused::Garbage),
            (b"weft/2\r\n", Refused::Garbage),
            (b"weft", Refused::Broken(io::ErrorKind::UnexpectedEof)),
            (b"", Refused::Broken(io::ErrorKind::UnexpectedEof)),
        ] {
            let (mut one, mut other) = duplex(256);
            one.write_all(said).await.expect("writes");
            one.shutdown().await.expect("ends");
            assert_eq!(accept(&mut other, &tokens("a"), b"", system_random).await, Err(expected), "{said:?}");
        }
        for (said, expected) in [
            (b"\x15\x03\x03\x00\x02\x02\x46".as_slice(), "speaks TLS"),
            (b"weft!crt", "server.weft"),
            (b"HTTP/1.1 400 Bad Request\r\n", "not the peer port"),
            (b"weft", "closed"),
        ] {
            let (mut one, mut other) = duplex(256);
            other.write_all(said).await.expect("writes");
            other.shutdown().await.expect("ends");
            let connected =
                connect(&mut one, &tokens("a"), b"", system_random).await.expect_err("refused").to_string();
            assert!(connected.contains(expected), "{connected}");
        }
    }

    proptest::proptest! {
        #[test]
        fn bytes_of_any_kind_are_refused(said: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                let (mut one, mut other) = duplex(4096);
                let _ = one.write_all(&said).await;
                let _ = one.shutdown().await;
                assert!(accept(&mut other, &tokens("a"), b"", system_random).await.is_err());
                let (mut one, mut other) = duplex(4096);
                let _ = other.write_all(&said).await;
                let _ = other.shutdown().await;
                assert!(connect(&mut one, &tokens("a"), b"", system_random).await.is_err());
            });
        }
    }
}
