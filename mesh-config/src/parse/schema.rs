//! JSON Schema of policy documents, for the completion of editors: made of the tables that the parser reads by.
//!
//! It knows shapes alone: what a name stands for, and what may stand but once in a mesh, `tenon policy check` tells.

use serde_json::{Map as Object, Value, json};

use super::document::{DOCUMENT, KINDS, Kind};
use crate::yaml::{Form, Map};

/// JSON Schema, draft 2020-12, of one document of a policy file.
pub fn schema() -> Value {
    let kinds: Object<String, Value> =
        KINDS.iter().map(|(name, kind)| ((*name).to_owned(), document(name, *kind))).collect();
    let each: Vec<Value> = KINDS.iter().map(|(name, _)| json!({"$ref": format!("#/$defs/{name}")})).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tenon policy document",
        "description": "One document of a policy file of a Tenon mesh.",
        "type": "object",
        "oneOf": each,
        "$defs": kinds,
    })
}

fn document(name: &str, kind: Kind) -> Value {
    let (spec, says) = kind.spec();
    let mut document = of_map(&DOCUMENT);
    document["description"] = json!(says);
    let properties = &mut document["properties"];
    properties["kind"] = json!({"const": name, "description": says});
    let mut named = of_form(kind.name());
    named["description"] = properties["metadata"]["properties"]["name"]["description"].take();
    properties["metadata"]["properties"]["name"] = named;
    let mut spec = of_map(spec);
    spec["description"] = properties["spec"]["description"].take();
    properties["spec"] = spec;
    document
}

fn of_map(map: &'static Map) -> Value {
    let mut properties = Object::new();
    for field in map.fields {
        let mut property = of_form(field.form);
        property["description"] = json!(field.says);
        properties.insert(field.name.to_owned(), property);
    }
    let required: Vec<&str> = map.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

fn of_form(form: Form) -> Value {
    match form {
        Form::Text => json!({"type": "string"}),
        Form::Like(pattern) => json!({"type": "string", "pattern": pattern}),
        Form::Choice(words) => match words().as_slice() {
            [word] => json!({"const": word}),
            words => json!({"enum": words}),
        },
        Form::Boolean => json!({"type": "boolean"}),
        Form::Number(least) => json!({"type": "integer", "minimum": least}),
        Form::Between(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
        Form::Decimal(least, most) => json!({"type": "number", "minimum": least, "maximum": most}),
        Form::List(item) => json!({"type": "array", "items": of_form(*item)}),
        Form::Some(item) => json!({"type": "array", "items": of_form(*item), "minItems": 1}),
        Form::Set(item) => json!({"type": "array", "items": of_form(*item), "minItems": 1, "uniqueItems": true}),
        Form::Map(map) => of_map(map),
        Form::SomeMap(map) => some(of_map(map)),
        Form::Names(value) => json!({"type": "object", "additionalProperties": of_form(*value)}),
        Form::SomeNames(name, value) => some(json!({
            "type": "object",
            "propertyNames": of_form(*name),
            "additionalProperties": of_form(*value),
        })),
        Form::Either(forms) => json!({"anyOf": forms.iter().copied().map(of_form).collect::<Vec<_>>()}),
    }
}

fn some(mut map: Value) -> Value {
    map["minProperties"] = json!(1);
    map
}
