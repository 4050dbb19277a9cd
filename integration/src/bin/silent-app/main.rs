//! An app that tests kill: `silent-app IP:PORT FILE`. It writes a 1 to the file for each call, and does nothing about it.

use std::{env, fs};

use anyhow::Context as _;
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = env::args().skip(1);
    let (address, count) = (args.next().context("IP:PORT is missing")?, args.next().context("FILE is missing")?);
    let listener = TcpListener::bind(&address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let count = count.clone();
        tokio::spawn(async move {
            // Some connections only ask whether somebody listens.
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            let mut open = Vec::new();
            while let Some(Ok(call)) = connection.accept().await {
                let before = fs::read_to_string(&count).unwrap_or_default();
                if let Err(error) = fs::write(&count, before + "1") {
                    eprintln!("{count}: {error}");
                }
                open.push(call);
            }
        });
    }
}
