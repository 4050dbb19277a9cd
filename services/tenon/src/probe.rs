//! Asking a process whether it serves: gRPC health of the control plane, `/ready` of sidecars.

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::operator::reason;

/// Whoever takes longer than this does not serve.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest answer that is read.
const LIMIT: usize = 64 * 1024;

/// What a sidecar's admin listener answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body as text, cut off at 64 KiB.
    pub body: String,
    /// The `date` header, if there is one.
    pub date: Option<String>,
}

/// `GET path` over plaintext HTTP/1.1.
///
/// # Errors
/// Why there was no answer, in a few words.
pub async fn get(address: SocketAddr, path: &str) -> Result<Answer, String> {
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let request = Request::get(path)
            .header("host", address.to_string())
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|error| error.to_string())?;
        let talk = async {
            let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, LIMIT).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let date = head.headers.get("date").and_then(|date| date.to_str().ok()).map(str::to_owned);
            Ok(Answer { status: head.status.as_u16(), body: String::from_utf8_lossy(&body).into_owned(), date })
        };
        tokio::pin!(talk);
        tokio::pin!(connection);
        tokio::select! {
            answer = &mut talk => answer,
            end = &mut connection => match end {
                // The server may close right after its answer, which is then already here.
                Ok(()) => talk.await,
                Err(error) => Err(error.to_string()),
            },
        }
    };
    timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
}

/// Asks for the health of a whole server, over whatever the channel is.
///
/// # Errors
/// Why it does not serve, in a few words.
pub async fn health(channel: Channel) -> Result<(), String> {
    let mut client = HealthClient::new(channel);
    let check = client.check(HealthCheckRequest { service: String::new() });
    match timeout(PATIENCE, check).await {
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        Ok(Err(status)) => Err(reason(&status)),
        Ok(Ok(answer)) => match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            ServingStatus::Unknown | ServingStatus::NotServing | ServingStatus::ServiceUnknown => {
                Err("it answers that it does not serve yet".to_owned())
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    async fn answering(text: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn an_answer_is_read_with_status_and_body() {
        let address = answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nno policy").await;
        let answer = get(address, "/ready").await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "no policy"));
    }

    #[tokio::test]
    async fn nobody_there_is_an_error_and_not_a_panic() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(get(address, "/ready").await.unwrap_err().contains("refused"));
        let health = health(Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy()).await;
        assert!(health.is_err());
    }

    #[tokio::test]
    async fn something_that_is_not_http_is_an_error() {
        let address = answering("SSH-2.0-OpenSSH\r\n").await;
        assert!(get(address, "/ready").await.is_err());
    }
}
