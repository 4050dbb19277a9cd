//! The schema of editors says what the parser says, as far as it can: it is made of the parser's own tables, and what
//! those tables leave open is held against the parser here.

use std::{collections::BTreeSet, fs, sync::LazyLock};

use jsonschema::Validator;
use mesh_config::{SourceFile, parse, schema};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::documents::{below, compare, documents, yaml_files};

fn validator() -> &'static Validator {
    static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| jsonschema::draft202012::new(&schema()).unwrap());
    &VALIDATOR
}

/// The page for people, whose blocks have every field there is.
fn page() -> Vec<Value> {
    let page = fs::read_to_string(below("../docs/policy-files.md")).unwrap();
    let blocks: Vec<&str> = page.split("```").filter_map(|part| part.strip_prefix("yaml\n")).collect();
    documents(&blocks.join("\n---\n")).unwrap()
}

fn demo() -> Vec<Value> {
    let files = yaml_files(&below("demo"));
    files.iter().flat_map(|path| documents(&fs::read_to_string(path).unwrap()).unwrap()).collect()
}

#[test]
fn the_schema_that_is_checked_in_is_the_one_of_this_parser() {
    let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    let wrong = compare(&below("../docs/policy.schema.json"), &text).err();
    assert!(wrong.is_none(), "it is made by: TENON_WRITE_EXPECTED=1 cargo nextest run -p mesh-config");
}

#[test]
fn it_is_a_schema_of_draft_2020_12() {
    jsonschema::draft202012::meta::validate(&schema()).unwrap();
}

#[test]
fn every_document_of_the_demo_and_of_the_page_is_as_it_says() {
    let schema = validator();
    let documents: Vec<Value> = demo().into_iter().chain(page()).collect();
    assert!(documents.len() >= 20, "{}", documents.len());
    for document in documents {
        let errors: Vec<String> = schema.iter_errors(&document).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?} in {document:#}");
    }
}

#[test]
fn every_example_of_the_guide_to_routes_is_taken_and_as_it_says() {
    let guide = fs::read_to_string(below("../docs/routes.md")).unwrap();
    let examples: Vec<&str> = guide.split("```").filter_map(|part| part.strip_prefix("yaml\n")).collect();
    assert!(examples.len() >= 6, "{}", examples.len());
    let base = fs::read_to_string(below("tests/malformed/base.yaml")).unwrap();
    for example in examples {
        let file = |path: &str, text: &str| SourceFile { path: path.to_owned(), text: text.to_owned() };
        let mesh = parse(&[file("base.yaml", &base), file("example.yaml", example)]);
        assert_eq!(mesh.unwrap_or_else(|problems| panic!("{problems}")).routes().len(), 1, "{example}");
        assert!(documents(example).unwrap().iter().all(|document| validator().is_valid(document)), "{example}");
    }
}

#[test]
fn what_it_knows_of_the_malformed_files_is_their_shape() {
    let schema = validator();
    for kind in ["shape", "meaning"] {
        for path in yaml_files(&below("tests/malformed").join(kind)) {
            let documents = documents(&fs::read_to_string(&path).unwrap()).unwrap();
            let valid = documents.iter().all(|document| schema.is_valid(document));
            assert_eq!(valid, kind == "meaning", "{}", path.display());
        }
    }
}

#[test]
fn every_kind_and_every_field_stands_on_the_page_and_is_described() {
    let page = page();
    let mut known = BTreeSet::new();
    for document in &page {
        names(document, "", &mut known);
    }
    let schema = schema();
    let kinds = schema["$defs"].as_object().unwrap();
    let missing: Vec<&String> =
        kinds.keys().filter(|kind| !page.iter().any(|document| document["kind"] == **kind)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let mut fields = Vec::new();
    properties(&schema, &mut fields);
    assert!(fields.len() > 60, "{fields:?}");
    // What `tenon.tcs.v1.TenantContext` has is told elsewhere.
    let tenants = &kinds["PolicyTest"]["properties"]["spec"]["properties"]["tenants"];
    let mut of_tenants = Vec::new();
    properties(tenants, &mut of_tenants);
    for (name, property) in fields {
        assert!(property["description"].as_str().is_some_and(|text| !text.is_empty()), "{name} says nothing");
        let elsewhere = of_tenants.iter().any(|(other, _)| *other == name);
        assert!(elsewhere || known.contains(name), "no block of docs/policy-files.md has {name}");
    }
}

fn names(value: &Value, name: &str, found: &mut BTreeSet<String>) {
    found.insert(name.to_owned());
    match value {
        Value::Object(entries) => entries.iter().for_each(|(name, value)| names(value, name, found)),
        Value::Array(items) => items.iter().for_each(|item| names(item, name, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn properties<'s>(schema: &'s Value, found: &mut Vec<(&'s str, &'s Value)>) {
    if let Some(properties) = schema["properties"].as_object() {
        found.extend(properties.iter().map(|(name, property)| (name.as_str(), property)));
    }
    match schema {
        Value::Object(entries) => entries.values().for_each(|value| properties(value, found)),
        Value::Array(items) => items.iter().for_each(|item| properties(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A place in a document: keys and indexes.
type Path = Vec<String>;

/// Every place in a value, the innermost last.
fn places(value: &Value, at: &Path, found: &mut Vec<Path>) {
    found.push(at.clone());
    let mut below = |step: String, value: &Value| places(value, &[at.as_slice(), &[step]].concat(), found);
    match value {
        Value::Object(entries) => entries.iter().for_each(|(name, value)| below(name.clone(), value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(index, value)| below(index.to_string(), value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn pointer(path: &[String]) -> String {
    path.iter().map(|step| format!("/{}", step.replace('~', "~0").replace('/', "~1"))).collect()
}

/// Each document of the page, changed in one place at a time: the change, its place, and the page with it.
fn changed(change: impl Fn(&mut Value, &[String]) -> bool, mut see: impl FnMut(&str, &Value, Result<(), String>)) {
    let page = page();
    let mut texts: Vec<String> = page.iter().map(Value::to_string).collect();
    for (index, document) in page.iter().enumerate() {
        let own = texts[index].clone();
        let mut all = Vec::new();
        places(document, &Vec::new(), &mut all);
        for path in all {
            let mut other = document.clone();
            if !change(&mut other, &path) {
                continue;
            }
            texts[index] = other.to_string();
            let file = SourceFile { path: "page.yaml".to_owned(), text: texts.join("\n---\n") };
            let parsed = parse(&[file]).map(drop).map_err(|problems| problems.to_string());
            see(&format!("{} {}", document["kind"], pointer(&path)), &other, parsed);
        }
        texts[index] = own;
    }
}

#[test]
fn a_value_of_another_type_is_refused_by_both_wherever_it_stands() {
    let schema = validator();
    for wrong in [json!([[]]), json!(4711.5), json!({"unheard of": [[]]})] {
        let change = |document: &mut Value, path: &[String]| {
            *document.pointer_mut(&pointer(path)).unwrap() = wrong.clone();
            true
        };
        changed(change, |place, document, parsed| {
            assert!(parsed.is_err(), "{wrong} at {place} is not refused");
            assert!(!schema.is_valid(document), "{wrong} at {place} is taken by the schema");
        });
    }
}

#[test]
fn an_unknown_field_is_refused_by_both_wherever_it_stands() {
    let schema = validator();
    let change = |document: &mut Value, path: &[String]| {
        let map = document.pointer_mut(&pointer(path)).unwrap().as_object_mut();
        map.map(|map| map.insert("unheardOf".to_owned(), json!("x"))).is_some()
    };
    let mut taken = Vec::new();
    changed(change, |place, document, parsed| match (parsed, schema.is_valid(document)) {
        (Err(_), false) => {}
        (Ok(()), true) => taken.push(place.to_owned()),
        (parsed, valid) => panic!("{place}: the schema says {valid}, the parser {parsed:?}"),
    });
    // Names of claims are the user's own.
    assert!(taken.iter().all(|place| place.ends_with("/claims")) && taken.len() == 2, "{taken:?}");
}

#[test]
fn a_field_must_be_there_for_both_or_for_neither() {
    let schema = validator();
    let change = |document: &mut Value, path: &[String]| {
        let Some((name, parent)) = path.split_last() else { return false };
        let map = document.pointer_mut(&pointer(parent)).unwrap().as_object_mut();
        map.is_some_and(|map| map.remove(name).is_some())
    };
    let mut required = 0;
    changed(change, |place, document, parsed| {
        let needed = parsed.err().filter(|problems| {
            ["missing field", "an empty map", "no status is given", "has no state", "is not a tenant id"]
                .iter()
                .any(|words| problems.contains(words))
        });
        assert_eq!(needed.is_none(), schema.is_valid(document), "{place}: {needed:?}");
        required += usize::from(needed.is_some());
    });
    assert!(required > 50, "{required}");
}

#[test]
fn what_the_parser_takes_the_schema_takes() {
    let schema = validator();
    let values = [json!(""), json!("a"), json!(0), json!(true), json!(null), json!([]), json!({})];
    for value in values {
        let change = |document: &mut Value, path: &[String]| {
            *document.pointer_mut(&pointer(path)).unwrap() = value.clone();
            // A tenant's record has more spellings than an editor proposes: numbers for choices, null for absent.
            let tenant = path.starts_with(&["spec".to_owned(), "tenants".to_owned()]);
            // And a document of nothing is none at all.
            !path.is_empty()
                && !(tenant && (value.is_number() || value.is_null() || value == json!({}) || value == json!("")))
        };
        changed(change, |place, document, parsed| {
            assert!(parsed.is_err() || schema.is_valid(document), "{value} at {place} is taken by the parser alone");
        });
    }
}

/// A mesh around one text, at a place that says what it must be.
fn taken(document: &str) -> bool {
    let base = "apiVersion: tenon.dev/v1\nkind: Mesh\nmetadata: {name: m}\nspec: {trustDomain: a, regions: [r]}\n---\n\
                apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: s}\nspec: {product: p}\n";
    let file = |path: &str, text: &str| SourceFile { path: path.to_owned(), text: text.to_owned() };
    parse(&[file("a.yaml", base), file("b.yaml", document)]).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_patterns_of_names_and_paths_match_what_the_parser_takes(
        text in prop_oneof![
            "[a-z0-9-]{0,4}", "[A-Za-z0-9._-]{0,4}", "[a-z0-9-]{60,66}", "[A-Za-z0-9._-]{60,66}", "[a-z0-9._-]{253,257}",
            "/[a-z.]{0,4}/[a-z*]{0,3}", "[/a-zA-Z0-9_.*-]{0,10}", "[0-9]{0,3}/[smhd]", "\\PC{0,4}", "a\\n",
        ],
    ) {
        let schema = validator();
        let rule = |text: &Value, rate: &Value| format!("{{name: {text}, callers: ['*'], paths: [/a.B/C], rate: {{perTenant: {rate}}}}}");
        let allowlist = |rule: &str| format!("apiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {{name: a}}\nspec: {{service: s, rules: [{rule}]}}");
        let text = json!(text);
        let with_paths = format!("{{name: r, callers: ['*'], paths: [{text}]}}");
        let with_ids = format!("{{name: r, callers: ['*'], paths: [/a.B/C], tenants: {{ids: [{text}], features: [{text}]}}}}");
        let product = format!("apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{product: {text}}}");
        let call = format!("apiVersion: tenon.dev/v1\nkind: PolicyTest\nmetadata: {{name: {text}}}\nspec: {{calls: [{{caller: a, service: b, path: /, expect: ALLOWED}}]}}");
        let documents_of_one_text = [
            allowlist(&rule(&text, &json!("1/s"))), allowlist(&rule(&json!("r"), &text)), allowlist(&with_paths),
            allowlist(&with_ids), product, call,
        ];
        for document in documents_of_one_text {
            let valid = documents(&document).unwrap().iter().all(|document| schema.is_valid(document));
            prop_assert_eq!(valid, taken(&document), "{}", document);
        }
    }
}
