//! The crate `asap` as the other side: one request a line on standard input, one answer a line, both JSON.
//!
//! ```text
//! {"do": "mint", "issuer": .., "kid": .., "key": PEM, "audience": ..}             ->  {"token": ..}
//! {"do": "verify", "token": .., "issuer": .., "audience": .., "url": BASE_URL}    ->  {"claims": {..}}
//! whatever goes wrong                                                             ->  {"error": ..}
//! ```
//!
//! The authority of the key repository is in `SSL_CERT_FILE`.
//!
//! The crate departs from the ASAP specification in what it takes from a key repository: not a PEM SubjectPublicKeyInfo
//! but the bytes of a PKCS#1 RSAPublicKey. So it asks a translator on loopback, which asks the real repository.

use std::error::Error;
use std::io::BufRead as _;
use std::net::SocketAddr;

use asap::claims::Aud;
use asap::generator::Generator;
use asap::validator::Validator;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

type Outcome = Result<Value, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    for line in std::io::stdin().lock().lines() {
        let asked: Value = serde_json::from_str(&line?)?;
        let outcome = match text(&asked, "do") {
            "mint" => mint(&asked),
            _ => verify(&asked).await,
        };
        println!("{}", outcome.unwrap_or_else(|error| json!({ "error": error.to_string() })));
    }
    Ok(())
}

fn text<'v>(asked: &'v Value, name: &str) -> &'v str {
    asked[name].as_str().unwrap_or_default()
}

fn mint(asked: &Value) -> Outcome {
    // PKCS#8 with the PKCS#1 key in it: the crate takes PKCS#1.
    let pkcs8 = pem::parse(text(asked, "key"))?.into_contents();
    let pkcs1 = der::last(&pkcs8).ok_or("the key is no PKCS#8")?.to_vec();
    let generator = Generator::new(text(asked, "issuer").into(), text(asked, "kid").into(), pkcs1);
    let token = generator.token(Aud::One(text(asked, "audience").into()), None).map_err(|error| error.to_string())?;
    Ok(json!({ "token": token }))
}

async fn verify(asked: &Value) -> Outcome {
    let translator = translate(text(asked, "url").to_owned()).await?;
    let validator =
        Validator::builder(format!("http://{translator}/"), text(asked, "audience").into()).leeway(5).build();
    let decoded = validator.decode(text(asked, "token"), &[text(asked, "issuer")]).await;
    Ok(json!({ "claims": decoded.map_err(|error| error.to_string())?.claims }))
}

/// Answers `GET /<kid>` with the key of the repository at `url`, as the crate wants it.
async fn translate(url: String) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer(stream, &url).await;
            if let Err(error) = answer {
                eprintln!("translator: {error}");
            }
        }
    });
    Ok(address)
}

async fn answer(stream: TcpStream, url: &str) -> Result<(), Box<dyn Error>> {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    stream.read_line(&mut request).await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 2 {
        line.clear();
    }
    let kid = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
    let asked = reqwest::Client::new().get(format!("{url}{kid}")).header("accept", "application/x-pem-file");
    let found = asked.send().await?.error_for_status();
    let (status, body) = match found {
        Ok(found) => {
            let spki = pem::parse(found.text().await?)?.into_contents();
            (200, der::last(&spki).ok_or("the answer is no SubjectPublicKeyInfo")?.to_vec())
        }
        Err(error) => (error.status().map_or(502, |status| status.as_u16()), Vec::new()),
    };
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    Ok(stream.flush().await?)
}

/// As little of DER as this needs.
mod der {
    const BIT_STRING: u8 = 0x03;
    const OCTET_STRING: u8 = 0x04;

    /// The last member of the outermost SEQUENCE that is a BIT STRING or an OCTET STRING: the key in a
    /// SubjectPublicKeyInfo and in a PKCS#8 PrivateKeyInfo.
    pub fn last(der: &[u8]) -> Option<&[u8]> {
        let (_, mut rest, _) = element(der)?;
        let mut found = None;
        while !rest.is_empty() {
            let (tag, content, after) = element(rest)?;
            match tag {
                // The first byte counts unused bits: none.
                BIT_STRING => found = content.get(1..),
                OCTET_STRING => found = Some(content),
                _ => {}
            }
            rest = after;
        }
        found
    }

    /// Tag, content, and what follows.
    fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
        let (&tag, rest) = der.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        };
        let (content, after) = rest.split_at_checked(length)?;
        Some((tag, content, after))
    }
}
