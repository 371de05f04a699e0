use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use super::super::records::Target;
use super::*;

struct Running {
    addr: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

async fn running() -> Running {
    let bound = BoundDns::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let addr = bound.local_addr();
    let source: Source = Arc::new(|name: &str| {
        let target = |n| Target { host: format!("10.0.0.{n}"), port: 80 };
        (name == "web").then(|| (1..=60).map(target).collect()).into()
    });
    bound.serve(source, DnsCounters::default(), &stop, &tasks);
    tasks.close();
    Running { addr, stop, tasks }
}

fn query(name: &str) -> Vec<u8> {
    let mut m = Message::new(42, MessageType::Query, OpCode::Query);
    m.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    m.to_vec().unwrap()
}

async fn ask_udp(addr: SocketAddr, packet: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(packet, addr).await.unwrap();
    let mut buffer = [0; 2_000];
    let len = timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..len]).unwrap()
}

async fn ask_tcp(stream: &mut TcpStream, packet: &[u8]) -> Message {
    stream.write_u16(packet.len() as u16).await.unwrap();
    stream.write_all(packet).await.unwrap();
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

#[tokio::test]
async fn a_truncated_answer_is_complete_over_tcp() {
    let dns = running().await;
    let cut = ask_udp(dns.addr, &query("web.weft.")).await;
    assert!(cut.metadata.truncation && cut.answers.len() < 60);
    let mut stream = TcpStream::connect(dns.addr).await.unwrap();
    // Two queries on one connection.
    assert_eq!(ask_tcp(&mut stream, &query("web.weft.")).await.answers.len(), 60);
    assert_eq!(
        ask_tcp(&mut stream, &query("nobody.weft.")).await.metadata.response_code,
        ResponseCode::NXDomain
    );
}

#[tokio::test]
async fn garbage_does_not_stop_the_service() {
    let dns = running().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&[0xff; 3], dns.addr).await.unwrap();
    socket.send_to(&[], dns.addr).await.unwrap();
    let mut stream = TcpStream::connect(dns.addr).await.unwrap();
    stream.write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0, "an absurd length is closed");
    assert!(!ask_udp(dns.addr, &query("web.weft.")).await.answers.is_empty());
}

#[tokio::test]
async fn stopping_ends_every_task_with_connections_open() {
    let dns = running().await;
    let mut stream = TcpStream::connect(dns.addr).await.unwrap();
    ask_tcp(&mut stream, &query("web.weft.")).await;
    dns.stop.cancel();
    timeout(Duration::from_secs(5), dns.tasks.wait()).await.expect("all tasks end");
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_port_in_use_is_an_error() {
    let dns = running().await;
    let error = BoundDns::bind(dns.addr).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}
