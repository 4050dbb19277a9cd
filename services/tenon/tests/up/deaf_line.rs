//! A TCP line on which requests arrive and answers do not.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// Passes on all that clients say, and of the answers what a TLS handshake needs.
pub struct DeafLine {
    /// Where clients connect to.
    pub address: String,
    clients: Arc<Mutex<Vec<TcpStream>>>,
}

impl DeafLine {
    pub fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Self { address: listener.local_addr().unwrap().to_string(), clients: Arc::default() };
        let (server, clients) = (server.to_owned(), Arc::clone(&line.clients));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                clients.lock().unwrap().push(client.try_clone().unwrap());
                pass(client, TcpStream::connect(&server).unwrap());
            }
        });
        line
    }

    /// Breaks the connections that there are.
    pub fn end(&self) {
        for client in self.clients.lock().unwrap().drain(..) {
            client.shutdown(Shutdown::Both).unwrap();
        }
    }
}

fn pass(client: TcpStream, server: TcpStream) {
    let deaf = Arc::new(AtomicBool::new(false));
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let goes_deaf = Arc::clone(&deaf);
    thread::spawn(move || {
        let (mut buffer, mut records) = ([0; 16 * 1024], Records::default());
        while let Ok(length @ 1..) = from_client.read(&mut buffer) {
            // Who encrypts has all of the handshake that he needs, in however many pieces it came.
            goes_deaf.fetch_or(records.encrypted(&buffer[..length]), SeqCst);
            if to_server.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _gone = to_server.shutdown(Shutdown::Both);
    });
    let (mut from_server, mut to_client) = (server, client);
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = from_server.read(&mut buffer) {
            if !deaf.load(SeqCst) && to_client.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
    });
}

/// `application_data`, as which TLS 1.3 sends all that is encrypted, the client's `Finished` among it (RFC 8446, 5.2).
const APPLICATION_DATA: u8 = 23;

/// Where the records of TLS begin in a stream (RFC 8446, 5.1).
#[derive(Default)]
struct Records {
    header: Vec<u8>,
    /// Bytes of the record that are still to come.
    left: usize,
}

impl Records {
    /// Whether the header of a record that is encrypted ends in these bytes, the next of the stream.
    fn encrypted(&mut self, mut bytes: &[u8]) -> bool {
        let mut found = false;
        loop {
            let passed = self.left.min(bytes.len());
            self.left -= passed;
            bytes = &bytes[passed..];
            let Some((byte, rest)) = bytes.split_first() else { return found };
            self.header.push(*byte);
            bytes = rest;
            if let [kind, _, _, high, low] = self.header[..] {
                found |= kind == APPLICATION_DATA;
                self.left = u16::from_be_bytes([high, low]).into();
                self.header.clear();
            }
        }
    }
}

/// A client says `change_cipher_spec` when it has only the first of the server's records.
#[test]
fn a_handshake_in_pieces_passes_whole_and_no_answer_behind_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let line = DeafLine::to(&listener.local_addr().unwrap().to_string());
    let mut client = TcpStream::connect(&line.address).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    for side in [&client, &server] {
        side.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        side.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    let says = |from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]| {
        from.write_all(bytes).unwrap();
        let mut heard = vec![0; bytes.len()];
        to.read_exact(&mut heard).unwrap();
        assert_eq!(heard, bytes);
    };
    let (hello, change) = ([22, 3, 3, 0, 3, 23, 23, 23], [20, 3, 3, 0, 1, 1]);
    says(&mut client, &mut server, &hello);
    says(&mut server, &mut client, b"ServerHello");
    says(&mut client, &mut server, &change);
    says(&mut server, &mut client, b"the rest");
    says(&mut client, &mut server, &[23, 3, 3]);
    says(&mut server, &mut client, b"of the flight");
    says(&mut client, &mut server, &[0, 1, 0]);
    // More than two sockets hold: who has written it knows that the line has read of it.
    server.write_all(&vec![0; 64 << 20]).unwrap();
    line.end();
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"");
}
