//! `Describe`: the document of `/config`, or parts of it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tenon_proto::admin::v1::{DescribeRequest, DescribeResponse};
use tonic::Status;

use super::super::{Admin, document::document};

/// Entries of a list that are told.
const LONGEST_LIST: usize = 500;

/// # Errors
/// INVALID_ARGUMENT names a section that there is not.
pub(super) fn describe(admin: &Admin, request: &DescribeRequest) -> Result<DescribeResponse, Status> {
    let mut whole = document(admin);
    if let Some(unknown) = request.sections.iter().find(|section| !whole.contains_key(*section)) {
        let known: Vec<_> = whole.keys().map(String::as_str).collect();
        let message = format!("sections: there is no {unknown:?} now, only {}", known.join(", "));
        return Err(Status::invalid_argument(message));
    }
    if !request.sections.is_empty() {
        whole.retain(|section, _| request.sections.contains(section));
    }
    let omitted = shorten(&mut whole);
    // A field that is absent says the same, and there is no null in a message.
    whole.retain(|_, value| !value.is_null());
    let document = serde_json::from_value(Value::Object(whole));
    let document = document.map_err(|error| Status::internal(format!("the document is not one: {error}")))?;
    Ok(DescribeResponse { document: Some(document), omitted })
}

/// Cuts the long lists of the document and of what stands in them; comes back with what is missing.
fn shorten(document: &mut Map<String, Value>) -> BTreeMap<String, u32> {
    let mut omitted = BTreeMap::new();
    for (name, value) in document {
        cut(name, value, &mut omitted);
    }
    omitted
}

fn cut(name: &str, value: &mut Value, omitted: &mut BTreeMap<String, u32>) {
    match value {
        Value::Array(list) => {
            let missing = list.len().saturating_sub(LONGEST_LIST);
            if missing > 0 {
                list.truncate(LONGEST_LIST);
                *omitted.entry(name.to_owned()).or_default() += u32::try_from(missing).unwrap_or(u32::MAX);
            }
            list.iter_mut().for_each(|entry| cut(name, entry, omitted));
        }
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.iter_mut().for_each(|(field, value)| cut(&format!("{name}.{field}"), value, omitted));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn long_lists_are_cut_and_what_is_missing_is_told() {
        let Value::Object(mut document) = json!({
            "destinations": [{"service": "a", "instances": vec![1; 600]}, {"service": "b", "instances": vec![1; 700]}],
            "routes": vec!["x"; 501],
            "replicas": ["y"],
            "svid": {"serial": "1", "gone": null},
        }) else {
            panic!("an object");
        };
        let omitted = shorten(&mut document);
        assert_eq!(omitted, BTreeMap::from([("destinations.instances".to_owned(), 300), ("routes".to_owned(), 1)]));
        assert_eq!(document["destinations"][1]["instances"].as_array().map(Vec::len), Some(LONGEST_LIST));
        assert_eq!(document["replicas"], json!(["y"]));
        assert_eq!(document["svid"], json!({"serial": "1"}));
    }
}
