//! One line of JSON, strictly: a key that stands twice is an error, where serde would take the last.

use std::{collections::HashSet, fmt};

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use tenon_proto::tcs::v1::TenantContext;

/// Reads one record.
///
/// # Errors
/// What is wrong, each behind its column (in characters, counted from 1).
pub(super) fn read(line: &str) -> Result<TenantContext, Vec<(u32, String)>> {
    serde_json::from_str::<OnceEach>(line).map_err(|error| vec![located(line, &error)])?;
    serde_json::from_str(line).map_err(|error| {
        let misfits = super::tree::tree(line).map(|tree| super::misfits(&tree)).unwrap_or_default();
        if misfits.is_empty() {
            return vec![located(line, &error)];
        }
        misfits.into_iter().map(|(at, what)| (at.column, super::not_json(&what))).collect()
    })
}

fn located(line: &str, error: &serde_json::Error) -> (u32, String) {
    // serde_json counts bytes; for what ends too early its column is the last there is.
    let column = super::column(line.get(..error.column().saturating_sub(1)).unwrap_or(line));
    let text = error.to_string();
    let message = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]);
    match error.classify() {
        Category::Syntax | Category::Eof | Category::Io => {
            (column, format!("not JSON: {message}, expected one JSON object a line"))
        }
        Category::Data => (column, super::not_json(message)),
    }
}

/// Any JSON value in which no key stands twice in one object.
struct OnceEach;

impl<'de> Deserialize<'de> for OnceEach {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnceEachVisitor)
    }
}

struct OnceEachVisitor;

impl<'de> Visitor<'de> for OnceEachVisitor {
    type Value = OnceEach;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<OnceEach, E> {
        Ok(OnceEach)
    }

    fn visit_i64<E>(self, _: i64) -> Result<OnceEach, E> {
        Ok(OnceEach)
    }

    fn visit_u64<E>(self, _: u64) -> Result<OnceEach, E> {
        Ok(OnceEach)
    }

    fn visit_f64<E>(self, _: f64) -> Result<OnceEach, E> {
        Ok(OnceEach)
    }

    fn visit_str<E>(self, _: &str) -> Result<OnceEach, E> {
        Ok(OnceEach)
    }

    fn visit_unit<E>(self) -> Result<OnceEach, E> {
        Ok(OnceEach)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OnceEach, A::Error> {
        while items.next_element::<OnceEach>()?.is_some() {}
        Ok(OnceEach)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<OnceEach, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            entries.next_value::<OnceEach>()?;
            if let Some(key) = keys.replace(key) {
                return Err(de::Error::custom(format!(
                    "key {:?} stands twice, expected it once",
                    crate::names::short(&key)
                )));
            }
        }
        Ok(OnceEach)
    }
}
