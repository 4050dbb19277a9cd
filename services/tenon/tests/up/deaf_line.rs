//! A TCP line on which requests arrive and answers do not.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
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
    let (heard, deaf) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (has_heard, goes_deaf) = (Arc::clone(&heard), Arc::clone(&deaf));
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = from_client.read(&mut buffer) {
            // Who speaks a second time has all of the handshake that he needs.
            goes_deaf.fetch_or(has_heard.load(SeqCst), SeqCst);
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
            heard.store(true, SeqCst);
            if !deaf.load(SeqCst) && to_client.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
    });
}
