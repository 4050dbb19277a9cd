//! `tenon-sidecar wait`: until the sidecar beside is ready, so that an app starts after it.

use std::{io, net::SocketAddr, time::Duration};

use clap::Args;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::config::duration;

/// Between two looks.
const AGAIN: Duration = Duration::from_millis(50);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// An answer is no longer.
const LONGEST: u64 = 64 << 10;

/// Which sidecar, and how long.
#[derive(Debug, Args)]
pub struct Wait {
    /// Admin listener of the sidecar
    #[arg(long, env = "TENON_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:15000", value_parser = address)]
    pub admin: SocketAddr,
    /// How long to wait, with its unit
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse)]
    pub timeout: Duration,
}

fn parse(text: &str) -> Result<Duration, &'static str> {
    duration(text).ok_or("expected a number with its unit: 500ms, 60s or 2m")
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "expected IP:PORT or [IPv6]:PORT, as the sidecar's own --admin")
}

impl Wait {
    /// Comes back once the sidecar is ready; says on standard error what it waits for, when that changes.
    ///
    /// # Errors
    /// Not in time: with what is missing.
    pub async fn run(&self) -> Result<(), String> {
        let end = Instant::now() + self.timeout;
        let mut said = String::new();
        loop {
            let missing = match timeout_at(end, timeout(ANSWER, ask(self.admin))).await {
                Ok(Ok(Ok(None))) => return Ok(()),
                Ok(Ok(Ok(Some(missing)))) => missing,
                Ok(Ok(Err(error))) => format!("no sidecar answers at {}: {error}", self.admin),
                Ok(Err(_)) | Err(_) => format!("the sidecar at {} accepts connections and does not answer", self.admin),
            };
            if Instant::now() + AGAIN >= end {
                return Err(format!(
                    "not ready after {:?}: {missing}; its log, and http://{}/config once it answers, tell more",
                    self.timeout, self.admin
                ));
            }
            if missing != said {
                eprintln!("tenon-sidecar wait: {missing}");
                said = missing;
            }
            sleep(AGAIN).await;
        }
    }
}

/// What `/ready` misses; `None` when it says yes.
async fn ask(admin: SocketAddr) -> io::Result<Option<String>> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(format!("GET /ready HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    Ok(match status {
        "200" => None,
        "503" => Some(body.trim().replace('\n', "; ")),
        _ => Some(format!("what listens at {admin} is no sidecar's admin listener")),
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Gives these answers, one a connection.
    async fn admin(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let mut request = [0; 512];
                let _read = stream.read(&mut request).await.expect("a request");
                stream.write_all(answer.as_bytes()).await.expect("answered");
            }
        });
        address
    }

    #[tokio::test]
    async fn it_ends_when_the_sidecar_is_ready_and_not_before() {
        const NOT_YET: &str = "HTTP/1.1 503 Service Unavailable\r\n\r\nthe tenants have never arrived\n";
        let admin = admin(&[NOT_YET, NOT_YET, "HTTP/1.1 200 OK\r\n\r\nready\n"]).await;
        assert_eq!(ask(admin).await.expect("answered").as_deref(), Some("the tenants have never arrived"));
        Wait { admin, timeout: Duration::from_secs(20) }.run().await.expect("ready at the third look");
    }

    #[tokio::test]
    async fn who_waited_in_vain_is_told_what_is_missing() {
        let admin = admin(&["HTTP/1.1 503 Service Unavailable\r\n\r\nthe policy has never arrived\nno key\n"]).await;
        let error = Wait { admin, timeout: AGAIN }.run().await.expect_err("never ready");
        assert!(error.contains("the policy has never arrived; no key"), "{error}");
    }

    #[tokio::test]
    async fn nobody_there_and_somebody_else_there_are_told_apart() {
        let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
        let error = Wait { admin: nobody, timeout: AGAIN }.run().await.expect_err("nobody");
        assert!(error.contains("no sidecar answers"), "{error}");
        let other = admin(&["HTTP/1.1 404 Not Found\r\n\r\n"]).await;
        let error = Wait { admin: other, timeout: AGAIN }.run().await.expect_err("somebody else");
        assert!(error.contains("no sidecar's admin listener"), "{error}");
    }
}
