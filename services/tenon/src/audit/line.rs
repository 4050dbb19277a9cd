//! A record as a line of JSON, with everything that its hash is over.

use serde_json::{Value, json};
use tenon_proto::audit::v1::Record;

pub(super) fn to_json(process: &str, record: &Record) -> Value {
    json!({
        "process": process,
        "sequence": record.sequence,
        "at": moment(record.at_unix_ms),
        "atUnixMs": record.at_unix_ms,
        "service": record.service,
        "by": record.by,
        "action": record.action,
        "what": record.what,
        "outcome": record.outcome,
        "of": record.of,
        "details": record.details,
        "previous": hex(&record.previous),
        "hash": hex(&record.hash),
    })
}

fn moment(unix_ms: u64) -> Option<String> {
    let at = jiff::Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()?;
    Some(at.to_string())
}

/// # Errors
/// Which field is missing or something else.
pub(super) fn from_json(line: &str) -> Result<(String, Record), String> {
    let json: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    // For people; the hash is over the number.
    if json["at"].as_str().map(str::to_owned) != moment(json["atUnixMs"].as_u64().unwrap_or(0)) {
        return Err("`at` is not the moment of `atUnixMs`".to_owned());
    }
    let text = |name: &str| json[name].as_str().map(str::to_owned).ok_or_else(|| format!("`{name}` is not text"));
    let number = |name: &str| json[name].as_u64().ok_or_else(|| format!("`{name}` is not a number"));
    let bytes = |name: &str| unhex(&text(name)?).ok_or_else(|| format!("`{name}` is not hexadecimal"));
    let details = json["details"].as_object().ok_or("`details` is not an object")?;
    let detail = |(name, value): (&String, &Value)| {
        Ok((name.clone(), value.as_str().ok_or_else(|| format!("`details.{name}` is not text"))?.to_owned()))
    };
    let record = Record {
        sequence: number("sequence")?,
        at_unix_ms: number("atUnixMs")?,
        service: text("service")?,
        by: text("by")?,
        action: text("action")?,
        what: text("what")?,
        outcome: text("outcome")?,
        of: number("of")?,
        details: details.iter().map(detail).collect::<Result<_, String>>()?,
        previous: bytes("previous")?.into(),
        hash: bytes("hash")?.into(),
    };
    Ok((text("process")?, record))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_as_it_was_written_and_damage_is_named() {
        let record = Record {
            sequence: 7,
            at_unix_ms: 1_700_000_000_123,
            service: "tcs".into(),
            by: "spiffe://demo.example/operator/ann".into(),
            action: "Tenants/Suspend".into(),
            what: "acme \"1\"\n".into(),
            outcome: "done".into(),
            of: 6,
            details: [("role".to_owned(), "admin".to_owned())].into(),
            previous: vec![1; 32].into(),
            hash: vec![0xab; 32].into(),
        };
        let line = to_json("tcs", &record).to_string();
        assert_eq!(from_json(&line), Ok(("tcs".to_owned(), record)));
        for (damaged, says) in [
            ("{}".to_owned(), "`at`"),
            (line.replace("\"at\":\"2023", "\"at\":\"2024"), "`at`"),
            (line.replace("\"details\"", "\"other\""), "`details`"),
            ("x".to_owned(), "not JSON"),
            (line.replace("\"of\":6", "\"of\":\"6\""), "`of`"),
            (line.replace("abab", "xyz"), "`hash` is not hexadecimal"),
            (line.replace("\"admin\"", "5"), "`details.role`"),
        ] {
            assert!(from_json(&damaged).unwrap_err().contains(says), "{damaged}");
        }
    }
}
