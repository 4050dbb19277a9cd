//! The fields of a record as it was written: where each stands, and what was expected in it.

use serde::de::DeserializeOwned;
use tenon_proto::tcs::v1::{Product, Shard, TenantContext};

use crate::{
    names::short,
    yaml::{
        At, Entry, Form, Map, Node, Value, from_node, one_of,
        shape::{optional, required},
        suggestion,
    },
};

/// Where the field stands that the path leads to, or the innermost one on the way to it that there is.
pub(crate) fn place(record: &Node, path: &[String]) -> Option<At> {
    let mut node = record;
    let mut place = None;
    for step in path {
        let found = match &node.value {
            Value::Map(entries) => {
                entries.iter().find(|entry| json_name(&entry.key) == *step).map(|entry| (entry.at, &entry.value))
            }
            Value::List(items) => {
                step.parse().ok().and_then(|index: usize| items.get(index)).map(|item| (item.at, item))
            }
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_) => None,
        };
        let Some((at, value)) = found else { break };
        (place, node) = (Some(at), value);
    }
    place
}

/// Every field that is unknown or whose value is none of its type, with what was expected.
pub(crate) fn misfits(record: &Node) -> Vec<(At, String)> {
    let mut found = Vec::new();
    for field in entries(record) {
        if json_name(&field.key) != "products" || !is_map(&field.value) {
            found.extend(misfit::<TenantContext>(field, &TENANT));
            continue;
        }
        for product in entries(&field.value) {
            if !is_map(&product.value) {
                found.push(differs(product, "a product: an object"));
            }
            for field in entries(&product.value) {
                if json_name(&field.key) == "shard" && is_map(&field.value) {
                    found.extend(entries(&field.value).iter().filter_map(|part| misfit::<Shard>(part, &SHARD)));
                } else {
                    found.extend(misfit::<Product>(field, &PRODUCT));
                }
            }
        }
    }
    found
}

/// A tenant as the policy's tests have it.
pub(crate) static TENANT: Map = Map {
    what: "a tenant",
    fields: &[
        required("tenantId", Form::Text, "a tenant id as text"),
        optional("revision", Form::Either(&[Form::Number(0), Form::Text]), "a whole number 0 to 18446744073709551615"),
        required("status", Form::Choice(|| vec!["ACTIVE", "SUSPENDED"]), "ACTIVE or SUSPENDED"),
        optional("hosts", Form::List(&Form::Text), "a list of host names"),
        optional("realm", Form::Text, "the name of a realm as text"),
        optional("region", Form::Text, "the name of a region as text"),
        optional("products", Form::Names(&Form::Map(&PRODUCT)), "an object of products by their names"),
        optional("settings", Form::Names(&Form::Text), "an object of texts by their names"),
        optional("move", Form::Map(&MOVE), "an object with toRegion and startedAt"),
    ],
};

static PRODUCT: Map = Map {
    what: "a product",
    fields: &[
        required("state", Form::Choice(|| vec!["ACTIVE", "INACTIVE", "SUSPENDED"]), "ACTIVE, INACTIVE or SUSPENDED"),
        optional("edition", Form::Text, "text"),
        optional("seats", Form::Either(&[Form::Number(0), Form::Text]), "a whole number 0 to 4294967295"),
        optional("licenseExpiresAt", Form::Text, "an RFC 3339 time such as 2027-01-31T00:00:00Z"),
        optional("features", Form::List(&Form::Text), "a list of texts"),
        optional("shard", Form::Map(&SHARD), "an object with cluster, database and schema"),
    ],
};

static SHARD: Map = Map {
    what: "a shard",
    fields: &[
        optional("cluster", Form::Text, "text"),
        optional("database", Form::Text, "text"),
        optional("schema", Form::Text, "text"),
    ],
};

static MOVE: Map = Map {
    what: "a move",
    fields: &[
        optional("toRegion", Form::Text, "the name of a region as text"),
        optional("startedAt", Form::Text, "an RFC 3339 time such as 2027-01-31T00:00:00Z"),
    ],
};

/// Reads a message with this field alone: so what is refused here is exactly what is refused in a whole record.
fn misfit<T: DeserializeOwned>(field: &Entry, map: &'static Map) -> Option<(At, String)> {
    let name = json_name(&field.key);
    let Some(known) = map.fields.iter().find(|known| known.name == name) else {
        let known: Vec<&str> = map.names().collect();
        let hint = suggestion(name, known.iter().copied());
        return Some((field.at, format!("unknown field {:?}{hint}, expected {}", short(name), one_of(&known))));
    };
    let alone = Node { at: field.at, value: Value::Map(vec![field.clone()]) };
    from_node::<T>(&alone).is_err().then(|| differs(field, known.says))
}

fn differs(field: &Entry, expected: &str) -> (At, String) {
    let message = format!("{} is {}, expected {expected}", short(&field.key), field.value.value.describe());
    (field.at, message)
}

fn entries(node: &Node) -> &[Entry] {
    if let Value::Map(entries) = &node.value { entries } else { &[] }
}

fn is_map(node: &Node) -> bool {
    matches!(node.value, Value::Map(_))
}

/// proto3 JSON also takes the names of the proto: `tenant_id` for `tenantId`.
fn json_name(key: &str) -> &str {
    match key {
        "tenant_id" => "tenantId",
        "license_expires_at" => "licenseExpiresAt",
        other => other,
    }
}
